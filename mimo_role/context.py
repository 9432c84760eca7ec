"""One process's place in a running job: `init()`, `current()`, `shutdown()` and what they give."""

import logging
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from mimo_role.bridge.batch_ledger import BatchLedger
from mimo_role.bridge.batch_ledger import share as share_ledger
from mimo_role.bridge.bridge import Bridge
from mimo_role.bridge.nccl_channels import WayGroups
from mimo_role.errors import AxisError, BridgeError, ContextError
from mimo_role.groups.families import EMBEDDING, GroupOptions, expert_grid_of
from mimo_role.groups.process_groups import Groups, share, uses_nccl
from mimo_role.groups.rounds import schedule
from mimo_role.host import environ
from mimo_role.joining import check_same_topology, connect_peers, device_of, join
from mimo_role.megatron.hyper_comm_grid import HyperCommGrid
from mimo_role.monitoring.diagnostics import be_watched
from mimo_role.monitoring.heartbeat import Heartbeat, beat_file
from mimo_role.preemption.agreement import EndAgreement
from mimo_role.preemption.notice import NOTICE
from mimo_role.rank_environ import RankEnviron
from mimo_role.resharding.samples import Endpoint, TokenSplit
from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY, RankRole
from mimo_role.topology.grid import RankGrid
from mimo_role.topology.topology import Topology
from mimo_role.training.gradients import GradientClipper
from mimo_role.training.losses import mean_loss, token_count
from mimo_role.training.random_streams import RandomStreams
from mimo_role.training.seeding import DIFFERENT_OVER

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT_S = 600.0

_current: "RoleContext | None" = None


