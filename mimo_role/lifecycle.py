"""Joining and leaving a job: `init()`, `current()` and `shutdown()`."""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from mimo_role.bridge.batch_ledger import BatchLedger
from mimo_role.bridge.batch_ledger import share as share_ledger
from mimo_role.bridge.nccl_channels import NcclChannels
from mimo_role.bridge.registry import BridgeRegistry
from mimo_role.context import RoleContext
from mimo_role.errors import ContextError
from mimo_role.groups.creation import uses_nccl
from mimo_role.groups.options import GroupOptions
from mimo_role.groups.process_groups import ProcessGroups
from mimo_role.groups.process_groups import share as share_groups
from mimo_role.groups.rounds import schedule
from mimo_role.host import environ, node_dir
from mimo_role.joining import check_same_topology, connect_peers, device_of, join, keep_contexts_out
from mimo_role.monitoring.collective_waits import CollectiveWaits
from mimo_role.monitoring.device_clock import DeviceClock
from mimo_role.monitoring.diagnostics import enable_diagnostics
from mimo_role.monitoring.heartbeat import Heartbeat, recorded_joining
from mimo_role.monitoring.peak_memory import PeakMemory
from mimo_role.monitoring.recorder import Recorder
from mimo_role.monitoring.ring import Ring
from mimo_role.monitoring.torch_groups import keep_in_forked_children
from mimo_role.preemption.agreement import PreemptionAgreement
from mimo_role.preemption.notice import shield_fork_server
from mimo_role.rank_environ import RankEnviron
from mimo_role.topology.topology import Topology

DEFAULT_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class _Session:
    """The time between `init()` and `shutdown()`."""

    context: RoleContext
    ledger: BatchLedger
    world: "weakref.ref[dist.ProcessGroup]"
    """Weak: a process group that the script destroys must close its connections."""
    owns_world: bool
    """Whether `init()` joined the process group."""
    exported: list[str]
    """Environment variables that `init()` has set."""


_session: _Session | None = None


@recorded_joining()
def init(
    topology: Topology | None = None,
    *,
    backend: str | None = None,
    timeout_s: float | None = None,
    groups: Mapping[str, GroupOptions] | None = None,
) -> RoleContext:
    """Join the job, check that all ranks have the same topology, create the groups and export the environment.

    Collective over the world. A process group that exists is used as it is; otherwise this joins by torch's `env://` (a world
    of one rank needs no launcher).

    Args:
        topology: by default the one in the environment, which mimo-launch sets.
        backend: `nccl`, `gloo` or `auto` (NCCL if torch finds a GPU). Default: the config's, else `auto`.
        timeout_s: for joining and for each collective. Default: the config's, else 600.
        groups: which process groups each module gets, and how. Default: the config's, else those of `GroupOptions()`.

    Raises:
        ContextError: already initialized; no topology; not startable from this environment; a world of another size; or an
            earlier context in this process group may have left messages.
        TopologyError: `groups` names a module or an axis that does not exist.
        TopologyMismatchError: ranks have different topologies or group options; the deviating ranks and their hosts are named.
        EnvironError: a malformed variable.
    """
    global _session
    if _session is not None:
        raise ContextError(
            "this process has its context already; use mimo_role.current(). mimo-launch joins before the script starts, "
            "unless the config says runtime.join: script"
        )
    topology, found = _find_topology(topology)
    backend = backend or (found.backend if found else None) or "auto"
    timeout_s = timeout_s or (found.timeout_s if found else None) or DEFAULT_TIMEOUT_S
    timeout = timedelta(seconds=timeout_s)
    options = dict(groups) if groups is not None else dict(found.groups) if found else {}
    schedule(topology, options)  # refuses unknown modules and axes before anything is joined
    owns_world = not dist.is_initialized()
    device = join(topology, backend, timeout) if owns_world else device_of(uses_nccl() and torch.cuda.is_available())
    keep_in_forked_children()
    shield_fork_server()
    own_groups = None
    try:
        check_same_topology(topology, options, device)
        if dist.get_world_size() != topology.world_size:
            raise ContextError(f"the job has {dist.get_world_size()} ranks, but the topology has {topology.world_size}")
        monitors = _monitor(dist.get_rank(), device, found)
        own_groups = ProcessGroups(topology, dist.get_rank(), timeout, options)
        run_dir = Path(found.run_dir) if found and found.run_dir else None
        context, ledger = _make_context(topology, device, timeout, options, own_groups, monitors, run_dir)
        # A rank that went on and exited would break the connections of those that are still creating their groups.
        dist.barrier(device_ids=[device.index] if device.type == "cuda" else None)
    except BaseException:
        if owns_world:
            dist.destroy_process_group()
        elif own_groups is not None:
            own_groups.destroy()
        raise
    share_groups(own_groups)
    share_ledger(ledger)
    contract = _contract(topology, context.rank, backend, timeout_s, options, found)
    ranks = {"RANK": str(context.rank), "WORLD_SIZE": str(context.world_size)}
    world = dist.group.WORLD
    assert world is not None
    _session = _Session(context, ledger, weakref.ref(world), owns_world, environ.export(ranks | contract.to_environ()))
    if device.type == "cpu" and context.recorder.is_on:  # on a GPU the host does not wait
        waits = CollectiveWaits(context.recorder)
        waits.install()
        context._before_close(waits.remove)
    return context


