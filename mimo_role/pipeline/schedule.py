"""A training step in micro-batches over all modules.

`timeline.py` computes the order. Within a module this replaces the schedules of `torch.distributed.pipelining`, which cannot
be used in part: see docs/design-notes.md.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, Generic, Literal, NamedTuple

import torch

from mimo_role.bridge.bridge import Bridge
from mimo_role.bridge.frames import Position
from mimo_role.context import RoleContext
from mimo_role.errors import ScheduleError
from mimo_role.monitoring.records import Kind
from mimo_role.pipeline.gradient_sync import GradientSync, Modules
from mimo_role.pipeline.receive_order import ACTIONS_AHEAD, Receive, receives_ahead, receives_of, receives_when_sent
from mimo_role.pipeline.stage_graph import Destination, StageGraph
from mimo_role.pipeline.stage_tensors import Specs
from mimo_role.pipeline.step_executor import StepExecutor
from mimo_role.pipeline.step_plan import Batch, Pipeline, StepPlan, StepResults
from mimo_role.pipeline.step_transfers import StepTransfers
from mimo_role.pipeline.timeline import SLACK, Action, run_limits, timeline
from mimo_role.pipeline.trained_stages import TrainedStages
from mimo_role.resharding.samples import TokenSplit
from mimo_role.topology.stage_links import StageId, StageLink


class _PlannedStep(NamedTuple):
    plan: StepPlan
    actions: list[Action]
    """Those of this rank."""
    receives: list[list[Receive]]
    """For each of them, what is posted before it."""


class Schedule1F1B(Generic[Batch]):
    """Runs this rank's stages, alternating one forward and one backward, in any layout.

    Every rank of the job makes one with the same arguments and calls it with the same micro-batches. A micro-batch is any value
    that the functions below take; on each rank, it has what that rank's modules need.
    """

    def __init__(
        self,
        ctx: RoleContext,
        *,
        run: Callable[..., Any],
        spec_of: Callable[[StageId, Batch], Specs],
        loss_of: Callable[[Any, Batch], torch.Tensor] | Mapping[str, Callable[[Any, Batch], torch.Tensor]],
        frozen: Collection[str] | Literal["auto"] = (),
        modules: Modules | None = None,
        splits: Mapping[str, TokenSplit] | None = None,
        destinations: Mapping[str, Mapping[str, Destination]] | None = None,
        micro_batches: Mapping[str, int] | None = None,
        slack: int = SLACK,
    ) -> None:
        """
        Args:
            ctx: this rank's.
            run: `run(module, batch, inputs)` computes this rank's stage of a module. `inputs` come over bridges, by the module
                that sends: `{}` on an encoder's first stage, `{modality: embeddings}` on the language module's first,
                `{module: hidden}` on a later stage. It returns the stage's output: a tensor, or a tuple or mapping of tensors;
                or that and an auxiliary loss as a `StageOutput`. In `step`, the output of a module that trains must not change
                before the backward of its micro-batch.
            spec_of: `spec_of(stage, batch)` is the spec of a stage's output; a tuple or mapping of specs for several tensors.
                It is called for stages of other ranks too.
            loss_of: `loss_of(output, batch)` is a scalar, on the last stage of the modules that feed no other, such as the
                language module. If there are several, a mapping of such functions by module; their losses are added up.
            frozen: modules without parameters to train: they have no backward, and their outputs no gradients. With `"auto"`,
                those stages have none that have no parameter in `modules` that requires gradients, and that no such stage
                feeds. The same on all ranks.
            modules: the parts of each module on this rank, one `torch.nn.Module` or several. The data-parallel wrappers in them
                (DDP, FSDP2, others with a `no_sync()`) reduce once a step, after the last micro-batch. So do DDP and FSDP2
                modules that `run` calls and that are not given, if they exist at the first step and all lanes call them in it.
            splits: how the ranks of a module divide the tokens of a sample, by module; default: `TokenSplit()`.
            destinations: by module and name of a tensor in its output, the stages or modules that take that tensor, such as
                `{"vision": {"level_1": StageId("language", 1)}}`. Others go to the first stage of each module that takes the
                output.
            micro_batches: by module, how many runs it has in a step, where it does not run each micro-batch for itself. The
                number divides that of the micro-batches. `run` then takes tuples, of batches and for each module in `inputs`,
                and returns a sequence: one for each of the micro-batches.
            slack: micro-batches that a stage may be ahead of the loss beyond its distance from it. It limits the number whose
                activations are kept to `distance + 1 + slack`.

        Raises:
            ScheduleError: a module that cannot be frozen, an argument with an unknown module, a destination that does not take
                a module's output, functions for other losses than are computed, or a negative slack.
            BridgeError: splits that differ from those of a bridge that exists already.
        """
        for what, names in (("splits", splits), ("micro_batches", micro_batches)):
            for name in names or ():
                if name not in ctx.topology.grids:
                    raise ScheduleError(f"{what}: no module {name!r}; there are {', '.join(ctx.topology.grids)}")
        self._ctx = ctx
        self._splits = dict(splits or {})
        self._runs = dict(micro_batches or {})
        graph = StageGraph(ctx.topology, destinations)
        own_stages = frozenset(graph.of_rank(ctx.rank))
        is_auto = frozen == "auto"
        named = frozenset(() if is_auto else [frozen] if isinstance(frozen, str) else frozen)
        trained = {at.module for at in own_stages} - named
        self._gradient_sync = GradientSync(modules or {}, ctx.topology.grids, trained)
        self._stages = TrainedStages(graph, ctx.topology.module_graph, own_stages, named, ctx.device)
        if is_auto:
            self._stages.find_frozen(self._gradient_sync.roots)
        losses_of = _losses_of(loss_of, ctx.topology.module_graph.ends)
        timeline(graph, 1, slack=slack)  # refuses a wrong argument before any bridge is made
        self._bridges: dict[tuple[StageLink, int], Bridge] = {}
        self._pipeline = Pipeline(run, spec_of, losses_of, graph, own_stages, self._bridge_of, slack)
        for link in graph.links:
            if not own_stages.isdisjoint(link):
                self._bridge_of(link, 0)
        self._number = ctx.recorder.count_schedule()
        self._plans = lru_cache(maxsize=16)(self._plan_step)
        self._results = StepResults()
        self._steps_run = 0
        """Steps that have completed, with or without backwards."""
        self._is_checked = False
        """Whether a step has shown that stages without a backward need none."""
        self._failed = False

    @property
    def losses(self) -> Mapping[str, list[torch.Tensor]]:
        """Of the last `step`: this rank's losses of each micro-batch, detached, by the modules that compute one."""
        return self._results.losses

    @property
    def auxiliary_losses(self) -> Mapping[str, list[torch.Tensor]]:
        """Of the last `step` or `forward`: by module, this rank's auxiliary loss of each micro-batch that had one, detached."""
        return self._results.auxiliary

    def step(self, batches: Sequence[Batch], *, sync_gradients: bool = True) -> list[torch.Tensor]:
        """Run the forwards and backwards of the micro-batches; gradients add up in the parameters.

        With `frozen="auto"` the first call is collective over the world: ranks agree on the stages without a backward.

        Args:
            batches: the micro-batches, one or more.
            sync_gradients: whether data-parallel wrappers reduce in this step. To accumulate over several steps, pass False in
                all but the last of them, on all ranks.

        Returns:
            The loss of each micro-batch, detached, on the last stage of a module that computes one, elsewhere `[]`. A rank with
            several such modules gets the sum of their losses; `losses` has each.

        Raises:
            ScheduleError: no micro-batches, a number of them that a module's runs do not divide, a data-parallel wrapper that
                cannot accumulate over them, an output through which one of `modules` does not train, or parameters in a
                frozen module that would train.
            BridgeError: a stage's output does not have the spec of `spec_of`, or another rank has left, exited or died.
        """
        self._begin_step()
        self._record_samples(batches)
        self._run(batches, backward=True, sync_gradients=sync_gradients)
        return [
            torch.stack(of_one).sum() if len(of_one) > 1 else of_one[0] for of_one in zip(*self.losses.values(), strict=True)
        ]

    @torch.no_grad()
    def forward(self, batches: Sequence[Batch]) -> list[Any]:
        """Run only the forwards of the micro-batches.

        Returns:
            The output of `run` for each micro-batch on the last stage of a module that computes a loss, elsewhere `[]`; on a
            rank with several such modules, a mapping of their outputs by module.

        Raises:
            ScheduleError, BridgeError: as `step`.
        """
        self._run(batches, backward=False, sync_gradients=False)
        outputs, self._results.outputs = self._results.outputs, {}
        if len(outputs) == 1:
            return next(iter(outputs.values()))
        return [dict(zip(outputs, of_one, strict=True)) for of_one in zip(*outputs.values(), strict=True)]

    def _begin_step(self) -> None:
        heartbeat, before = self._ctx.heartbeat, self._ctx.heartbeat.last_step
        heartbeat.scheduled_step()
        if heartbeat.last_step != before:
            self._ctx.recorder.begin_step(heartbeat.last_step)

    def _record_samples(self, batches: Sequence[Batch]) -> None:
        """One rank records the samples of the whole step, if the micro-batches are those of a `RoleDataLoader`."""
        samples = getattr(batches[0], "samples_in_step", None) if self._ctx.is_logging_rank and batches else None
        if isinstance(samples, int):
            self._ctx.recorder.scalar("samples", samples)

    def _plan_step(self, micro_batches: int, backward: bool, frozen: frozenset[StageId]) -> _PlannedStep:
        graph, slack, own_stages = self._pipeline.graph, self._pipeline.slack, self._pipeline.own_stages
        sizes = {name: self._micro_batches_per_run(name, micro_batches) for name in self._runs}
        actions = timeline(graph, micro_batches, frozen=frozen, backward=backward, slack=slack, per_run=sizes)
        per_run = {at: sizes.get(at.module, 1) for at in graph.after}
        plan = StepPlan(frozen, per_run, run_limits(graph, slack, per_run), backward)
        own = [action for action in actions if action.at in own_stages]
        trained = {at for at in graph.after if plan.trains(at)}
        receives = {action: list(receives_of(action, graph, own_stages, trained, per_run)) for action in own}
        if _receives_are_kernels(self._ctx.device):
            return _PlannedStep(plan, own, receives_when_sent(receives, own, actions))
        return _PlannedStep(plan, own, receives_ahead(receives, own, ACTIONS_AHEAD))

    def _micro_batches_per_run(self, module: str, micro_batches: int) -> int:
        runs = self._runs[module]
        if runs < 1 or micro_batches % runs:
            raise ScheduleError(f"micro_batches: {runs} runs of {module!r} do not divide {micro_batches} micro-batches")
        return micro_batches // runs

    def _run(self, batches: Sequence[Batch], *, backward: bool, sync_gradients: bool) -> None:
        if self._failed:
            raise ScheduleError(
                "an earlier step failed on this rank, and its messages may still be in flight; start the job again"
            )
        frozen = self._stages.without_backward() if backward else frozenset()
        plan, actions, receives = self._plans(len(batches), backward, frozen)
        self._results = StepResults()
        self._ctx.recorder.begin_batch(self._number, self._steps_run)
        try:
            with self._gradient_sync.of_step(len(batches), sync=sync_gradients, backward=backward) as gradient_sync:
                position = Position(self._ctx.heartbeat.script_step, self._steps_run)
                transfers = StepTransfers(self._pipeline, plan, batches, position, self._ctx.recorder)
                executor = StepExecutor(
                    self._pipeline,
                    plan,
                    batches,
                    transfers=transfers,
                    gradient_sync=gradient_sync,
                    results=self._results,
                    recorder=self._ctx.recorder,
                    check_frozen=not self._is_checked,
                )
                for action, first, later in zip(actions, receives, [*receives[1:], []], strict=True):
                    transfers.receive(first)
                    transfers.prepare(later)
                    executor.execute(action)
                    self._ctx.heartbeat.beat()
                transfers.finish()
                with self._ctx.recorder.span(Kind.SPAN, "reduce gradients"):
                    gradient_sync.reduce()
            self._steps_run += 1
            self._is_checked |= backward
        except BaseException:
            self._failed = True
            raise

    def _bridge_of(self, link: StageLink, tensor: int) -> Bridge:
        """The bridge of a link for the tensor with this number."""
        if (link, tensor) not in self._bridges:
            source, target = link
            stage = source.stage if link.is_within_module else None
            self._bridges[link, tensor] = self._ctx.bridge(
                source.module,
                stage=stage,
                to=None if link.is_within_module else target.module,
                to_stage=0 if link.is_within_module else target.stage,
                tensor=tensor,
                source=self._splits.get(source.module),
                destination=self._splits.get(target.module),
            )
        return self._bridges[link, tensor]


def _receives_are_kernels(device: torch.device) -> bool:
    return device.type == "cuda"


def _losses_of(loss_of: Any, ends: Collection[str]) -> dict[str, Callable[[Any, Any], torch.Tensor]]:
    """The function for each module that computes a loss."""
    if not isinstance(loss_of, Mapping):
        if len(ends) > 1:
            raise ScheduleError(
                f"loss_of is one function, but {', '.join(ends)} compute losses; pass a mapping with one for each"
            )
        return dict.fromkeys(ends, loss_of)
    if loss_of.keys() != set(ends):
        raise ScheduleError(f"loss_of has {', '.join(loss_of) or 'nothing'}; these modules compute losses: {', '.join(ends)}")
    return dict(loss_of)
