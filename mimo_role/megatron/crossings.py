"""One bridge as a schedule uses it that sends and receives micro-batches in order, one at a time."""

from collections import deque
from typing import NamedTuple

import torch

from mimo_role.bridge.activation_spec import ActivationSpec, takes_gradients
from mimo_role.bridge.bridge import Bridge
from mimo_role.bridge.frames import Position, Returns
from mimo_role.bridge.transfer import Transfer, TransferOptions
from mimo_role.errors import BridgeError, ScheduleError
from mimo_role.megatron.output_forms import OutputForm, ReceivingForm, SendingForm
from mimo_role.topology.stage_links import StageId, StageLink


class Receiving(NamedTuple):
    """What is being received."""

    transfer: Transfer
    spec: ActivationSpec


class Crossing:
    """What both ends of a bridge have: batches whose gradients have not crossed yet, and transfers on their way."""

    def __init__(self, bridge: Bridge, form: OutputForm, *, has_gradients: bool, ahead: int) -> None:
        """
        Args:
            bridge: on one side of which this rank is.
            form: of what crosses.
            has_gradients: whether gradients come back in training; the same on both sides.
            ahead: how many transfers may be on their way before this rank waits for the first.
        """
        self.bridge = bridge
        self.has_gradients = has_gradients
        self._form = form
        self._ahead = ahead
        self._without_gradient: deque[tuple[ActivationSpec, torch.Size]] = deque()
        """Spec, and shape of this rank's tensor."""
        self._sending: deque[Transfer] = deque()

    @property
    def link(self) -> str:
        """Both stages, the same on all ranks: `vision stage 0 -> language stage 0`."""
        source, destination = self.bridge.source, self.bridge.destination
        return str(StageLink(StageId(source.module, source.stage), StageId(destination.module, destination.stage)))

    def sent(self, transfer: Transfer) -> Transfer | None:
        """Something has been started to be sent.

        Returns:
            What was sent long before, if it is to be waited for so that this rank is not too far ahead.
        """
        transfer.receive()
        self._sending.append(transfer)
        return self._sending.popleft() if len(self._sending) > self._ahead else None

    def _received(self, transfer: Transfer, spec: ActivationSpec) -> torch.Tensor:
        """Wait for what a transfer receives."""
        found = transfer.receive()
        assert found is not None
        transfer.release_result()
        return self._form.unpacked(found, spec)

    def _register(self, spec: ActivationSpec, shape: torch.Size) -> None:
        if self.has_gradients and torch.is_grad_enabled():
            self._without_gradient.append((spec, shape))

    def _next_without_gradient(self) -> tuple[ActivationSpec, torch.Size]:
        """The earliest micro-batch whose gradients have not crossed."""
        if not self._without_gradient:
            raise ScheduleError(
                f"{self.bridge}: no micro-batch of rank {self.bridge.rank} is without gradients; a schedule with backwards "
                "does not run under torch.no_grad()"
            )
        return self._without_gradient.popleft()

    def _transfer(
        self, tensor: torch.Tensor | None, spec: ActivationSpec, position: Position, *, back: bool, copy: bool = False
    ) -> Transfer:
        return self.bridge.transfer(
            tensor,
            spec,
            back=back,
            options=TransferOptions(copy=copy, keep=True),
            position=position,
            returns=Returns.YES if self.has_gradients else Returns.NO,
        )


class Outgoing(Crossing):
    """The end at which activations are sent."""

    def __init__(
        self, bridge: Bridge, form: SendingForm, *, has_gradients: bool, ahead: int, dtype: torch.dtype | None
    ) -> None:
        """
        Args:
            bridge, form, has_gradients, ahead: as for `Crossing`.
            dtype: of what is sent; `None` for any that has gradients.
        """
        super().__init__(bridge, form, has_gradients=has_gradients, ahead=ahead)
        self._sending_form = form
        self._dtype = dtype

    def send(self, output: torch.Tensor, position: Position) -> Transfer:
        """The transfer of a micro-batch's activations, not started. Receivers get its spec at once.

        Raises:
            BridgeError: the tensor does not fit.
        """
        if not takes_gradients(output.dtype) or self._dtype not in (None, output.dtype):
            wanted = "floating-point numbers" if self._dtype is None else f"config.pipeline_dtype={self._dtype}"
            raise BridgeError(f"{self.bridge}: rank {self.bridge.rank} sends {output.dtype}; the schedule takes {wanted}")
        spec = self._sending_form.spec_of(output)
        # A tensor that needs no gradient may be a buffer that the model overwrites.
        transfer = self._transfer(
            self._form.packed(output.detach(), spec), spec, position, back=False, copy=not output.requires_grad
        )
        self.bridge.exchange_spec(spec)
        self._register(spec, output.shape)
        return transfer

    def receive_back(self, position: Position) -> Receiving:
        """The gradients of the next micro-batch, not started."""
        spec, _ = self._next_without_gradient()
        return Receiving(self._transfer(None, spec, position, back=True), spec)

    def received_back(self, receiving: Receiving) -> torch.Tensor:
        """Wait for gradients.

        Raises:
            BridgeError: they did not come, or something else came.
        """
        return self._received(*receiving)


class Incoming(Crossing):
    """The end at which activations are received."""

    def __init__(self, bridge: Bridge, form: ReceivingForm, *, has_gradients: bool, ahead: int) -> None:
        """As for `Crossing`."""
        super().__init__(bridge, form, has_gradients=has_gradients, ahead=ahead)
        self._samples = form.samples

    def receive(self, position: Position) -> Receiving:
        """The activations of the next micro-batch, not started. Waits for the sender's spec.

        Raises:
            BridgeError: it did not come within the timeout, or the senders disagree.
        """
        spec = self.bridge.exchange_spec(samples=self._samples)
        return Receiving(self._transfer(None, spec, position, back=False), spec)

    def received(self, receiving: Receiving) -> torch.Tensor:
        """Wait for activations; a leaf that requires gradients, as Megatron-Core's schedule needs it.

        Raises:
            BridgeError: they did not come, or something else came.
        """
        found = self._received(*receiving)
        self._register(receiving.spec, found.shape)
        return found.requires_grad_()

    def send_back(self, gradient: torch.Tensor | None, position: Position) -> Transfer:
        """The transfer of a micro-batch's gradients, not started; `None` for zeros.

        Raises:
            BridgeError: the tensor does not fit.
        """
        spec, shape = self._next_without_gradient()
        if gradient is None:
            gradient = torch.zeros(shape, dtype=spec.dtype, device=self.bridge.device)
        # A copy: autograd may use the same memory for a parameter's gradient, and add to it.
        return self._transfer(self._form.packed(gradient, spec), spec, position, back=True, copy=True)
