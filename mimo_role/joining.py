"""Joining torch.distributed, and what all ranks check of each other: the same topology, no messages of an earlier context."""

import hashlib
import itertools
import json
import socket
import weakref
from collections import defaultdict
from collections.abc import Mapping
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import HashStore  # type: ignore[attr-defined]

from mimo_role.bridge.peer_links import Links, NoPeerLinks, PeerLinks, Store
from mimo_role.errors import ContextError, TopologyMismatchError
from mimo_role.groups.options import GroupOptions
from mimo_role.host import environ, network
from mimo_role.topology.topology import Topology


def join(topology: Topology, backend: str, timeout: timedelta) -> torch.device:
    """Join by torch's `env://`, or by SLURM's variables if srun has started the rank; return the rank's device.

    Raises:
        ContextError: variables are missing, or name a GPU that does not exist.
        EnvironError: a malformed variable.
    """
    if backend == "auto":
        backend = "nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    exported = _adopt_slurm() if topology.world_size > 1 else []
    try:
        return _join_by_environ(topology, backend, timeout)
    except BaseException:
        environ.withdraw(exported)
        raise


def _adopt_slurm() -> list[str]:
    """If srun and no launcher has started this rank, set torch's variables from SLURM's; return the names of those set."""
    if environ.rank() is not None or (task := environ.slurm_task()) is None:
        return []
    found = task.to_environ()
    if len(set(task.hosts)) > 1 and (interface := network.interface_towards(task.hosts[0])) is not None:
        # gloo would use the interface of this host's own name, which may not be reachable.
        found["GLOO_SOCKET_IFNAME"] = interface
    return environ.export({name: value for name, value in found.items() if environ.get(name) is None})


def _join_by_environ(topology: Topology, backend: str, timeout: timedelta) -> torch.device:
    missing = environ.missing_for_join()
    rank, world_size = environ.rank(), environ.world_size()
    if rank is not None and world_size is not None and rank >= world_size:
        raise ContextError(f"RANK={rank} is outside WORLD_SIZE={world_size}")
    device = device_of(backend == "nccl")
    bound = device if device.type == "cuda" else None
    if missing and topology.world_size == 1:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=timeout, device_id=bound)
    elif missing:
        raise ContextError(
            f"{', '.join(missing)} not set: a world of {topology.world_size} ranks is started by mimo-launch, torchrun or srun"
        )
    else:
        dist.init_process_group(backend, timeout=timeout, device_id=bound)
    return device


_contexts: "weakref.WeakKeyDictionary[dist.ProcessGroup, itertools.count[int]]" = weakref.WeakKeyDictionary()
"""Numbers for the contexts of each world, which all its ranks create in the same order."""
_with_old_messages: "weakref.WeakSet[dist.ProcessGroup]" = weakref.WeakSet()
"""Worlds in which messages of an earlier context may be left."""


def connect_peers(rank: int, timeout: timedelta) -> Links:
    """Listen for other ranks' frames, and publish the address in the world's store.

    Raises:
        BridgeError: this host does not have the address at which others reach it.
        HostError: the name of the job's first host cannot be resolved.
    """
    world = dist.group.WORLD
    assert world is not None
    if dist.get_world_size() == 1 or dist.get_backend() == "fake":
        return NoPeerLinks(rank)
    number = next(_contexts.setdefault(world, itertools.count()))
    store: Store = world.get_group_store()
    return PeerLinks(rank, store, address=_own_address(), series=number, timeout_s=timeout.total_seconds())


def keep_contexts_out(world: dist.ProcessGroup) -> None:
    """Let no further context begin in this world, in which messages may be left that a new one would receive."""
    _with_old_messages.add(world)


