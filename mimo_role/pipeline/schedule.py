"""A training step in micro-batches over all modules.

`timeline.py` computes the order. Within a module this replaces the schedules of `torch.distributed.pipelining`, which cannot
be used in part: see docs/design-notes.md.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Generic

import torch

from mimo_role.bridge.activation_spec import ActivationSpec
from mimo_role.bridge.bridge import Bridge
from mimo_role.bridge.frames import Position
from mimo_role.context import RoleContext
from mimo_role.errors import ScheduleError
from mimo_role.pipeline.gradient_sync import GradientSync, Modules
from mimo_role.pipeline.stage_graph import StageGraph, StageId
from mimo_role.pipeline.step_executor import Batch, Pipeline, StageOutput, StepExecutor
from mimo_role.pipeline.timeline import SLACK, Action, timeline
from mimo_role.resharding.samples import TokenSplit


class Schedule1F1B(Generic[Batch]):
    """Runs this rank's stages, alternating one forward and one backward, in any layout.

    Every rank of the job makes one with the same arguments and calls it with the same micro-batches. A micro-batch is any value
    that the functions below take; on each rank, it has what that rank's modules need.
    """

    def __init__(
        self,
        ctx: RoleContext,
        *,
        run: Callable[[str, Batch, Mapping[str, torch.Tensor]], torch.Tensor | StageOutput],
        spec_of: Callable[[StageId, Batch], ActivationSpec],
        loss_of: Callable[[torch.Tensor, Batch], torch.Tensor],
        frozen: Collection[str] = (),
        modules: Modules | None = None,
        splits: Mapping[str, TokenSplit] | None = None,
        slack: int = SLACK,
    ) -> None:
        """
        Args:
            ctx: this rank's.
            run: `run(module, batch, inputs)` computes this rank's stage of a module. `inputs` come over bridges: `{}` on an
                encoder's first stage, `{modality: embeddings}` on the language module's first, otherwise `{module: hidden}`. It
                returns the stage's output, or that and an auxiliary loss as a `StageOutput`. In `step`, the output of a module
                that trains must not change before the backward of its micro-batch.
            spec_of: `spec_of(stage, batch)` is the spec of a stage's output. It is called for stages of other ranks too.
            loss_of: `loss_of(output, batch)` is a scalar, on the language module's last stage.
            frozen: modality modules without parameters to train: they have no backward, and their outputs no gradients.
            modules: the parts of each module on this rank, one `torch.nn.Module` or several. The data-parallel wrappers in them
                (DDP, FSDP2, others with a `no_sync()`) reduce once a step, after the last micro-batch. So do DDP and FSDP2
                modules that `run` calls and that are not given, if they exist at the first step and all lanes call them in it.
            splits: how the ranks of a module divide the tokens of a sample, by module; default: `TokenSplit()`.
            slack: micro-batches that a stage may be ahead of the loss beyond its distance from it. It limits the number whose
                activations are kept to `distance + 1 + slack`.

        Raises:
            ScheduleError: a frozen module that is not a modality module, modules or splits of an unknown module, or a negative
                slack.
            BridgeError: splits that differ from those of a bridge that exists already.
        """
        for name in splits or ():
            if name not in ctx.topology.grids:
                raise ScheduleError(f"splits: no module {name!r}; there are {', '.join(ctx.topology.grids)}")
        self._ctx = ctx
        graph = StageGraph(ctx.topology)
        own_stages = frozenset(graph.of_rank(ctx.rank))
        frozen = frozenset([frozen] if isinstance(frozen, str) else frozen)
        timeline(graph, 1, frozen=frozen, slack=slack)  # refuses a wrong argument before any bridge is made
        bridges = {at: self._make_bridge(at, after, splits or {}) for at, after in graph.after.items() if after}
        self._pipeline = Pipeline(run, spec_of, loss_of, graph, own_stages, bridges, frozen, slack)
        self._actions = lru_cache(maxsize=16)(self._find_actions)
        trained = {at.module for at in own_stages} - frozen
        self._gradient_sync = GradientSync(modules or {}, ctx.topology.grids, trained)
        self.auxiliary_losses: dict[str, list[torch.Tensor]] = {}
        """Of the last `step` or `forward`: by module, this rank's auxiliary loss of each micro-batch that had one, detached."""
        self._steps_run = 0
        """Steps that have completed, with or without backwards."""
        self._failed = False

    def step(self, batches: Sequence[Batch], *, sync_gradients: bool = True) -> list[torch.Tensor]:
        """Run the forwards and backwards of the micro-batches; gradients add up in the parameters.

        Args:
            batches: the micro-batches, one or more.
            sync_gradients: whether data-parallel wrappers reduce in this step. To accumulate over several steps, pass False in
                all but the last of them, on all ranks.

        Returns:
            The loss of each micro-batch, detached, on the language module's last stage; elsewhere `[]`.

        Raises:
            ScheduleError: no micro-batches, a data-parallel wrapper that cannot accumulate over them, or an output through
                which one of `modules` does not train.
            BridgeError: a stage's output does not have the spec of `spec_of`, or another rank has left, exited or died.
        """
        self._ctx.heartbeat.scheduled_step()
        return self._run(batches, backward=True, sync_gradients=sync_gradients)

    @torch.no_grad()
    def forward(self, batches: Sequence[Batch]) -> list[torch.Tensor]:
        """Run only the forwards of the micro-batches.

        Returns:
            The output of `run` for each micro-batch on the language module's last stage; elsewhere `[]`.

        Raises:
            ScheduleError, BridgeError: as `step`.
        """
        return self._run(batches, backward=False, sync_gradients=False)

    def _find_actions(self, micro_batches: int, backward: bool) -> list[Action]:
        pipeline = self._pipeline
        actions = timeline(pipeline.graph, micro_batches, frozen=pipeline.frozen, backward=backward, slack=pipeline.slack)
        return [action for action in actions if action.at in pipeline.own_stages]

    def _run(self, batches: Sequence[Batch], *, backward: bool, sync_gradients: bool) -> list[torch.Tensor]:
        if self._failed:
            raise ScheduleError(
                "an earlier step failed on this rank, and its messages may still be in flight; start the job again"
            )
        actions = self._actions(len(batches), backward)
        self.auxiliary_losses = {}
        try:
            with self._gradient_sync.of_step(len(batches), sync=sync_gradients, backward=backward) as gradient_sync:
                executor = StepExecutor(
                    self._pipeline,
                    batches,
                    backward=backward,
                    gradient_sync=gradient_sync,
                    position=Position(self._ctx.heartbeat.script_step, self._steps_run),
                    auxiliary_losses=self.auxiliary_losses,
                )
                for number, action in enumerate(actions):
                    executor.receive_for(actions[number : number + self._actions_ahead() + 1])
                    executor.execute(action)
                    self._ctx.heartbeat.beat()
                results = executor.finish()
                gradient_sync.reduce()
            self._steps_run += 1
            return results
        except BaseException:
            self._failed = True
            raise

    def _actions_ahead(self) -> int:
        """The number of further actions whose inputs are received while one action runs.

        NCCL runs the messages of a communicator one after the other: more of them could wait for messages sent later.
        """
        return 1 if self._ctx.device.type == "cuda" else 2

    def _make_bridge(self, at: StageId, after: StageId, splits: Mapping[str, TokenSplit]) -> Bridge:
        stage = at.stage if after.module == at.module else None
        return self._ctx.bridge(at.module, stage=stage, source=splits.get(at.module), destination=splits.get(after.module))
