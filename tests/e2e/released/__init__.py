"""Tests that share one release of the chart: a package, which is what pytest can keep something for."""
