"""A training step in micro-batches over all modules: which stage runs which one when, and what it hands to whom.

`timeline.py` says the order. Inside a module this takes the place of `torch.distributed.pipelining`'s schedules, which cannot
be used in part: docs/structure.md says why.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, NamedTuple, TypeVar

import torch

from mimo_role.bridge.bridge import Bridge
from mimo_role.bridge.frames import Position, Returns
from mimo_role.bridge.handshake import ActivationSpec
from mimo_role.bridge.transfer import Crossing, start_together
from mimo_role.context import RoleContext
from mimo_role.errors import ScheduleError
from mimo_role.pipeline.gradient_sync import GradientSync, Modules, StepSync
from mimo_role.pipeline.timeline import SLACK, Action, Graph, Phase, StageId, timeline
from mimo_role.resharding.samples import TokenSplit

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class StageOutput:
    """What `run` returns for a stage that has a loss of its own, such as a balancing loss of its experts."""

    output: torch.Tensor
    """What `run` returns otherwise."""
    loss: torch.Tensor
    """A scalar. It is taken back with the gradients of `output`, on the language module's last stage with the loss."""


class Schedule1F1B(Generic[Batch]):
    """Runs this rank's stages, one forward and one backward by turns, in any layout.

    Every rank of the job makes one with the same arguments and calls it with its own view of the same micro-batches. A
    micro-batch is whatever the functions below understand; on a given rank, it holds what that rank's modules need of it.
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
            run: `run(module, batch, inputs)` computes this rank's stage of a module. `inputs` are what comes over bridges: none
                on an encoder's first stage, on the language module's first `{modality: embeddings}`, else `{module: hidden}`.
                It returns the stage's output, or that and an auxiliary loss as a `StageOutput`. In `step`, the output of a
                module that trains must not change before its micro-batch has come back.
            spec_of: what leaves a stage for the next, or for the language module; asked for stages of other ranks too.
            loss_of: `loss_of(output, batch)`, a scalar, on the language module's last stage.
            frozen: modality modules without anything to train: they go forward only, and no gradients cross for them.
            modules: what this rank runs of each module, one `torch.nn.Module` or several. The data-parallel wrappers in them
                (DDP, FSDP2, others with a `no_sync()`) reduce once a step, after the last micro-batch. So do DDP and FSDP2
                modules that `run` calls and that are not given, if they exist at the first step and all lanes call them in it.
            splits: how the ranks of a module divide the tokens of a sample, by module, if not as `TokenSplit()`.
            slack: micro-batches that a stage may be ahead of the loss beyond its distance from it, which bounds those whose
                activations it keeps: `distance + 1 + slack`.

        Raises:
            ScheduleError: a frozen module that is not a modality module, modules or splits of a module that there is not, or a
                negative slack.
            BridgeError: splits at odds with those of a bridge that the script has asked for already.
        """
        for name in splits or ():
            if name not in ctx.topology.grids:
                raise ScheduleError(f"splits: no module {name!r}; there are {', '.join(ctx.topology.grids)}")
        self._ctx = ctx
        self._run = run
        self._spec_of = spec_of
        self._loss_of = loss_of
        self._frozen = frozenset([frozen] if isinstance(frozen, str) else frozen)
        self._slack = slack
        self._graph = Graph(ctx.topology)
        self._mine = set(self._graph.of_rank(ctx.rank))
        self._actions = lru_cache(maxsize=16)(self._find_actions)
        self._actions(1, True)  # a frozen module that there is not is told at once
        self._bridges = {at: self._make_bridge(at, after, splits or {}) for at, after in self._graph.after.items() if after}
        trained = {at.module for at in self._mine} - self._frozen
        self._gradient_sync = GradientSync(modules or {}, ctx.topology.grids, trained)
        self.auxiliary_losses: dict[str, list[torch.Tensor]] = {}
        """Of the last `step` or `forward`: by module, this rank's auxiliary loss in each micro-batch that had one, detached."""
        self._played = 0
        """How many steps, forward only or with a backward, have ended."""
        self._failed = False

    def step(self, batches: Sequence[Batch], *, sync_gradients: bool = True) -> list[torch.Tensor]:
        """Take the micro-batches forward and back; gradients add up in the parameters.

        Args:
            batches: one or more.
            sync_gradients: whether data-parallel wrappers reduce in this step. To accumulate over several steps, pass False in
                all but the last of them, on all ranks alike.

        Returns:
            The loss of each micro-batch, detached, on the language module's last stage; elsewhere nothing.

        Raises:
            ScheduleError: no micro-batches, a data-parallel wrapper that cannot accumulate over them, or an output through
                which one of `modules` does not train.
            BridgeError: what a stage returned is not what `spec_of` says, or another rank is gone.
        """
        self._ctx.heartbeat.scheduled_step()
        return self._play(batches, backward=True, sync_gradients=sync_gradients)

    @torch.no_grad()
    def forward(self, batches: Sequence[Batch]) -> list[torch.Tensor]:
        """Take the micro-batches forward only.

        Returns:
            What `run` returned for each micro-batch on the language module's last stage; elsewhere nothing.

        Raises:
            ScheduleError, BridgeError: as `step`.
        """
        return self._play(batches, backward=False, sync_gradients=False)

    def _find_actions(self, micro_batches: int, backward: bool) -> list[Action]:
        everyone = timeline(self._graph, micro_batches, frozen=self._frozen, backward=backward, slack=self._slack)
        return [action for action in everyone if action.at in self._mine]

    def _play(self, batches: Sequence[Batch], *, backward: bool, sync_gradients: bool) -> list[torch.Tensor]:
        if self._failed:
            raise ScheduleError(
                "an earlier step failed on this rank, and its messages are still on their way; start the job again"
            )
        actions = self._actions(len(batches), backward)
        try:
            with self._gradient_sync.of_step(len(batches), sync=sync_gradients, backward=backward) as gradient_sync:
                play = _Play(self, batches, backward, gradient_sync)
                for number, action in enumerate(actions):
                    play.receive_for(actions[number : number + self._actions_ahead() + 1])
                    play.act(action)
                    self._ctx.heartbeat.beat()
                results = play.end()
                gradient_sync.reduce()
            self._played += 1
            return results
        except BaseException:
            self._failed = True
            raise

    def _actions_ahead(self) -> int:
        """For how many actions what they wait for is received beside the one that runs.

        NCCL takes the messages of one way one after the other: more ahead could wait for what is sent behind them.
        """
        return 1 if self._ctx.device.type == "cuda" else 2

    def _make_bridge(self, at: StageId, after: StageId, splits: Mapping[str, TokenSplit]) -> Bridge:
        stage = at.stage if after.module == at.module else None
        return self._ctx.bridge(at.module, stage=stage, source=splits.get(at.module), destination=splits.get(after.module))


