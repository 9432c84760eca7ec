"""The execution of one step on one rank: forwards, backwards, and the transfers between stages."""

import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from mimo_role.bridge.activation_spec import ActivationSpec, takes_gradients
from mimo_role.bridge.bridge import Bridge
from mimo_role.bridge.frames import Position, Returns
from mimo_role.bridge.transfer import Transfer, TransferOptions, start_together
from mimo_role.errors import ScheduleError
from mimo_role.monitoring.recorder import Recorder
from mimo_role.monitoring.records import Kind
from mimo_role.pipeline.gradient_sync import StepSync
from mimo_role.pipeline.profiling import span
from mimo_role.pipeline.receive_order import Receive
from mimo_role.pipeline.stage_graph import StageGraph
from mimo_role.pipeline.stage_tensors import Named, Specs, Tensors
from mimo_role.pipeline.timeline import Action, Phase
from mimo_role.topology.stage_links import StageId, StageLink

Batch = TypeVar("Batch")

_COMPUTES = {Phase.FORWARD: Kind.FORWARD, Phase.BACKWARD: Kind.BACKWARD}
_WAITS = {Phase.FORWARD: Kind.WAIT_ACTIVATIONS, Phase.BACKWARD: Kind.WAIT_GRADIENTS}


@dataclass
class StepResults:
    """The losses and outputs of this rank in one step, by module, in the order of the micro-batches."""

    losses: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    """Detached."""
    auxiliary: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    """The auxiliary losses, detached."""
    outputs: dict[str, list[Any]] = field(default_factory=dict)
    """Without backwards: what `run` returned where otherwise a loss is computed."""


@dataclass(frozen=True)
class StageOutput:
    """The return value of `run` for a stage with an auxiliary loss, such as a balancing loss of its experts."""

    output: Tensors
    """What `run` returns for other stages."""
    loss: torch.Tensor
    """A scalar. Its backward runs with that of `output`, where the loss is computed with that of the loss."""


@dataclass(frozen=True)
class Pipeline(Generic[Batch]):
    """The stages that one rank runs; `Schedule1F1B` documents the functions."""

    run: Callable[..., Any]
    spec_of: Callable[[StageId, Batch], Specs]
    losses_of: Mapping[str, Callable[[Any, Batch], torch.Tensor]]
    """By the modules that compute a loss."""
    graph: StageGraph
    own_stages: frozenset[StageId]
    bridge_of: Callable[[StageLink, int], Bridge]
    """The bridge of a link for the tensor with this number."""
    slack: int

    def names_for(self, specs: Named[ActivationSpec], link: StageLink) -> list[str]:
        """The tensors that cross a link; they are numbered in this order."""
        return [name for name in specs.values if link.target in self.graph.targets(link.source, name)]


class Piece(NamedTuple):
    """One tensor of one micro-batch, and the link that it crosses."""

    link: StageLink
    micro_batch: int
    number: int
    """Of the tensor, among those that cross the link."""
    name: str
    checksum: int
    """Of the names of all tensors that cross the link."""


