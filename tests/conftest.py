from importlib.util import find_spec

from hypothesis import settings

# Machines differ in speed; the time of one example says nothing.
settings.register_profile("mimo", deadline=None)
settings.load_profile("mimo")

if find_spec("torch") is None:
    with_torch = ["bridge*", "buffers", "context", "gpu", "groups", "hyper_comm_grid", "megatron", "rehearsal", "schedule"]
    with_torch += ["nccl_order", "notices", "torch_interop", "witness"]
    folders = ["cluster/*", "examples/*", "launcher/schedulers/*", "launcher/preflight/test_arrivals.py"]
    collect_ignore_glob = [*folders, *(f"mimo_role/test_{name}.py" for name in with_torch)]