def current() -> RoleContext:
    """This process's context.

    Raises:
        ContextError: there is none yet.
    """
    if _session is None and environ.is_set():
        raise ContextError(
            "no context yet: with runtime.join: script the script calls mimo_role.init() first, without arguments"
        )
    if _session is None:
        raise ContextError(
            "no context yet: start the script with mimo-launch (which joins before the script unless the config says "
            "runtime.join: script), or call mimo_role.init(topology)"
        )
    return _session.context


def shutdown() -> None:
    """Destroy the groups, and leave the job if `init()` joined it. It does nothing if there is no context.

    If the script has joined by itself, and messages of bridges were not received, as after an error, no `init()` succeeds until
    the script has destroyed the process group.
    """
    global _session
    if _session is None:
        return
    session, _session = _session, None
    environ.withdraw(session.exported)
    share_groups(None)
    share_ledger(None)
    if dist.is_initialized():
        try:
            session.context._close()
        finally:
            if not session.ledger.is_settled and (world := session.world()) is not None:
                keep_contexts_out(world)
            if session.owns_world:
                dist.destroy_process_group()


def _make_context(
    topology: Topology,
    device: torch.device,
    timeout: timedelta,
    options: Mapping[str, GroupOptions],
    groups: ProcessGroups,
    monitors: tuple[PreemptionAgreement, Heartbeat, Recorder],
    run_dir: Path | None,
) -> tuple[RoleContext, BatchLedger]:
    rank = dist.get_rank()
    agreement, heartbeat, recorder = monitors
    channels = NcclChannels(topology, rank, device, timeout=timeout, options=options)
    ledger = BatchLedger(connect_peers(rank, timeout), timeout.total_seconds(), tags=channels.tags)
    bridges = BridgeRegistry(topology, rank, device, channels=channels, ledger=ledger, step=lambda: heartbeat.script_step)
    context = RoleContext(
        topology,
        rank,
        device,
        options,
        groups=groups,
        bridges=bridges,
        agreement=agreement,
        heartbeat=heartbeat,
        recorder=recorder,
        run_dir=run_dir,
    )
    return context, ledger


def _monitor(rank: int, device: torch.device, found: RankEnviron | None) -> tuple[PreemptionAgreement, Heartbeat, Recorder]:
    """What connects this rank with its agent. Without an agent, all objects do nothing."""
    times = (found.grace_s, found.warning_s) if found else (None, None)
    directory = environ.node_dir()
    if directory is None:
        return PreemptionAgreement(device, *times, None), Heartbeat(None), Recorder(None)
    enable_diagnostics(directory, rank)
    agreement = PreemptionAgreement(device, *times, node_dir.notice_file(directory))
    ring = Ring.create(node_dir.recording_file(directory, rank), rank, environ.local_world_size())
    if device.type == "cuda":
        recorder = Recorder(ring, DeviceClock.of_cuda(), PeakMemory.of_cuda())
    else:
        recorder = Recorder(ring, None, PeakMemory.of_process())
    return agreement, Heartbeat(node_dir.heartbeat_file(directory, rank)), recorder


def _contract(
    topology: Topology,
    rank: int,
    backend: str,
    timeout_s: float,
    options: Mapping[str, GroupOptions],
    found: RankEnviron | None,
) -> RankEnviron:
    return RankEnviron(
        topology=topology,
        rank=rank,
        run_dir=found.run_dir if found else None,
        run_id=found.run_id if found else None,
        backend=backend,
        timeout_s=timeout_s,
        groups=options,
        restart_count=found.restart_count if found else environ.slurm_restarts() + environ.elastic_restarts(),
        node=found.node if found else None,
        grace_s=found.grace_s if found else None,
        warning_s=found.warning_s if found else None,
    )


def _find_topology(topology: Topology | None) -> tuple[Topology, RankEnviron | None]:
    found = RankEnviron.from_environ() if environ.is_set() else None
    if topology is None:
        if found is None:
            raise ContextError(
                "no topology: pass one, mimo_role.init(Topology.from_modules({...})), or start under mimo-launch"
            )
        return found.topology, found
    if found is not None and found.topology != topology:
        raise ContextError(
            f"the topology passed ({topology.digest[:12]}) is not the one that mimo-launch planned "
            f"({found.topology.digest[:12]}); call mimo_role.init() without one"
        )
    return topology, found