def _own_address() -> str:
    """The address at which other ranks reach this host: that of gloo's interface, otherwise the one towards the first host."""
    if (name := environ.get("GLOO_SOCKET_IFNAME")) and (address := network.address_of(name.partition(",")[0])) is not None:
        return address
    host = environ.get("MASTER_ADDR") or socket.gethostname()
    for address in network.addresses_of(host):
        own = address if network.is_local(address) else network.address_towards(address)
        if own is not None and (environ.is_on_one_host() or not network.is_loopback(own)):
            return own
    # On the first host its own name may resolve to the loopback interface, by Debian's /etc/hosts.
    return next(filter(None, map(network.address_of, network.interfaces())), "127.0.0.1")


def device_of(on_gpu: bool) -> torch.device:
    """The CPU, or this rank's GPU: that of an existing world, the one that the script has set, or the one of `LOCAL_RANK`.

    If a launcher shows each process its own GPU only, as srun can, it is that one.

    Raises:
        ContextError: there is no such GPU.
    """
    if not on_gpu:
        return torch.device("cpu")
    device = _chosen_gpu() or _gpu_of_local_rank()
    torch.cuda.set_device(device)
    return device


def _chosen_gpu() -> torch.device | None:
    world = dist.group.WORLD
    if world is not None and world.bound_device_id is not None:
        return world.bound_device_id
    current = torch.cuda.current_device() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    # Device 0 is also the current one of a script that has only asked for its name.
    return torch.device("cuda", current) if current or (current == 0 and world is not None) else None


def _gpu_of_local_rank() -> torch.device:
    local_rank, visible = environ.local_rank(), torch.cuda.device_count()
    if local_rank < visible:
        return torch.device("cuda", local_rank)
    if visible == 1:
        return torch.device("cuda", 0)
    raise ContextError(f"LOCAL_RANK={local_rank} on {socket.gethostname()}, where torch sees {visible} GPUs")


def check_same_topology(topology: Topology, options: Mapping[str, GroupOptions], device: torch.device) -> None:
    """Compare digests by one all-reduce; gather the details only if they differ.

    Raises:
        ContextError: an earlier context in this process group may have left messages.
        TopologyMismatchError: ranks have different topologies or group options.
    """
    plain = {name: own.as_dict() for name, own in options.items() if own != GroupOptions()}
    groups_digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
    digest = hashlib.sha256(f"{topology.digest} {groups_digest}".encode()).hexdigest()
    words = [int(digest[at : at + 8], 16) for at in range(0, 64, 8)]
    is_clean = dist.group.WORLD not in _with_old_messages
    lowest = torch.tensor([is_clean, *words, *(-word for word in words)], dtype=torch.int64, device=device)
    dist.all_reduce(lowest, op=dist.ReduceOp.MIN)
    lowest = lowest.cpu()
    if not lowest[0]:
        raise ContextError(
            "an earlier context in this process group ended before all messages of its bridges were received, and a new one "
            "could receive what is left. Call torch.distributed.destroy_process_group() before mimo_role.init()"
        )
    low, high = lowest[1:].chunk(2)
    if torch.equal(low, -high):
        return
    everyone: list[tuple[str, str, str]] = [("", "", "")] * dist.get_world_size()
    dist.all_gather_object(everyone, (topology.digest, groups_digest, socket.gethostname()))
    what, at = ("topologies", 0) if len({found[0] for found in everyone}) > 1 else ("group options", 1)
    raise TopologyMismatchError(_describe_mismatch(what, [(found[at], found[2]) for found in everyone]))


def _describe_mismatch(what: str, everyone: list[tuple[str, str]]) -> str:
    holders: dict[str, list[int]] = defaultdict(list)
    for rank, (digest, _) in enumerate(everyone):
        holders[digest].append(rank)
    usual = max(holders, key=lambda digest: (len(holders[digest]), -holders[digest][0]))
    odd = [
        f"rank {rank} on {everyone[rank][1]} holds {digest[:12]}"
        for digest, ranks in holders.items()
        if digest != usual
        for rank in ranks
    ]
    shown = odd[:16] + ([f"and {len(odd) - 16} more"] if len(odd) > 16 else [])
    return (
        f"ranks hold different {what}: {len(holders[usual])} of {len(everyone)} hold {usual[:12]}, but "
        f"{', '.join(shown)}. Start all of them from the same config"
    )
