"""The transfers between the stages of one rank and the others in one step."""

import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import lru_cache
from typing import Generic

import torch

from mimo_role.bridge.activation_spec import ActivationSpec, takes_gradients
from mimo_role.bridge.frames import Position, Returns
from mimo_role.bridge.transfer import Transfer, TransferOptions, start_together
from mimo_role.monitoring.recorder import Recorder
from mimo_role.monitoring.records import Kind
from mimo_role.pipeline.profiling import span
from mimo_role.pipeline.receive_order import Receive
from mimo_role.pipeline.stage_tensors import Named
from mimo_role.pipeline.step_plan import Batch, Piece, Pipeline, StepPlan
from mimo_role.pipeline.timeline import Action, Phase
from mimo_role.topology.stage_links import StageId, StageLink

_WAITS = {Phase.FORWARD: Kind.WAIT_ACTIVATIONS, Phase.BACKWARD: Kind.WAIT_GRADIENTS}


class StepTransfers(Generic[Batch]):
    """What one rank receives and sends in one step, by the action that waits for it or has sent it."""

    def __init__(
        self, pipeline: Pipeline[Batch], plan: StepPlan, batches: Sequence[Batch], position: Position, recorder: Recorder
    ) -> None:
        """
        Args:
            pipeline: the stages.
            plan: of the step.
            batches: the micro-batches.
            position: of the step, for the headers of bridges.
            recorder: records waits and sends.
        """
        self._pipeline = pipeline
        self._plan = plan
        self._batches = batches
        self._position = position._replace(micro_batches=len(batches))
        self._recorder = recorder
        self._receiving: dict[Action, dict[Piece, Transfer]] = defaultdict(dict)
        """By the action that waits for it."""
        self._prepared: dict[tuple[Action, Action], list[Transfer]] = {}
        """What an action gets from one other."""
        self._sending: defaultdict[Action, list[Transfer]] = defaultdict(list)
        """By the action that has sent it."""
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

    def inputs(self, action: Action) -> dict[Piece, torch.Tensor]:
        """Wait for what an action gets."""
        inputs = {}
        for piece, transfer in self._receiving.pop(action, {}).items():
            inputs[piece] = self._wait_to_receive(action, piece, transfer)
            if transfer.release_result():  # a rank on both sides of a bridge sends with the same transfer
                self._sending[action].append(transfer)
        return inputs

    def send(self, action: Action, tensors: Sequence[tuple[torch.Tensor, Piece]], *, back: bool, copy: bool) -> None:
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

    def wait_for(self, action: Action) -> None:
        """Wait until what an action has sent has been received."""
        sent = self._sending.pop(action, ())
        if not sent:
            return
        micro_batches = self._plan.micro_batches(action)
        with self._recorder.span(Kind.WAIT_SENT, f"{action.at.module}.{action.at.stage}", micro_batches[0], len(micro_batches)):
            for transfer in sent:
                transfer.wait()

    def finish(self) -> None:
        """Wait until all that was sent has been received."""
        for action in list(self._sending):
            self.wait_for(action)

    def pieces(self, link: StageLink, micro_batches: Iterable[int]) -> Iterator[Piece]:
        """The tensors of some micro-batches that cross a link."""
        for micro_batch in micro_batches:
            names = self._pipeline.names_for(self.specs_of(link.source, micro_batch), link)
            checksum = _checksum(tuple(names))
            for number, name in enumerate(names):
                yield Piece(link, micro_batch, number, name, checksum)

    def has_gradient(self, piece: Piece) -> bool:
        """Whether a gradient comes back for it."""
        spec = self.specs_of(piece.link.source, piece.micro_batch).values[piece.name]
        return self._plan.trains(piece.link.source) and takes_gradients(spec.dtype)

    def specs_of(self, source: StageId, micro_batch: int) -> Named[ActivationSpec]:
        """What a stage returns for one micro-batch."""
        key = source, micro_batch
        if key not in self._specs:
            found = self._pipeline.spec_of(source, self._batches[micro_batch])
            self._specs[key] = Named.of(f"spec_of({source}, ...)", found, ActivationSpec)
        return self._specs[key]

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

    def _transfer(self, tensor: torch.Tensor | None, piece: Piece, *, back: bool, copy: bool = False) -> Transfer:
        return self._pipeline.bridge_of(piece.link, piece.number).transfer(
            tensor,
            self.specs_of(piece.link.source, piece.micro_batch).values[piece.name],
            back=back,
            options=TransferOptions(copy=copy),
            position=self._position._replace(micro_batch=piece.micro_batch, names=piece.checksum),
            returns=Returns.YES if self.has_gradient(piece) else Returns.NO,
        )

    def _awaited(self, action: Action) -> Iterator[Piece]:
        """What an action gets over bridges."""
        micro_batches = self._plan.micro_batches(action)
        if action.phase is Phase.FORWARD:
            for source in self._pipeline.graph.before[action.at]:
                yield from self.pieces(StageLink(source, action.at), micro_batches)
            return
        for target in self._pipeline.graph.after[action.at]:
            for piece in self.pieces(StageLink(action.at, target), micro_batches):
                if self.has_gradient(piece):
                    yield piece

    def _sender(self, piece: Piece, phase: Phase) -> Action:
        """The action that sends a piece forward or back."""
        at = piece.link.source if phase is Phase.FORWARD else piece.link.target
        return Action(phase, at, piece.micro_batch // self._plan.per_run[at])

    def _is_local(self, link: StageLink) -> bool:
        """Whether this rank is on both sides of a link."""
        return link.source in self._pipeline.own_stages and link.target in self._pipeline.own_stages


def _received(transfer: Transfer) -> torch.Tensor:
    received = transfer.receive()
    assert received is not None
    return received


@lru_cache(maxsize=256)
def _checksum(names: tuple[str, ...]) -> int:
    return zlib.crc32(repr(names).encode()) >> 1
