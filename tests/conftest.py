from importlib.util import find_spec

from hypothesis import settings

# Machines differ in speed; the time of one example says nothing.
settings.register_profile("mimo", deadline=None)
settings.load_profile("mimo")

if find_spec("torch") is None:
    collect_ignore_glob = ["examples/*", "mimo_role/test_bridge.py", "mimo_role/test_context.py"]
