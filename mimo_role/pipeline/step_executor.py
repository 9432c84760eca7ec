"""The execution of one step on one rank: forwards and backwards."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple

import torch

from mimo_role.errors import ScheduleError
from mimo_role.monitoring.recorder import Recorder
from mimo_role.monitoring.records import Kind
from mimo_role.pipeline.gradient_sync import StepSync
from mimo_role.pipeline.profiling import span
from mimo_role.pipeline.stage_tensors import Named
from mimo_role.pipeline.step_plan import Batch, Piece, Pipeline, StageOutput, StepPlan, StepResults
from mimo_role.pipeline.step_transfers import StepTransfers
from mimo_role.pipeline.timeline import Action, Phase
from mimo_role.topology.stage_links import StageId, StageLink

_COMPUTES = {Phase.FORWARD: Kind.FORWARD, Phase.BACKWARD: Kind.BACKWARD}


class _Saved(NamedTuple):
    """What a stage saves of a run between its forward and its backward."""

    inputs: dict[Piece, torch.Tensor]
    outputs: dict[tuple[int, str], torch.Tensor]
    """By micro-batch and name."""
    losses: list[torch.Tensor]


class StepExecutor(Generic[Batch]):
    """Executes the actions of one step on one rank."""

    def __init__(
        self,
        pipeline: Pipeline[Batch],
        plan: StepPlan,
        batches: Sequence[Batch],
        *,
        transfers: StepTransfers[Batch],
        gradient_sync: StepSync,
        results: StepResults,
        recorder: Recorder,
        check_frozen: bool,
    ) -> None:
        """
        Args:
            pipeline: the stages.
            plan: of the step.
            batches: the micro-batches.
            transfers: of the step.
            gradient_sync: drives data-parallel wrappers in this step.
            results: gets the losses and outputs of this rank.
            recorder: records forwards and backwards.
            check_frozen: whether the first forward of a stage without a backward is checked to need none.
        """
        self._pipeline = pipeline
        self._plan = plan
        self._batches = batches
        self._transfers = transfers
        self._gradient_sync = gradient_sync
        self._results = results
        self._recorder = recorder
        self._check_frozen = check_frozen
        self._saved: dict[tuple[StageId, int], _Saved] = {}

    def execute(self, action: Action) -> None:
        """Wait for the inputs of an action, compute, and send; `torch.profiler` shows these spans."""
        inputs = self._transfers.inputs(action)
        micro_batches, stage = self._plan.micro_batches(action), f"{action.at.module}.{action.at.stage}"
        with (
            span(action.phase.value, stage, micro_batches),
            self._recorder.span(_COMPUTES[action.phase], stage, micro_batches[0], len(micro_batches)),
        ):
            if action.phase is Phase.FORWARD:
                self._do_forward(action, inputs)
            else:
                self._do_backward(action, inputs)

    def _do_forward(self, action: Action, inputs: dict[Piece, torch.Tensor]) -> None:
        at, trains = action.at, self._plan.trains(action.at)
        if trains:
            for piece, tensor in inputs.items():
                tensor.requires_grad_(self._transfers.has_gradient(piece))
        with torch.set_grad_enabled(trains or self._is_checked(action)):
            returned, auxiliary = self._run(action, inputs)
        is_last = not self._pipeline.graph.after[at]
        with torch.set_grad_enabled(trains or self._is_checked(action)):
            losses = self._losses(action, returned) if is_last else []
        self._check_trains(action, losses)
        outputs = {} if is_last else self._outputs(action, returned)
        if not is_last:
            self._send_forward(action, outputs, copy=not trains)
        if trains:
            self._saved[at, action.number] = _Saved(inputs, outputs, losses + auxiliary)
        else:
            self._transfers.wait_for(action._replace(number=action.number - self._plan.limits[at]))

    def _run(self, action: Action, inputs: Mapping[Piece, torch.Tensor]) -> tuple[list[Any], list[torch.Tensor]]:
        """What a stage returns for each micro-batch of a run, and its auxiliary losses."""
        at = action.at
        self._gradient_sync.before_forward(at.module, trains=self._plan.trains(at))
        batches = [self._batches[number] for number in self._plan.micro_batches(action)]
        named = [self._named_inputs(at, number, inputs) for number in self._plan.micro_batches(action)]
        if len(batches) == 1:
            returned = [self._pipeline.run(at.module, batches[0], named[0])]
        else:
            together = {name: tuple(of_one[name] for of_one in named) for name in named[0]}
            found = self._pipeline.run(at.module, tuple(batches), together)
            if not isinstance(found, tuple | list) or len(found) != len(batches):
                raise ScheduleError(
                    f"run({at.module!r}, ...) returned {_described(found)}; for {len(batches)} micro-batches at once it "
                    "returns a sequence of as many"
                )
            returned = list(found)
        what = f"run({at.module!r}, ...).loss"
        auxiliary = [_scalar(what, one.loss) for one in returned if isinstance(one, StageOutput)]
        self._check_trains(action, auxiliary)
        if auxiliary:
            self._results.auxiliary.setdefault(at.module, []).extend(loss.detach() for loss in auxiliary)
        return [one.output if isinstance(one, StageOutput) else one for one in returned], auxiliary

    def _named_inputs(self, at: StageId, micro_batch: int, inputs: Mapping[Piece, torch.Tensor]) -> dict[str, Any]:
        """The inputs of one micro-batch, by the module that they come from."""
        named = {}
        for source in self._pipeline.graph.before[at]:
            of_source = {
                piece.name: tensor
                for piece, tensor in inputs.items()
                if piece.link.source == source and piece.micro_batch == micro_batch
            }
            named[source.module] = self._transfers.specs_of(source, micro_batch).like(of_source)
        return named

    def _losses(self, action: Action, returned: list[Any]) -> list[torch.Tensor]:
        """The losses of a run; without backwards, none: its outputs are the results."""
        module = action.at.module
        if not self._plan.backward:
            self._results.outputs.setdefault(module, []).extend(returned)
            return []
        losses = []
        for number, output in zip(self._plan.micro_batches(action), returned, strict=True):
            losses.append(_scalar("loss_of()", self._pipeline.losses_of[module](output, self._batches[number])))
            self._results.losses.setdefault(module, []).append(losses[-1].detach())
        return losses

    def _outputs(self, action: Action, returned: list[Any]) -> dict[tuple[int, str], torch.Tensor]:
        """The tensors of a run, plain, by micro-batch and name."""
        at, outputs = action.at, {}
        what = f"run({at.module!r}, ...)"
        for micro_batch, of_one in zip(self._plan.micro_batches(action), returned, strict=True):
            tensors, specs = Named.of(what, of_one, torch.Tensor), self._transfers.specs_of(at, micro_batch)
            tensors.check_like(specs, what)
            if unknown := self._pipeline.graph.named_destinations(at) - specs.values.keys():
                raise ScheduleError(f"destinations: {at} has no tensor {min(unknown)!r}; it has {', '.join(specs.values)}")
            for name, spec in specs.values.items():
                for target in self._pipeline.graph.targets(at, name)[:1]:
                    bridge = self._pipeline.bridge_of(StageLink(at, target), 0)
                    outputs[micro_batch, name] = bridge.as_plain(tensors.values[name], spec)
        if self._plan.trains(at):
            self._gradient_sync.check_outputs(at.module, outputs.values())
        self._check_trains(action, outputs.values())
        return outputs

    def _is_checked(self, action: Action) -> bool:
        """Whether a forward without a backward runs as if it had one, to see whether it needs none."""
        return self._check_frozen and self._plan.backward and action.number == 0 and not self._plan.trains(action.at)

    def _check_trains(self, action: Action, tensors: Iterable[torch.Tensor]) -> None:
        at = action.at
        if self._is_checked(action) and any(tensor.requires_grad for tensor in tensors):
            raise ScheduleError(
                f"frozen: {at} has parameters to train, which would get no gradients; remove {at.module!r} from frozen=, or "
                "set requires_grad_(False) on what does not train"
            )

    def _do_backward(self, action: Action, gradients: dict[Piece, torch.Tensor]) -> None:
        at = action.at
        saved = self._saved.pop((at, action.number))
        self._transfers.wait_for(action._replace(phase=Phase.FORWARD))
        is_last = (action.number + 1) * self._plan.per_run[at] == len(self._batches)
        self._gradient_sync.before_backward(at.module, is_last=is_last)
        of_outputs: dict[tuple[int, str], torch.Tensor] = {}
        targets = self._pipeline.graph.after[at]
        # In one order on all replicas, so that sums have the same bits.
        for piece, gradient in sorted(gradients.items(), key=lambda item: targets.index(item[0].link.target)):
            key = piece.micro_batch, piece.name
            of_outputs[key] = of_outputs[key] + gradient if key in of_outputs else gradient
        roots: list[tuple[torch.Tensor, torch.Tensor | None]] = [(loss, None) for loss in saved.losses]
        roots += [(output, of_outputs[key]) for key, output in saved.outputs.items() if key in of_outputs]
        roots = [(root, gradient) for root, gradient in roots if root.requires_grad]
        if roots:
            torch.autograd.backward([root for root, _ in roots], [gradient for _, gradient in roots])
        sent: list[tuple[torch.Tensor, Piece]] = []
        for piece, tensor in saved.inputs.items():
            if self._transfers.has_gradient(piece):
                sent.append((torch.zeros_like(tensor) if tensor.grad is None else tensor.grad, piece))
        # A copy: autograd may use the same memory for a parameter's gradient, and add to it.
        self._transfers.send(action, sent, back=True, copy=True)
        # The stages before have sent these micro-batches only after the backward of those that are so many earlier.
        before = {piece.link.source for piece in saved.inputs}
        behind = max((self._plan.limits[source] * self._plan.per_run[source] for source in before), default=0)
        self._transfers.wait_for(action._replace(number=action.number + behind // -self._plan.per_run[at]))

    def _send_forward(self, action: Action, outputs: Mapping[tuple[int, str], torch.Tensor], *, copy: bool) -> None:
        sent = []
        for target in self._pipeline.graph.after[action.at]:
            for piece in self._transfers.pieces(StageLink(action.at, target), self._plan.micro_batches(action)):
                sent.append((outputs[piece.micro_batch, piece.name].detach(), piece))
        self._transfers.send(action, sent, back=False, copy=copy)


def _described(value: object) -> str:
    return f"{len(value)} values" if isinstance(value, tuple | list) else type(value).__name__


def _scalar(what: str, value: object) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or value.dim() > 0:
        found = f"a tensor of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise ScheduleError(f"{what} returned {found}; it returns a tensor of no dimensions")
    return value
