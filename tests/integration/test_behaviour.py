"""The behaviour suite against a sidecar in a thread of the test run, with two real servers behind it."""

from tests.behaviour import *  # noqa: F403  the suite is one; what differs is the fixture `http`
