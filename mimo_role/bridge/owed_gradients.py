"""Gradients that a rank owes to the senders of a batch, until autograd is done with it."""

import sys
import threading
import weakref
from types import FrameType
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mimo_role.bridge.batch_ledger import BatchLedger
from mimo_role.bridge.bridge_base import BridgeBase
from mimo_role.bridge.handshake import ActivationSpec

_LOOK_S = 0.1
_LOOKS = 3
"""Looks at which a thread stands at the same instruction, before it is considered blocked."""


class OwedGradients:
    """The sum of what backward passes bring for one batch over one bridge."""

    def __init__(self, bridge: BridgeBase, spec: ActivationSpec, number: int) -> None:
        """
        Args:
            bridge: of which this rank is a receiver only.
            spec, number: of the batch.
        """
        self._bridge = bridge
        self._spec = spec
        self._number = number
        self._sum: torch.Tensor | None = None
        self._is_sent = False
        self._ledger = bridge.ledger
        self._ledger.owed[bridge.back_key(number)] = self

    def add(self, gradient: torch.Tensor) -> None:
        """Add what a backward pass brings.

        Raises:
            BridgeError: the gradients have been sent.
        """
        if self._is_sent:
            raise self._ledger.fail(
                f"backward() reached batch {self._number} of {self._bridge} again after its gradients had been sent; call "
                "it for all losses of a batch before the next call of a bridge and the optimizer's step, or add up the losses"
            )
        if self._sum is None:
            # A copy: autograd may use the memory for a parameter's gradient, and add to it.
            self._sum = gradient.detach().clone(memory_format=torch.contiguous_format)
            self._ledger.started.append(self)
            _Watch.of(self._ledger).look_on()
        else:
            self._sum += gradient

    def send(self) -> None:
        """Send the sum; zeros, without data, if there is none. Only once."""
        if self._is_sent:
            return
        self._is_sent = True
        self._ledger.owed.pop(self._bridge.back_key(self._number), None)
        if self._sum is None:
            self._bridge.send_zeros_back(self._spec, self._number, 0)
            return
        if self in self._ledger.started:
            self._ledger.started.remove(self)
        self._bridge.crossing(self._sum, self._spec, back=True, keeps=True, number=self._number).start()
        self._sum = None


class _Watch:
    """Sends gradients when autograd must be done with their batch although nothing shows it.

    Before an optimizer's step; and where this rank is blocked, perhaps in a collective with a rank that waits for them.
    """

    def __init__(self, ledger: BatchLedger) -> None:
        self._ledger = weakref.ref(ledger)
        self._owner = threading.get_ident()
        self._is_needed = threading.Event()
        handle: Any = register_optimizer_step_pre_hook(lambda *_: self._send())
        for end in (handle.remove, self._is_needed.set):
            weakref.finalize(ledger, end).atexit = False
        threading.Thread(target=self._look, name="mimo-launch gradients", daemon=True).start()

    @classmethod
    def of(cls, ledger: BatchLedger) -> "_Watch":
        """The ledger's, made when it is first needed."""
        if ledger not in _watches:
            _watches[ledger] = cls(ledger)
        return _watches[ledger]

    def look_on(self) -> None:
        """Look to it that what a backward pass of this thread has brought is sent."""
        self._owner = threading.get_ident()
        self._is_needed.set()

    def _send(self) -> None:
        if (ledger := self._ledger()) is not None:
            with ledger:
                ledger.send_started()

    def _look(self) -> None:
        at, looks = None, 0
        while True:
            self._is_needed.wait()
            is_needed = self._has_started()
            if is_needed is None:
                return
            if not is_needed:
                self._is_needed.clear()
                continue
            threading.Event().wait(_LOOK_S)
            frame = sys._current_frames().get(self._owner)
            here = None if frame is None or _is_in_autograd(frame) else (id(frame), frame.f_lasti)
            del frame  # it keeps all that the script has
            at, looks = here, looks + 1 if here is not None and here == at else 0
            if looks >= _LOOKS:
                self._send_when_free()

    def _has_started(self) -> bool | None:
        """Whether gradients wait to be sent; `None` where there is no ledger any more."""
        ledger = self._ledger()
        return None if ledger is None else bool(ledger.started)

    def _send_when_free(self) -> None:
        if (ledger := self._ledger()) is not None:
            ledger.when_free(ledger.send_started)


_watches: "weakref.WeakKeyDictionary[BatchLedger, _Watch]" = weakref.WeakKeyDictionary()


def _is_in_autograd(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.endswith("torch/autograd/graph.py"):
            return True
        frame = frame.f_back
    return False
