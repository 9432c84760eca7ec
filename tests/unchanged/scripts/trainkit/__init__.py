"""A project that is started by `-m trainkit.train`."""

STEPS = 3