class RoleContext:
    """What this process runs, where it stands, and its groups. Made by `init()`, found by `current()`."""

    def __init__(
        self,
        topology: Topology,
        rank: int,
        device: torch.device,
        timeout: timedelta,
        options: Mapping[str, GroupOptions],
        *,
        owns_world: bool,
        agreement: EndAgreement,
        heartbeat: Heartbeat,
    ) -> None:
        self.topology = topology
        self.rank = rank
        self.device = device
        """Where this process's tensors live."""
        self.role: RankRole = topology.role_of(rank)
        self._owns_world = owns_world
        self._agreement = agreement
        self.heartbeat = heartbeat
        """By which mimo-launch sees that this rank makes progress; scripts call `step()`."""
        self._exported: list[str] = []
        self._bridges: dict[tuple[str, int | None], Bridge] = {}
        self._meshes: dict[str, DeviceMesh] = {}
        self._options = dict(options)
        self._groups = Groups(topology, rank, timeout, options)
        self._ways = WayGroups(topology, rank, device)
        self._ledger = BatchLedger(connect_peers(rank, timeout), timeout.total_seconds())
        self._clipper = GradientClipper(topology, rank, device, self._own_grid)
        self._grids = {
            name: HyperCommGrid.over(grid, expert_grid_of(topology, name), self._groups, self._groups.communicator(name))
            for name, grid in topology.grids.items()
        }

    @property
    def world_size(self) -> int:
        """The number of ranks of all modules together."""
        return self.topology.world_size

    @property
    def module_to_grid_map(self) -> Mapping[str, HyperCommGrid]:
        """Every module's grid with this context's groups, in the config's order."""
        return MappingProxyType(self._grids)

    def coords(self, module: str) -> dict[str, int]:
        """This rank's coordinates in a module that it runs: `{"tp": 0, "cp": 0, "dp": 1, "pp": 0}`.

        Raises:
            AxisError: there is no such module, or this rank does not run it.
        """
        return self._own_grid(module).coords(self.rank)

    def group(self, module: str, *axes: str) -> dist.ProcessGroup:
        """The ranks that differ from this one only along `axes` of a module that it runs.

        `"embd"` instead of axes: its counterparts on the module's first and last stages, which hold tied embeddings; for a rank
        between them a group of itself alone.

        Raises:
            AxisError: there is no such module, axis or group, or this rank does not run the module.
        """
        self._own_grid(module)
        if axes == (EMBEDDING,):
            return self._groups.get_ends(module)
        return self._groups.get(module, axes)

    def mesh(self, module: str, *axes: str) -> DeviceMesh:
        """The module's ranks as a DeviceMesh over the same groups, slowest axis first: `("pp", "dp", "cp", "tp")`.

        With `axes`, a mesh of one dimension over all of them together, named `dp_cp`: what `mesh["dp", "cp"]._flatten()` would
        be, which makes a group by a name on which other modules' ranks disagree.

        Raises:
            AxisError: there is no such module, axis or group, or this rank does not run the module.
        """
        grid = self._own_grid(module)
        if axes:
            return DeviceMesh.from_group(self.group(module, *axes), self.device.type, mesh_dim_names=("_".join(axes),))
        if module not in self._meshes:
            axes = tuple(reversed(grid.dim_names))
            ranks = torch.arange(grid.ranks.start, grid.ranks.stop).reshape([grid.axis_size(axis) for axis in axes])
            groups = [self.group(module, axis) for axis in axes]
            self._meshes[module] = DeviceMesh.from_group(groups, self.device.type, mesh=ranks, mesh_dim_names=axes)
        return self._meshes[module]

    def megatron_grid_map(self) -> dict[str, Any]:
        """Every module's grid as Megatron-Core's own `HyperCommGrid`, filled with this context's groups; none is made.

        The groups stay this context's: leave the grids' `destroy()`, where Megatron-Core has one, to `shutdown()`.

        Raises:
            ContextError: Megatron-Core is not installed.
        """
        from mimo_role.megatron import adapters

        return adapters.grid_map(self.topology, self._options, self.rank, self.group)

    def megatron_process_groups(self, module: str) -> Any:
        """A module's groups as Megatron-Core's `ProcessGroupCollection`; none is made.

        The language module's embedding groups need `groups: {families: megatron}` where it has more than two stages.

        Raises:
            AxisError: there is no such module, this rank does not run it, or its options leave out a group that is needed.
            ContextError: Megatron-Core is not installed.
        """
        from mimo_role.megatron import adapters

        self._own_grid(module)
        return adapters.process_groups(self.topology, module, self.rank, self.group, self._groups.get_ends)

    def bridge(
        self,
        module: str,
        *,
        stage: int | None = None,
        source: TokenSplit | None = None,
        destination: TokenSplit | None = None,
    ) -> Bridge:
        """The bridge from a modality module's last stage to the language module's first.

        Args:
            module: where it begins.
            stage: for the bridge from that stage of `module` to its next.
            source, destination: how each side's ranks divide the tokens of a sample, if not as `TokenSplit()`. Between stages
                of one module the two are the same, and the first one given holds. Said once, all ranks alike.

        Raises:
            AxisError: there is no such module.
            BridgeError: there is no such bridge, or it has been made with other splits.
        """
        if (module, stage) not in self._bridges:
            ends = self._endpoints(module, stage, source, destination)
            before = sum(grid.axis_size("pp") for grid in self._grids_before(module))
            number = before if stage is None else before + 1 + stage
            ways = self._ways.of(module, between_stages=stage is not None)
            self._bridges[module, stage] = Bridge(
                *ends, self.rank, self.device, number, ways=ways, ledger=self._ledger, step=self._step_number
            )
        bridge = self._bridges[module, stage]
        for asked, end in ((source, bridge.source), (destination, bridge.destination)):
            if asked is not None and asked != end.split:
                raise BridgeError(f"{bridge} has {end.split} at {end.module} stage {end.stage}; it cannot become {asked}")
        return bridge

    def clip_grad_norm_(
        self,
        modules: Mapping[str, nn.Module] | nn.ModuleDict,
        max_norm: float,
        norm_type: float = 2.0,
        *,
        error_if_nonfinite: bool = False,
    ) -> torch.Tensor:
        """Scale all gradients so that their norm over all modules and ranks is at most `max_norm`.

        Collective over the world, once gradients have been summed over their module's lanes. Each parameter is counted once,
        whichever ranks hold copies or parts of it (docs/numbers.md). If any gradient is not finite, all gradients on all ranks
        are set to `None`, so that no optimizer updates anything, and a warning is logged.

        Args:
            modules: what this rank holds of the modules of its role, by their names. Partial DTensor gradients are reduced.
            max_norm: as in `torch.nn.utils.clip_grad_norm_`; `math.inf` only computes the norm.
            norm_type: the p of the p-norm, above 0; `math.inf` for the largest element.
            error_if_nonfinite: raise instead, on all ranks.

        Returns:
            The norm before the scaling, float64, the same bits on all ranks; infinite if any gradient is not finite.

        Raises:
            AxisError: there is no such module, or this rank does not run it.
            GradientError: an argument or gradient that cannot be used, on this rank or on another one.
        """
        return self._clipper.clip(modules, max_norm, norm_type, error_if_nonfinite=error_if_nonfinite)

    def token_count(self, tokens: int | torch.Tensor) -> torch.Tensor:
        """How many tokens all lanes and context-parallel ranks of the language model hold together, int64.

        Collective over this rank's dp and cp row of the language model; the ranks that compute the loss call it before they do.

        Args:
            tokens: how many this rank holds of the whole step's, all micro-batches together.

        Raises:
            AxisError: this rank does not run the language model.
        """
        return token_count(tokens, self.group(MIMO_LANGUAGE_MODULE_KEY, "dp", "cp"), self.device)

    def mean_loss(self, losses: Sequence[torch.Tensor], tokens: int | torch.Tensor | None = None) -> torch.Tensor:
        """The loss of the whole batch, to be logged. Collective over the world.

        Args:
            losses: of this rank's micro-batches, as `Schedule1F1B.step` returns them; read on the language model's last stage
                only. With `tokens` they are sums over tokens, without they have been divided by `token_count`.
            tokens: how many this rank's losses are the sum of. All ranks of that stage give it, or none does.

        Returns:
            The mean over all lanes' and context-parallel ranks' tokens, float64, the same on all ranks of the world; NaN if
            `tokens` are 0 in all.
        """
        name = MIMO_LANGUAGE_MODULE_KEY
        is_counted = self.role.is_last_stage(name) and self.coords(name)["tp"] == 0
        return mean_loss(losses, tokens, self.device, is_counted=is_counted)

    def step(self, number: int | None = None) -> None:
        """Say that this rank has come to a training step: the next one, or the one with this number, which grows.

        It takes a microsecond and talks to nobody. mimo-launch sees by it that the job makes progress, for
        `runtime.stall_timeout_s`, whether a restart has helped, and at which step a rank failed. `Schedule1F1B.step` says it
        too, where the script does not.
        """
        self.heartbeat.step(number)

    def seed_everything(self, seed: int, *, different_over: Collection[str] = DIFFERENT_OVER) -> RandomStreams:
        """Seed `random`, NumPy and torch, on the CPU and on GPUs; no rank talks to another.

        What they draw is equal over the axes that are not named, and different over those that are and over modules. A rank
        with several modules draws for one at a time, `with streams.fork("vision")`; see `RandomStreams` and docs/numbers.md.

        Args:
            seed: any whole number, the same on all ranks.
            different_over: `("dp", "pp")` gives each lane and stage dropout masks of its own; with `("pp",)` replicas of a
                module also start with the same weights.

        Raises:
            AxisError: a module of this rank has no such axis.
        """
        return RandomStreams(seed, self.topology, self.rank, self.device, different_over)

    def seconds_left(self) -> float | None:
        """How long the job will go on, if a scheduler or user has announced its end to any rank; else `None`.

        Call it once per step on all ranks; collective over the world, and all get a number at the same step, at most one step
        after a rank has heard. From the first call on, SIGTERM and SIGUSR1 no longer end the process. A script that has saved
        ends with `mimo_role.REQUEUE_EXIT_CODE` to be started again. 0.0 also stands for a time that nobody knows.
        """
        self.heartbeat.beat()
        return self._agreement.seconds_left()

    def _step_number(self) -> int:
        """The step that the script has come to; -1 if it does not say."""
        return -1 if self.heartbeat.script_step is None else self.heartbeat.script_step

    def _endpoints(
        self, module: str, stage: int | None, source: TokenSplit | None, destination: TokenSplit | None
    ) -> tuple[Endpoint, Endpoint]:
        grid = self._grid(module)
        last = grid.axis_size("pp") - 1
        if stage is not None:
            if not 0 <= stage < last:
                raise BridgeError(f"module {module!r} has {last + 1} stages; no stage follows stage {stage}")
            split = source or destination or TokenSplit()
            return Endpoint(module, grid, stage, split), Endpoint(module, grid, stage + 1, split)
        if module == MIMO_LANGUAGE_MODULE_KEY:
            raise BridgeError("a bridge ends at the language module; name a modality module, or a stage")
        language = Endpoint(MIMO_LANGUAGE_MODULE_KEY, self._grid(MIMO_LANGUAGE_MODULE_KEY), 0, destination or TokenSplit())
        return Endpoint(module, grid, last, source or TokenSplit()), language

    def _grids_before(self, module: str) -> list[RankGrid]:
        names = list(self.topology.grids)
        return [self.topology.grids[name] for name in names[: names.index(module)]]

    def _grid(self, module: str) -> RankGrid:
        grid = self.topology.grids.get(module)
        if grid is None:
            raise AxisError(f"no module {module!r}; there are {', '.join(self.topology.grids)}")
        return grid

    def _own_grid(self, module: str) -> RankGrid:
        grid = self._grid(module)
        if module not in self.role.modules:
            raise AxisError(f"rank {self.rank} does not run {module!r}; it runs {', '.join(self.role.modules)}")
        return grid

    def _close(self) -> None:
        environ.withdraw(self._exported)
        share(None)
        share_ledger(None)
        if dist.is_initialized():
            try:
                self._agreement.close()
                self._ledger.leave()
            finally:
                self._ledger.close()
                self._ways.destroy()
                self._groups.destroy()
                if self._owns_world:
                    dist.destroy_process_group()