@dataclass(frozen=True)
class StepPlan:
    """What all ranks know of a step."""

    frozen: frozenset[StageId]
    """Stages without a backward."""
    per_run: Mapping[StageId, int]
    """Micro-batches that a stage runs at once."""
    limits: Mapping[StageId, int]
    """The largest number of runs that each stage has begun and not completed."""
    backward: bool
    """Whether there are backwards."""

    def trains(self, at: StageId) -> bool:
        """Whether a stage has backwards."""
        return self.backward and at not in self.frozen

    def micro_batches(self, action: Action) -> range:
        """The micro-batches of an action."""
        per_run = self.per_run[action.at]
        return range(action.number * per_run, (action.number + 1) * per_run)


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
        gradient_sync: StepSync,
        position: Position,
        results: StepResults,
        recorder: Recorder,
        check_frozen: bool,
    ) -> None:
        """
        Args:
            pipeline: the stages.
            plan: of the step.
            batches: the micro-batches.
            gradient_sync: drives data-parallel wrappers in this step.
            position: of the step, for the headers of bridges.
            results: gets the losses and outputs of this rank.
            recorder: records forwards, backwards, waits and sends.
            check_frozen: whether the first forward of a stage without a backward is checked to need none.
        """
        self._pipeline = pipeline
        self._plan = plan
        self._batches = batches
        self._gradient_sync = gradient_sync
        self._position = position._replace(micro_batches=len(batches))
        self._results = results
        self._recorder = recorder
        self._check_frozen = check_frozen
        self._receiving: dict[Action, dict[Piece, Transfer]] = defaultdict(dict)
        """By the action that waits for it."""
        self._prepared: dict[tuple[Action, Action], list[Transfer]] = {}
        """What an action gets from one other."""
        self._sending: defaultdict[Action, list[Transfer]] = defaultdict(list)
        """By the action that has sent it."""
        self._saved: dict[tuple[StageId, int], _Saved] = {}
        self._specs: dict[tuple[StageId, int], Named[ActivationSpec]] = {}

    def prepare(self, receives: Iterable[Receive]) -> None:
        """Take the memory for what is received, so that `receive` does not have to."""
        for action, sender in receives:
            if (action, sender) in self._prepared:
                continue
            transfers, back = self._receiving[action], action.phase is Phase.BACKWARD
            pieces = [piece for piece in self._awaited(action) if self._sender(piece, action.phase) == sender]
            transfers.update({piece: self._transfer(None, piece, back=back).prepare() for piece in pieces})
            self._prepared[action, sender] = [transfers[piece] for piece in pieces]

    def receive(self, receives: Sequence[Receive]) -> None:
        """Start to receive, over all bridges in one call."""
        self.prepare(receives)
        start_together([transfer for receive in receives for transfer in self._prepared[receive]])

    def execute(self, action: Action) -> None:
        """Wait for the inputs of an action, compute, and send; `torch.profiler` shows these spans."""
        inputs = {}
        for piece, transfer in self._receiving.pop(action, {}).items():
            received = self._wait_to_receive(action, piece, transfer)
            inputs[piece] = received
            if transfer.release_result():  # a rank on both sides of a bridge sends with the same transfer
                self._sending[action].append(transfer)
        micro_batches, stage = self._plan.micro_batches(action), f"{action.at.module}.{action.at.stage}"
        with (
            span(action.phase.value, stage, micro_batches),
            self._recorder.span(_COMPUTES[action.phase], stage, micro_batches[0], len(micro_batches)),
        ):
            if action.phase is Phase.FORWARD:
                self._do_forward(action, inputs)
            else:
                self._do_backward(action, inputs)

    def finish(self) -> None:
        """Wait until all that was sent has been received."""
        for action in list(self._sending):
            self._wait_for(action)

    def _wait_to_receive(self, action: Action, piece: Piece, transfer: Transfer) -> torch.Tensor:
        senders = transfer.senders
        if not senders:  # all of it is this rank's own
            return _received(transfer)
        link = str(piece.link)
        with (
            span("bridge", piece.link.source.module),
            self._recorder.span(_WAITS[action.phase], link, piece.micro_batch, 1, senders[0]),
        ):
            received = _received(transfer)
        for sender in senders[1:]:
            self._recorder.arrival(link, piece.micro_batch, sender)
        return received

    def _do_forward(self, action: Action, inputs: dict[Piece, torch.Tensor]) -> None:
        at, trains = action.at, self._plan.trains(action.at)
        if trains:
            for piece, tensor in inputs.items():
                tensor.requires_grad_(self._has_gradient(piece))
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
            self._wait_for(action._replace(number=action.number - self._plan.limits[at]))

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
            named[source.module] = self._specs_of(source, micro_batch).like(of_source)
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
            tensors, specs = Named.of(what, of_one, torch.Tensor), self._specs_of(at, micro_batch)
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
        self._wait_for(action._replace(phase=Phase.FORWARD))
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
            if self._has_gradient(piece):
                sent.append((torch.zeros_like(tensor) if tensor.grad is None else tensor.grad, piece))
        # A copy: autograd may use the same memory for a parameter's gradient, and add to it.
        self._send(action, sent, back=True, copy=True)
        # The stages before have sent these micro-batches only after the backward of those that are so many earlier.
        before = {piece.link.source for piece in saved.inputs}
        behind = max((self._plan.limits[source] * self._plan.per_run[source] for source in before), default=0)
        self._wait_for(action._replace(number=action.number + behind // -self._plan.per_run[at]))

    def _send_forward(self, action: Action, outputs: Mapping[tuple[int, str], torch.Tensor], *, copy: bool) -> None:
        sent = []
        for target in self._pipeline.graph.after[action.at]:
            for piece in self._pieces(StageLink(action.at, target), self._plan.micro_batches(action)):
                sent.append((outputs[piece.micro_batch, piece.name].detach(), piece))
        self._send(action, sent, back=False, copy=copy)

    def _send(self, action: Action, tensors: Sequence[tuple[torch.Tensor, Piece]], *, back: bool, copy: bool) -> None:
        """Send over the bridges of some pieces in one call; the receivers may include this rank."""
        transfers = [(self._transfer(tensor, piece, back=back, copy=copy), piece) for tensor, piece in tensors]
        with ExitStack() as sending:
            for link, micro_batch in dict.fromkeys((piece.link, piece.micro_batch) for each, piece in transfers if each.sends):
                kind = Kind.SEND_GRADIENTS if back else Kind.SEND_ACTIVATIONS
                sending.enter_context(self._recorder.span(kind, str(link), micro_batch, 1))
            start_together([transfer for transfer, _ in transfers])
        for transfer, piece in transfers:
            if self._is_local(piece.link):
                receiver = self._sender(piece, Phase.FORWARD if back else Phase.BACKWARD)._replace(phase=action.phase)
                self._receiving[receiver][piece] = transfer
            else:
                self._sending[action].append(transfer)

    def _transfer(self, tensor: torch.Tensor | None, piece: Piece, *, back: bool, copy: bool = False) -> Transfer:
        return self._pipeline.bridge_of(piece.link, piece.number).transfer(
            tensor,
            self._specs_of(piece.link.source, piece.micro_batch).values[piece.name],
            back=back,
            options=TransferOptions(copy=copy),
            position=self._position._replace(micro_batch=piece.micro_batch, names=piece.checksum),
            returns=Returns.YES if self._has_gradient(piece) else Returns.NO,
        )

    def _wait_for(self, action: Action) -> None:
        sent = self._sending.pop(action, ())
        if not sent:
            return
        micro_batches = self._plan.micro_batches(action)
        with self._recorder.span(Kind.WAIT_SENT, f"{action.at.module}.{action.at.stage}", micro_batches[0], len(micro_batches)):
            for transfer in sent:
                transfer.wait()

    def _awaited(self, action: Action) -> Iterator[Piece]:
        """What an action gets over bridges."""
        micro_batches = self._plan.micro_batches(action)
        if action.phase is Phase.FORWARD:
            for source in self._pipeline.graph.before[action.at]:
                yield from self._pieces(StageLink(source, action.at), micro_batches)
            return
        for target in self._pipeline.graph.after[action.at]:
            for piece in self._pieces(StageLink(action.at, target), micro_batches):
                if self._has_gradient(piece):
                    yield piece

    def _sender(self, piece: Piece, phase: Phase) -> Action:
        """The action that sends a piece forward or back."""
        at = piece.link.source if phase is Phase.FORWARD else piece.link.target
        return Action(phase, at, piece.micro_batch // self._plan.per_run[at])

    def _pieces(self, link: StageLink, micro_batches: Iterable[int]) -> Iterator[Piece]:
        for micro_batch in micro_batches:
            names = self._pipeline.names_for(self._specs_of(link.source, micro_batch), link)
            checksum = _checksum(tuple(names))
            for number, name in enumerate(names):
                yield Piece(link, micro_batch, number, name, checksum)

    def _is_local(self, link: StageLink) -> bool:
        """Whether this rank is on both sides of a link."""
        return link.source in self._pipeline.own_stages and link.target in self._pipeline.own_stages

    def _has_gradient(self, piece: Piece) -> bool:
        spec = self._specs_of(piece.link.source, piece.micro_batch).values[piece.name]
        return self._plan.trains(piece.link.source) and takes_gradients(spec.dtype)

    def _specs_of(self, source: StageId, micro_batch: int) -> Named[ActivationSpec]:
        key = source, micro_batch
        if key not in self._specs:
            found = self._pipeline.spec_of(source, self._batches[micro_batch])
            self._specs[key] = Named.of(f"spec_of({source}, ...)", found, ActivationSpec)
        return self._specs[key]


def _received(transfer: Transfer) -> torch.Tensor:
    received = transfer.receive()
    assert received is not None
    return received


@lru_cache(maxsize=256)
def _checksum(names: tuple[str, ...]) -> int:
    return zlib.crc32(repr(names).encode()) >> 1


def _described(value: object) -> str:
    return f"{len(value)} values" if isinstance(value, tuple | list) else type(value).__name__


def _scalar(what: str, value: object) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or value.dim() > 0:
        found = f"a tensor of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise ScheduleError(f"{what} returned {found}; it returns a tensor of no dimensions")
    return value
