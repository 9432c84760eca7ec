"""The context of one rank: its role, its groups and its bridges."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from mimo_role.bridge.bridge import Bridge
from mimo_role.bridge.registry import BridgeRegistry
from mimo_role.errors import AxisError
from mimo_role.groups.creation import new_group_of
from mimo_role.groups.families import EMBEDDING, expert_grid_of
from mimo_role.groups.meshes import Dimension, dimensions_of, mesh_over
from mimo_role.groups.options import GroupOptions
from mimo_role.groups.process_groups import ProcessGroups
from mimo_role.megatron.hyper_comm_grid import HyperCommGrid
from mimo_role.megatron.interfaces import MegatronInterfaces
from mimo_role.monitoring.heartbeat import Heartbeat
from mimo_role.monitoring.recorder import Recorder
from mimo_role.monitoring.script_records import ScriptSpan, log_scalars
from mimo_role.preemption.agreement import PreemptionAgreement
from mimo_role.resharding.samples import TokenSplit
from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY, RankRole
from mimo_role.topology.grid import RankGrid
from mimo_role.topology.lanes import Lane, lane_of
from mimo_role.topology.topology import Topology
from mimo_role.training.gradient_norm import GradientClipper
from mimo_role.training.gradient_sums import GradientSummer
from mimo_role.training.operations import TrainingOperations
from mimo_role.training.replica_check import ReplicaCheck


class RoleContext(MegatronInterfaces, TrainingOperations):
    """What this process runs, its coordinates, and its groups and bridges. `init()` makes it, `current()` returns it."""

    def __init__(
        self,
        topology: Topology,
        rank: int,
        device: torch.device,
        options: Mapping[str, GroupOptions],
        *,
        groups: ProcessGroups,
        bridges: BridgeRegistry,
        agreement: PreemptionAgreement,
        heartbeat: Heartbeat,
        recorder: Recorder,
        run_dir: Path | None = None,
    ) -> None:
        self.topology = topology
        self.rank = rank
        self.device = device
        """Where this process's tensors live."""
        self.role: RankRole = topology.role_of(rank)
        self.heartbeat = heartbeat
        """Reports this rank's progress to mimo-launch; scripts call `step()`."""
        self.recorder = recorder
        """Records what this rank does; scripts call `span()`, `log()` and `step()`."""
        self.run_dir = run_dir
        """The run directory, the same on all ranks; `None` outside mimo-launch."""
        self._options = dict(options)
        self._groups = groups
        self._bridges = bridges
        self._agreement = agreement
        self._meshes: dict[tuple[str, tuple[tuple[str, ...], ...]], DeviceMesh] = {}
        self._closing: list[Callable[[], None]] = []
        self._clipper = GradientClipper(topology, rank, device, self._own_grid)
        self._summer = GradientSummer(topology, rank, device, self._own_grid, self.group)
        self._replicas = ReplicaCheck(topology, rank, device, self._own_grid, self.group)
        self._grids = {
            name: HyperCommGrid.over(grid, expert_grid_of(topology, name), groups, partial(groups.communicator, name))
            for name, grid in topology.grids.items()
        }

    @property
    def world_size(self) -> int:
        """The number of ranks of all modules together."""
        return self.topology.world_size

    @property
    def name(self) -> str:
        """This rank's modules, each with its coordinates along axes longer than one: `language.pp1.tp0`."""
        return self.topology.label_of(self.rank)

    @property
    def is_logging_rank(self) -> bool:
        """True on one rank of the world, which has a loss: the first of the language model's last stage, or of a decoder's."""
        ends = self.topology.module_graph.ends
        grid = self.topology.grids[MIMO_LANGUAGE_MODULE_KEY if MIMO_LANGUAGE_MODULE_KEY in ends else ends[0]]
        return self.rank == grid.rank_at({"pp": grid.axis_size("pp") - 1})

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

    def lane(self, module: str) -> Lane:
        """This rank's lane of a module that it runs, and the number of lanes: `lane, lanes = ctx.lane("language")`.

        Ranks of one lane have the same samples. Lanes lie along `dp`, and along `gtp_remat` where the module has it.

        Raises:
            AxisError: there is no such module, or this rank does not run it.
        """
        return lane_of(self._own_grid(module), self.rank)

    def group(self, module: str, *axes: str) -> dist.ProcessGroup:
        """The ranks that differ from this one only along `axes` of a module that it runs.

        Axes that the module has only where they are longer than one, such as `gtp_remat`, count as axes of size one. By name:
        `"dp_cp_ag"` and `"expt_dp_ag"`, second groups along `dp` and `cp`, and along `expt_dp`, that `families: megatron`
        creates, and `"embd"`, this rank's counterparts on the module's first and last stages, which hold tied embeddings; on a
        rank of another stage, a group of that rank only.

        Raises:
            AxisError: there is no such module, axis or group, or this rank does not run the module.
        """
        self._own_grid(module)
        if axes == (EMBEDDING,):
            return self._groups.get_ends(module)
        return self._groups.get(module, axes)

    def new_group(self, ranks: Sequence[int], **settings: Any) -> dist.ProcessGroup | None:
        """Create a process group of some ranks, by a call on these ranks only.

        `torch.distributed.new_group` is collective over the world; under NCCL even with `use_local_synchronization`, since
        torch splits the world's communicator where the world is bound to devices, as mimo-launch binds it.

        Args:
            ranks: of the world. Their order does not matter.
            settings: `timeout`, `backend`, `pg_options` and `group_desc`, as `torch.distributed.new_group` takes them.

        Returns:
            The group; `None` on a rank that is not in it, where a call does nothing.
        """
        return new_group_of(ranks, **settings)

    def mesh(self, module: str, *axes: Dimension) -> DeviceMesh:
        """The module's ranks as a DeviceMesh over the same groups, slowest axis first: `("pp", "dp", "cp", "tp")`.

        With axes, a mesh of one dimension over all of them together: `ctx.mesh("language", "dp", "cp")` has the dimension
        `dp_cp`. With a tuple among them, each argument is one dimension: `ctx.mesh("language", ("dp", "cp"), "tp")` has `dp_cp`
        and `tp`, of which FSDP2 takes the first and tensor parallelism the second. No group is created, other than by
        `mesh["dp", "cp"]._flatten()`, whose group has a name on which the ranks of other modules disagree.

        Returns:
            The mesh; the same object for the same arguments. In a dimension ranks ascend, whatever the order of its axes.

        Raises:
            AxisError: there is no such module, axis or group, an axis is used twice, or this rank does not run the module.
        """
        self._own_grid(module)
        dimensions = dimensions_of(self.topology, module, axes)
        if (module, dimensions) not in self._meshes:
            self._meshes[module, dimensions] = mesh_over(
                self.topology, module, self.rank, dimensions, self.group, self.device.type
            )
        return self._meshes[module, dimensions]

    def bridge(
        self,
        module: str,
        *,
        stage: int | None = None,
        to: str | None = None,
        to_stage: int = 0,
        tensor: int = 0,
        source: TokenSplit | None = None,
        destination: TokenSplit | None = None,
    ) -> Bridge:
        """The bridge from a module's last stage to a module that takes its output, such as the language module.

        Args:
            module: where it begins.
            stage: for the bridge from that stage of `module` to its next.
            to: where it ends; needed if several modules take the output.
            to_stage: the pipeline stage of that module that receives. Under NCCL, the first call for a later stage than the
                first creates communicators: all ranks of both stages make such bridges, in the same order.
            tensor: the number of a tensor, where several cross between the same stages: each has a bridge of its own, and
                `cross_together` transfers them at once.
            source: how the sending side's ranks divide the tokens of a sample, if not as `TokenSplit()`. Between stages of one
                module both sides are the same, and the first one passed is used. Pass it once, on all ranks alike.
            destination: the same for the receiving side.

        Raises:
            AxisError: there is no such module.
            BridgeError: there is no such bridge, or it was made with other splits.
        """
        return self._bridges.get(self._bridges.link_of(module, stage, to, to_stage), tensor, source, destination)

    def span(self, name: str) -> ScriptSpan:
        """A named span in traces: `with ctx.span("data"): ...`, or `@ctx.span("data")` on a function.

        `mimo-launch trace` shows it, and `torch.profiler`. It takes less than 20 microseconds. On a CUDA device it has two
        durations, that of the host and that of what the host has queued meanwhile; nothing is synchronized.
        """
        return ScriptSpan(self.recorder, name)

    def log(self, **values: float | torch.Tensor) -> None:
        """Record numbers of this rank and step, such as `ctx.log(loss=loss, tokens=tokens)`: `mimo-launch trace` shows them.

        It does not communicate, so that ranks may record what they like; nothing is summed or averaged over ranks. Readers add
        up `tokens` and `samples` over the ranks that record them: one of each lane, or one of the world.

        Args:
            values: numbers, or real tensors of no dimensions. A tensor on a CUDA device is copied without a synchronization.

        Raises:
            RecordingError: a value that is neither.
        """
        log_scalars(self.recorder, values)

    def step(self, number: int | None = None, *, of: int | None = None) -> None:
        """Report the start of a training step. Numbers increase.

        It takes a few microseconds and does not communicate. mimo-launch uses it to detect hangs (`runtime.stall_timeout_s`),
        to decide whether a restart made progress, to report the step of a failure, and in traces. `Schedule1F1B.step` calls it
        if the script does not.

        Args:
            number: of the step; default: the next one.
            of: the number of the last step that the script will do, from which the time that is left is computed.
        """
        self.heartbeat.step(number)
        self.recorder.begin_step(self.heartbeat.last_step, of or 0)

    def seconds_left(self) -> float | None:
        """Seconds until the job is terminated, if any rank has received a preemption notice; otherwise `None`.

        Call it once per step on all ranks: it is collective over the world. All ranks get a number at the same step, at most
        one step after the notice. From the first call on, SIGTERM and SIGUSR1 no longer end the process. A script that has
        saved a checkpoint exits with `mimo_role.REQUEUE_EXIT_CODE` to be requeued. An unknown time is returned as 0.0.
        """
        self.heartbeat.beat()
        return self._agreement.seconds_left()

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

    def _before_close(self, finish: Callable[[], None]) -> None:
        """Have `shutdown()` call this first, on the ranks that have asked for it."""
        self._closing.append(finish)

    def _close(self) -> None:
        """Leave the job together with the peers, and destroy bridges and groups. Called by `shutdown()`."""
        try:
            for finish in self._closing:
                finish()
        finally:
            self._leave()

    def _leave(self) -> None:
        try:
            self._agreement.close()
            self._bridges.leave()
        finally:
            self._bridges.close()
            self._groups.destroy()
