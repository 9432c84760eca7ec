"""The execution of one step on one rank: forwards, backwards, and the transfers between stages."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch

from mimo_role.bridge.activation_spec import ActivationSpec
from mimo_role.bridge.bridge import Bridge
from mimo_role.bridge.frames import Position, Returns
from mimo_role.bridge.transfer import Transfer, TransferOptions, start_together
from mimo_role.errors import ScheduleError
from mimo_role.pipeline.gradient_sync import StepSync
from mimo_role.pipeline.stage_graph import StageGraph, StageId
from mimo_role.pipeline.timeline import Action, Phase

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class StageOutput:
    """The return value of `run` for a stage with an auxiliary loss, such as a balancing loss of its experts."""

    output: torch.Tensor
    """What `run` returns for other stages."""
    loss: torch.Tensor
    """A scalar. Its backward runs with that of `output`, on the language module's last stage with that of the loss."""


@dataclass(frozen=True)
class Pipeline(Generic[Batch]):
    """The stages that one rank runs; `Schedule1F1B` documents the functions."""

    run: Callable[[str, Batch, Mapping[str, torch.Tensor]], torch.Tensor | StageOutput]
    spec_of: Callable[[StageId, Batch], ActivationSpec]
    loss_of: Callable[[torch.Tensor, Batch], torch.Tensor]
    graph: StageGraph
    own_stages: frozenset[StageId]
    bridges: Mapping[StageId, Bridge]
    """By the stage at which each begins."""
    frozen: frozenset[str]
    slack: int


class _Saved(NamedTuple):
    """What a stage saves of a micro-batch between its forward and its backward."""

    inputs: dict[StageId, torch.Tensor]
    output: torch.Tensor
    auxiliary: torch.Tensor | None


