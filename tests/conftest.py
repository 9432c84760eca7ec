from importlib.util import find_spec

from hypothesis import settings

# Machines differ in speed; the time of one example says nothing.
settings.register_profile("mimo", deadline=None)
settings.load_profile("mimo")

if find_spec("torch") is None:
    with_torch = ["bridge*", "buffers", "context", "gpu", "groups", "hyper_comm_grid", "megatron", "rehearsal", "schedule"]
    with_torch += ["gradient_sync", "gradients", "losses", "nccl_order", "notices", "torch_interop", "witness"]
    with_torch += ["backward_pass", "batch_identity", "frames", "peer_links", "wait_cycles"]
    folders = ["cluster/*", "examples/*", "launcher/schedulers/*", "launcher/preflight/test_arrivals.py"]
    collect_ignore_glob = [*folders, *(f"mimo_role/test_{name}.py" for name in with_torch)]
