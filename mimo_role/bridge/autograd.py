"""Calls of bridges as autograd nodes: forward transfers activations, backward transfers their gradients back.

On a rank that only receives activations, several backward passes may reach the same node, for two losses or for one sample
after another, and the sender must get their sum. So gradients are sent when no more can be added (`OwedGradients`): when the
node has been freed, at this rank's next call of a bridge, or at an optimizer's next step.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from mimo_role.bridge.activation_spec import ActivationSpec, takes_gradients
from mimo_role.bridge.backward_pass import is_in_backward
from mimo_role.bridge.batch_ledger import BatchLedger
from mimo_role.bridge.bridge_base import BridgeBase
from mimo_role.bridge.frames import BatchKey, Returns
from mimo_role.bridge.owed_gradients import OwedGradients
from mimo_role.bridge.transfer import Transfer, TransferOptions, start_together

_FORWARD = TransferOptions(copy=True, keep=True)
_BACK = TransferOptions(copy=True, keep=True, headers_first=True)


class Passage(NamedTuple):
    """One bridge's part of a call of several bridges."""

    bridge: BridgeBase
    spec: ActivationSpec
    activations: torch.Tensor | None = None
    """On a sender."""


def cross_together(passages: Sequence[Passage], *, requires_grad: bool = True) -> list[torch.Tensor]:
    """Call several bridges at once: their transfers run at the same time, and so do those of their gradients.

    Args:
        passages: the bridges to which this rank belongs, in the same order on all ranks.
        requires_grad: whether gradients come back.

    Returns:
        The result of each bridge. All are one autograd node: a sender passes all its zeros to `torch.autograd.backward`.

    Raises:
        BridgeError: as a bridge's call.
    """
    if torch.compiler.is_compiling():
        # Messages cannot be compiled: dynamo breaks the graph here and runs the call uncompiled.
        call: Callable[..., list[torch.Tensor]] = torch.compiler.disable(_cross_together)  # type: ignore[no-untyped-call]
        return call(passages, requires_grad)
    return _cross_together(passages, requires_grad)


def _cross_together(passages: Sequence[Passage], requires_grad: bool) -> list[torch.Tensor]:
    if is_in_backward():
        raise passages[0].bridge.ledger.fail(
            f"{passages[0].bridge} was called during a backward pass, as torch.utils.checkpoint does to recompute activations; "
            f"it would transfer batch {passages[0].bridge.next_batch} in place of the forward's. Call the bridge outside "
            "of the checkpointed function and pass what it returns"
        )
    has_grad = requires_grad and torch.is_grad_enabled()
    anchors = []
    for bridge, spec, _ in passages:
        # A sender whose activations need no gradient must still receive what the other side sends.
        dtype = spec.dtype if takes_gradients(spec.dtype) else torch.float32
        needs_grad = has_grad and takes_gradients(spec.dtype)
        anchors.append(torch.zeros((), dtype=dtype, device=bridge.device, requires_grad=needs_grad))
    given = [None if activations is None else bridge.as_plain(activations, spec) for bridge, spec, activations in passages]
    call = _Call([passage._replace(activations=None) for passage in passages], has_grad)
    with torch.set_grad_enabled(has_grad):
        outputs = list(_Cross.apply(call, *anchors, *given))  # type: ignore[no-untyped-call]
    call.outputs = [weakref.ref(output) for output in outputs]
    return outputs


