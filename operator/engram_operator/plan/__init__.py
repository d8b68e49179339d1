"""Pure deciders: what is wanted and what is seen, to steps."""