class _Kept(NamedTuple):
    """What a stage keeps of a micro-batch between its forward and its backward."""

    inputs: dict[StageId, torch.Tensor]
    output: torch.Tensor
    auxiliary: torch.Tensor | None


class _Play(Generic[Batch]):
    """One step on one rank."""

    def __init__(
        self, schedule: Schedule1F1B[Batch], batches: Sequence[Batch], backward: bool, gradient_sync: StepSync
    ) -> None:
        self._of = schedule
        self._of.auxiliary_losses = {}
        self._batches = batches
        self._backward = backward
        self._gradient_sync = gradient_sync
        self._step = -1 if schedule._ctx.heartbeat.script_step is None else schedule._ctx.heartbeat.script_step
        self._coming: dict[Action, dict[StageId, Crossing]] = defaultdict(dict)
        """By the action that waits for it, from which stage: forward from those before it, backward from the one after."""
        self._sent: defaultdict[Action, list[Crossing]] = defaultdict(list)
        """By the action that sent it."""
        self._kept: dict[tuple[StageId, int], _Kept] = {}
        self._results: list[torch.Tensor] = []

    def receive_for(self, actions: Sequence[Action]) -> None:
        """Start to receive what these actions wait for, of all bridges in one call."""
        started = []
        for action in actions:
            for source, other in self._awaited(action):
                if other not in self._coming[action] and not self._is_local(source):
                    back = action.phase is Phase.BACKWARD
                    self._coming[action][other] = self._crossing(None, source, action.micro_batch, back=back)
                    started.append(self._coming[action][other])
        start_together(started)

    def act(self, action: Action) -> None:
        """Wait for what an action needs, compute, and send."""
        arrived = {}
        for other, crossing in self._coming.pop(action, {}).items():
            received = crossing.receive()
            assert received is not None
            arrived[other] = received
            if crossing.let_go():  # a rank on both sides of a bridge sends with the same crossing
                self._sent[action].append(crossing)
        if action.phase is Phase.FORWARD:
            self._go_forward(action, arrived)
        else:
            self._go_back(action, arrived)

    def end(self) -> list[torch.Tensor]:
        """Wait until all that was sent has been taken; return the losses or outputs of the step."""
        for action in list(self._sent):
            self._wait_for(action)
        return self._results

    def _go_forward(self, action: Action, inputs: dict[StageId, torch.Tensor]) -> None:
        at, number = action.at, action.micro_batch
        trains = self._backward and at.module not in self._of._frozen
        if trains:
            for source, tensor in inputs.items():
                tensor.requires_grad_(self._comes_back(source) and tensor.is_floating_point())
        with torch.set_grad_enabled(trains):
            output, auxiliary = self._run(at, number, inputs)
            if self._of._graph.after[at] is None and self._backward:
                output = _scalar("loss_of()", self._of._loss_of(output, self._batches[number]))
        if self._of._graph.after[at] is None:
            self._results.append(output.detach() if self._backward else output)
        else:
            output = _tensor(f"run({at.module!r}, ...)", output)
            output = self._of._bridges[at].as_plain(output, self._spec(at, number))
            if trains:
                self._gradient_sync.check_output(at.module, output)
            self._send(action, at, output.detach(), back=False, copies=not trains)
        if trains:
            self._kept[at, number] = _Kept(inputs, output, auxiliary)
        else:
            self._wait_for(action._replace(micro_batch=number - self._depth(at)))

    def _run(
        self, at: StageId, number: int, inputs: Mapping[StageId, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A stage's output and its auxiliary loss."""
        self._gradient_sync.before_forward(at.module)
        named = {source.module: tensor for source, tensor in inputs.items()}
        returned = self._of._run(at.module, self._batches[number], named)
        if not isinstance(returned, StageOutput):
            return returned, None
        if self._backward and at.module in self._of._frozen:
            raise ScheduleError(
                f"run({at.module!r}, ...) returned an auxiliary loss, but {at.module!r} is frozen; return the output alone, or "
                f"take {at.module!r} out of frozen="
            )
        auxiliary = _scalar(f"run({at.module!r}, ...).loss", returned.loss)
        self._of.auxiliary_losses.setdefault(at.module, []).append(auxiliary.detach())
        return returned.output, auxiliary

    def _go_back(self, action: Action, gradients: dict[StageId, torch.Tensor]) -> None:
        at, number = action.at, action.micro_batch
        inputs, output, auxiliary = self._kept.pop((at, number))
        self._wait_for(Action(Phase.FORWARD, at, number))
        self._gradient_sync.before_backward(at.module, is_last=number == len(self._batches) - 1)
        roots = [(output, next(iter(gradients.values()), None)), (auxiliary, None)]
        trained = [(root, gradient) for root, gradient in roots if root is not None and root.requires_grad]
        if trained:
            torch.autograd.backward([root for root, _ in trained], [gradient for _, gradient in trained])
        for source, tensor in inputs.items():
            if self._comes_back(source):
                gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
                # A copy: autograd may have taken the same memory for a parameter's gradient, and add to it.
                self._send(action, source, gradient, back=True, copies=True)
        # The stages before have sent this micro-batch only after they had taken back one that lies so far behind it.
        self._wait_for(action._replace(micro_batch=number - max(map(self._depth, inputs), default=0)))

    def _send(self, action: Action, source: StageId, tensor: torch.Tensor, *, back: bool, copies: bool) -> None:
        """Over the bridge that begins at `source`: to whoever waits for it, this rank perhaps among them."""
        after = self._of._graph.after[source]
        assert after is not None
        crossing = self._crossing(tensor, source, action.micro_batch, back=back, copies=copies).start()
        if self._is_local(source):
            waits, other = (source, after) if back else (after, source)
            self._coming[action._replace(at=waits)][other] = crossing
        else:
            self._sent[action].append(crossing)

    def _crossing(
        self, tensor: torch.Tensor | None, source: StageId, micro_batch: int, *, back: bool, copies: bool = False
    ) -> Crossing:
        """This rank's part of a micro-batch over the bridge that begins at `source`."""
        return self._of._bridges[source].crossing(
            tensor,
            self._spec(source, micro_batch),
            back=back,
            copies=copies,
            position=Position(self._step, self._of._played, micro_batch, len(self._batches)),
            returns=Returns.YES if self._comes_back(source) else Returns.NO,
        )

    def _wait_for(self, action: Action) -> None:
        for crossing in self._sent.pop(action, ()):
            crossing.wait()

    def _awaited(self, action: Action) -> list[tuple[StageId, StageId]]:
        """The bridges by which an action gets something: the stage where each begins, and the one at its other end."""
        if action.phase is Phase.FORWARD:
            return [(source, source) for source in self._of._graph.before[action.at]]
        after = self._of._graph.after[action.at]
        return [] if after is None else [(action.at, after)]

    def _is_local(self, source: StageId) -> bool:
        """Whether this rank is on both sides of the bridge that begins at a stage."""
        return source in self._of._mine and self._of._graph.after[source] in self._of._mine

    def _comes_back(self, source: StageId) -> bool:
        return self._backward and source.module not in self._of._frozen

    def _depth(self, at: StageId) -> int:
        """The most micro-batches that a stage has begun and is not rid of."""
        return self._of._graph.distance[at] + 1 + self._of._slack

    def _spec(self, source: StageId, micro_batch: int) -> ActivationSpec:
        spec = self._of._spec_of(source, self._batches[micro_batch])
        if not isinstance(spec, ActivationSpec):
            raise ScheduleError(f"spec_of({source}, ...) returned {type(spec).__name__}; it returns an ActivationSpec")
        return spec


def _tensor(what: str, value: object) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise ScheduleError(f"{what} returned {type(value).__name__}; it returns one tensor, which spec_of() describes")
    return value


def _scalar(what: str, value: object) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or value.dim() > 0:
        found = f"a tensor of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise ScheduleError(f"{what} returned {found}; it returns a tensor of no dimensions")
    return value