class _Call:
    """One call of bridges, from its forward until its gradients have been transferred."""

    def __init__(self, passages: Sequence[Passage], has_grad: bool) -> None:
        self.passages = passages
        self.ledger: BatchLedger = passages[0].bridge.ledger
        self.outputs: list[weakref.ref[torch.Tensor]] = []
        self.has_grad = has_grad
        self.turn = 0
        self.numbers: list[int] = []
        self._early: dict[BatchKey, Transfer] = {}
        self._owed: dict[int, OwedGradients] = {}
        """By passage."""

    def forward(self, given: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
        """Transfer activations; return what has been received for each passage."""
        with self.ledger:
            transfers = []
            for (bridge, spec, _), tensor in zip(self.passages, given, strict=True):
                self.numbers.append(bridge.number_of("forward"))
                returns = Returns.YES if self.has_grad and takes_gradients(spec.dtype) else Returns.NO
                # A copy: the script may change its activations.
                transfers.append(
                    bridge.transfer(tensor, spec, back=False, options=_FORWARD, number=self.numbers[-1], returns=returns)
                )
            self._register_gradients()
            start_together(transfers)
            return self._receive_all(transfers)

    def backward(self, gradients: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        """Transfer gradients: take those of this rank's outputs, return those of its inputs."""
        with self.ledger:
            self.ledger.gradients.send_started(but=list(self._owed.values()))
            if self.turn and any(bridge.is_sender and not bridge.is_receiver for bridge, *_ in self.passages):
                raise self.ledger.fail(f"backward() reached {self} a second time on its sender; call it once for each batch")
            started = []
            for at, ((bridge, spec, _), gradient) in enumerate(zip(self.passages, gradients, strict=True)):
                if at in self._owed:
                    self._owed[at].add(gradient)
                else:
                    started.append((at, self._back(at, bridge, spec, gradient if bridge.is_receiver else None)))
            if started or all(output() is None for output in self.outputs):
                for owed in self._owed.values():
                    owed.send()
            transfers = [transfer for _, transfer in started]
            start_together(transfers)
            received = dict(zip((at for at, _ in started), self._receive_all(transfers), strict=True))
            self._close_turn()
            return [received.get(at) for at in range(len(self.passages))]

    def drop(self) -> None:
        """The node has been freed: no backward pass can reach it."""
        for at, (bridge, spec, _) in enumerate(self.passages):
            if at in self._owed:
                self._owed[at].send()
                continue
            key = bridge.back_key(self.numbers[at], self.turn)
            if self.turn == 0 and self.ledger.gradients.calls.pop(key, None) is not None:
                if bridge.is_receiver:
                    bridge.send_zeros_back(spec, self.numbers[at], 0)
                self.ledger.abandon(key, bridge.senders_back(spec), f"{bridge}: gradients of batch {self.numbers[at]}")

    def __str__(self) -> str:
        return ", ".join(
            f"batch {number} of {bridge}" for number, (bridge, *_) in zip(self.numbers, self.passages, strict=True)
        )

    def _register_gradients(self) -> None:
        """Register the gradients that this rank waits for, and those that it owes."""
        for at, (bridge, spec, _) in enumerate(self.passages):
            if not (self.has_grad and takes_gradients(spec.dtype)):
                continue
            if bridge.is_receiver and not bridge.is_sender:
                self._owed[at] = OwedGradients(bridge, spec, self.numbers[at])
            else:
                self._register(at, bridge, spec)

    def _register(self, at: int, bridge: BridgeBase, spec: ActivationSpec) -> None:
        """Register that gradients will come, and how to receive them before autograd asks for them."""
        key = bridge.back_key(self.numbers[at], self.turn)

        def receive_early(peer: int) -> None:
            if bridge.is_receiver:
                raise self.ledger.fail(
                    f"rank {peer} ran backwards of {bridge} in another order than this rank; call backward() in the same "
                    "order on all ranks"
                )
            if key not in self._early:
                self._early[key] = self._back(at, bridge, spec, None)
            self._early[key].receive_early(peer)

        self.ledger.gradients.calls[key] = receive_early

    def _close_turn(self) -> None:
        for at, (bridge, *_) in enumerate(self.passages):
            if at not in self._owed:
                self.ledger.gradients.calls.pop(bridge.back_key(self.numbers[at], self.turn), None)
        self.turn += 1

    def _back(self, at: int, bridge: BridgeBase, spec: ActivationSpec, gradient: torch.Tensor | None) -> Transfer:
        """The transfer that receives gradients, and on a rank of both sides also sends them."""
        key = bridge.back_key(self.numbers[at], self.turn)
        if (early := self._early.pop(key, None)) is not None:
            return early
        # A copy: autograd may add to a gradient after this. Under NCCL sends and receives are one operation.
        return bridge.transfer(
            gradient,
            spec,
            back=True,
            options=_BACK if bridge.device.type == "cpu" or not bridge.is_receiver else _FORWARD,
            number=self.numbers[at],
            turn=self.turn,
        )

    def _receive_all(self, transfers: Sequence[Transfer]) -> list[torch.Tensor | None]:
        received = [transfer.receive() for transfer in transfers]
        for transfer in transfers:
            transfer.release_result()
        return received


class _Cross(torch.autograd.Function):
    """The node of one call."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        anchors, given = tensors[: len(call.passages)], tensors[len(call.passages) :]
        received = call.forward(given)
        ctx.call = call
        if call.has_grad:
            ctx.finalizer = _Finalizer(call)
        return tuple(
            anchor.new_zeros(()) if tensor is None else tensor for tensor, anchor in zip(received, anchors, strict=True)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        call: _Call = ctx.call
        return None, *(None for _ in call.passages), *call.backward(gradients)


class _Finalizer:
    """Freed together with its node, when no backward pass can reach it any more."""

    def __init__(self, call: _Call) -> None:
        self._call = call

    def __del__(self) -> None:
        self._call.ledger.when_free(self._call.drop)