class StepExecutor(Generic[Batch]):
    """Executes the actions of one step on one rank."""

    def __init__(
        self,
        pipeline: Pipeline[Batch],
        batches: Sequence[Batch],
        *,
        backward: bool,
        gradient_sync: StepSync,
        position: Position,
        auxiliary_losses: dict[str, list[torch.Tensor]],
    ) -> None:
        """
        Args:
            pipeline: the stages.
            batches: the micro-batches.
            backward: whether they have backwards.
            gradient_sync: drives data-parallel wrappers in this step.
            position: of the step, for the headers of bridges.
            auxiliary_losses: gets this rank's auxiliary losses, by module.
        """
        self._pipeline = pipeline
        self._batches = batches
        self._backward = backward
        self._gradient_sync = gradient_sync
        self._position = position._replace(micro_batches=len(batches))
        self._auxiliary_losses = auxiliary_losses
        self._receiving: dict[Action, dict[StageId, Transfer]] = defaultdict(dict)
        """By the action that waits for it and the stage that sends it: one before for a forward, the next for a backward."""
        self._sending: defaultdict[Action, list[Transfer]] = defaultdict(list)
        """By the action that has sent it."""
        self._saved: dict[tuple[StageId, int], _Saved] = {}
        self._results: list[torch.Tensor] = []

    def receive_for(self, actions: Sequence[Action]) -> None:
        """Start to receive the inputs of these actions, over all bridges in one call."""
        started = []
        for action in actions:
            for source, other in self._awaited(action):
                if other not in self._receiving[action] and not self._is_local(source):
                    back = action.phase is Phase.BACKWARD
                    self._receiving[action][other] = self._transfer(None, source, action.micro_batch, back=back)
                    started.append(self._receiving[action][other])
        start_together(started)

    def execute(self, action: Action) -> None:
        """Wait for the inputs of an action, compute, and send."""
        inputs = {}
        for other, transfer in self._receiving.pop(action, {}).items():
            received = transfer.receive()
            assert received is not None
            inputs[other] = received
            if transfer.release_result():  # a rank on both sides of a bridge sends with the same transfer
                self._sending[action].append(transfer)
        if action.phase is Phase.FORWARD:
            self._do_forward(action, inputs)
        else:
            self._do_backward(action, inputs)

    def finish(self) -> list[torch.Tensor]:
        """Wait until all that was sent has been received; return the losses or outputs of the step."""
        for action in list(self._sending):
            self._wait_for(action)
        return self._results

    def _do_forward(self, action: Action, inputs: dict[StageId, torch.Tensor]) -> None:
        at, number = action.at, action.micro_batch
        trains = self._backward and at.module not in self._pipeline.frozen
        if trains:
            for source, tensor in inputs.items():
                tensor.requires_grad_(self._has_gradient(source) and tensor.is_floating_point())
        with torch.set_grad_enabled(trains):
            output, auxiliary = self._run(at, number, inputs)
            if self._pipeline.graph.after[at] is None and self._backward:
                output = _scalar("loss_of()", self._pipeline.loss_of(output, self._batches[number]))
        if self._pipeline.graph.after[at] is None:
            self._results.append(output.detach() if self._backward else output)
        else:
            output = _tensor(f"run({at.module!r}, ...)", output)
            output = self._pipeline.bridges[at].as_plain(output, self._spec(at, number))
            if trains:
                self._gradient_sync.check_output(at.module, output)
            self._send(action, at, output.detach(), back=False, copy=not trains)
        if trains:
            self._saved[at, number] = _Saved(inputs, output, auxiliary)
        else:
            self._wait_for(action._replace(micro_batch=number - self._most_in_flight(at)))

    def _run(
        self, at: StageId, number: int, inputs: Mapping[StageId, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A stage's output and its auxiliary loss."""
        self._gradient_sync.before_forward(at.module)
        named = {source.module: tensor for source, tensor in inputs.items()}
        returned = self._pipeline.run(at.module, self._batches[number], named)
        if not isinstance(returned, StageOutput):
            return returned, None
        if self._backward and at.module in self._pipeline.frozen:
            raise ScheduleError(
                f"run({at.module!r}, ...) returned an auxiliary loss, but {at.module!r} is frozen; return the output alone, or "
                f"remove {at.module!r} from frozen="
            )
        auxiliary = _scalar(f"run({at.module!r}, ...).loss", returned.loss)
        self._auxiliary_losses.setdefault(at.module, []).append(auxiliary.detach())
        return returned.output, auxiliary

    def _do_backward(self, action: Action, gradients: dict[StageId, torch.Tensor]) -> None:
        at, number = action.at, action.micro_batch
        inputs, output, auxiliary = self._saved.pop((at, number))
        self._wait_for(Action(Phase.FORWARD, at, number))
        self._gradient_sync.before_backward(at.module, is_last=number == len(self._batches) - 1)
        roots = [(output, next(iter(gradients.values()), None)), (auxiliary, None)]
        trained = [(root, gradient) for root, gradient in roots if root is not None and root.requires_grad]
        if trained:
            torch.autograd.backward([root for root, _ in trained], [gradient for _, gradient in trained])
        for source, tensor in inputs.items():
            if self._has_gradient(source):
                gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
                # A copy: autograd may use the same memory for a parameter's gradient, and add to it.
                self._send(action, source, gradient, back=True, copy=True)
        # The stages before have sent this micro-batch only after the backward of one that is so many earlier.
        self._wait_for(action._replace(micro_batch=number - max(map(self._most_in_flight, inputs), default=0)))

    def _send(self, action: Action, source: StageId, tensor: torch.Tensor, *, back: bool, copy: bool) -> None:
        """Send over the bridge that begins at `source`; the receivers may include this rank."""
        after = self._pipeline.graph.after[source]
        assert after is not None
        transfer = self._transfer(tensor, source, action.micro_batch, back=back, copy=copy).start()
        if self._is_local(source):
            waits, other = (source, after) if back else (after, source)
            self._receiving[action._replace(at=waits)][other] = transfer
        else:
            self._sending[action].append(transfer)

    def _transfer(
        self, tensor: torch.Tensor | None, source: StageId, micro_batch: int, *, back: bool, copy: bool = False
    ) -> Transfer:
        """The transfer of a micro-batch over the bridge that begins at `source`."""
        return self._pipeline.bridges[source].transfer(
            tensor,
            self._spec(source, micro_batch),
            back=back,
            options=TransferOptions(copy=copy),
            position=self._position._replace(micro_batch=micro_batch),
            returns=Returns.YES if self._has_gradient(source) else Returns.NO,
        )

    def _wait_for(self, action: Action) -> None:
        for transfer in self._sending.pop(action, ()):
            transfer.wait()

    def _awaited(self, action: Action) -> list[tuple[StageId, StageId]]:
        """The bridges from which an action gets its inputs: the stage at which each begins, and the stage that sends."""
        if action.phase is Phase.FORWARD:
            return [(source, source) for source in self._pipeline.graph.before[action.at]]
        after = self._pipeline.graph.after[action.at]
        return [] if after is None else [(action.at, after)]

    def _is_local(self, source: StageId) -> bool:
        """Whether this rank is on both sides of the bridge that begins at a stage."""
        return source in self._pipeline.own_stages and self._pipeline.graph.after[source] in self._pipeline.own_stages

    def _has_gradient(self, source: StageId) -> bool:
        return self._backward and source.module not in self._pipeline.frozen

    def _most_in_flight(self, at: StageId) -> int:
        """The largest number of micro-batches that a stage has begun and not completed."""
        return self._pipeline.graph.distance[at] + 1 + self._pipeline.slack

    def _spec(self, source: StageId, micro_batch: int) -> ActivationSpec:
        spec = self._pipeline.spec_of(source, self._batches[micro_batch])
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