def init(
    topology: Topology | None = None,
    *,
    backend: str | None = None,
    timeout_s: float | None = None,
    groups: Mapping[str, GroupOptions] | None = None,
) -> RoleContext:
    """Join the job, check that all ranks hold the same topology, make the groups and export the environment.

    Collective over the world. A process group that is already there is used as it is; otherwise this joins by torch's
    `env://` (a world of one rank needs no launcher).

    Args:
        topology: by default the one in the environment, which mimo-launch sets.
        backend: `nccl`, `gloo` or `auto` (NCCL if torch sees a GPU). Default: the config's, else `auto`.
        timeout_s: for joining and for each collective. Default: the config's, else 600.
        groups: which process groups each module gets, and how. Default: the config's, else those of `GroupOptions()`.

    Raises:
        ContextError: already initialized; no topology; not startable from this environment; a world of another size.
        TopologyError: `groups` names a module or an axis that there is not.
        TopologyMismatchError: ranks hold different topologies or group options; the odd ones are named with their hosts.
        EnvironError: a malformed variable.
    """
    global _current
    if _current is not None:
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
    context = None
    try:
        check_same_topology(topology, options, device)
        if dist.get_world_size() != topology.world_size:
            raise ContextError(f"the job has {dist.get_world_size()} ranks, but the topology has {topology.world_size}")
        times = (found.grace_s, found.warning_s) if found else (None, None)
        watcher = environ.node_dir()
        agreement = EndAgreement(device, *times, watcher / NOTICE if watcher is not None else None)
        heartbeat = _watched_by(watcher, dist.get_rank())
        context = RoleContext(
            topology,
            dist.get_rank(),
            device,
            timeout,
            options,
            owns_world=owns_world,
            agreement=agreement,
            heartbeat=heartbeat,
        )
        # A rank that went on and ended would break the connections of those that still make their groups.
        dist.barrier(device_ids=[device.index] if device.type == "cuda" else None)
        _current = context
        share(context._groups)
        share_ledger(context._ledger)
    except BaseException:
        if owns_world:
            dist.destroy_process_group()
        elif context is not None:
            context._groups.destroy()
        raise
    contract = RankEnviron(
        topology=topology,
        rank=_current.rank,
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
    ranks = {"RANK": str(_current.rank), "WORLD_SIZE": str(_current.world_size)}
    _current._exported = environ.export(ranks | contract.to_environ())
    return _current


def _watched_by(folder: Path | None, rank: int) -> Heartbeat:
    if folder is None:
        return Heartbeat(None)
    be_watched(folder, rank)
    return Heartbeat(beat_file(folder, rank))


def current() -> RoleContext:
    """This process's context.

    Raises:
        ContextError: there is none yet.
    """
    if _current is None and environ.is_set():
        raise ContextError(
            "no context yet: with runtime.join: script the script calls mimo_role.init() first, without arguments"
        )
    if _current is None:
        raise ContextError(
            "no context yet: start the script with mimo-launch (which joins before the script unless the config says "
            "runtime.join: script), or call mimo_role.init(topology)"
        )
    return _current


def shutdown() -> None:
    """Free the groups, and leave the job if `init()` joined it. Does nothing where there is no context."""
    global _current
    if _current is not None:
        context, _current = _current, None
        context._close()


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
