"""Gradients that a rank owes to the senders of a batch, until no backward pass can contribute to them."""

import sys
import threading
import weakref
from functools import cache
from types import FrameType

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mimo_role.bridge.activation_spec import ActivationSpec
from mimo_role.bridge.batch_ledger import BatchLedger
from mimo_role.bridge.bridge_base import BridgeBase
from mimo_role.bridge.transfer import TransferOptions

_MOST_RUNS = 4
"""If a rank sends more runs of elements than this, copying the whole is faster."""

_POLL_S = 0.1
_BLOCKED_POLLS = 3
"""Polls at which a thread is at the same instruction before it is considered blocked."""


class OwedGradients:
    """The sum of the gradients from all backward passes for one batch of one bridge."""

    def __init__(self, bridge: BridgeBase, spec: ActivationSpec, number: int) -> None:
        """
        Args:
            bridge: one over which this rank only receives activations.
            spec, number: of the batch.
        """
        self._bridge = bridge
        self._spec = spec
        self._number = number
        self._sum: torch.Tensor | None = None
        self._runs: tuple[tuple[int, int], ...] | None = None
        """The elements of the flattened sum that are summed; `None`: all."""
        self._is_sent = False
        self._ledger = bridge.ledger
        self._ledger.gradients.owed[bridge.back_key(number)] = self

    def add(self, gradient: torch.Tensor) -> None:
        """Add the gradient of one backward pass.

        Raises:
            BridgeError: the gradients have been sent.
        """
        if self._is_sent:
            raise self._ledger.fail(
                f"backward() reached batch {self._number} of {self._bridge} again after its gradients had been sent; call "
                "it for all losses of a batch before the next call of a bridge and the optimizer's step, or add up the losses"
            )
        if self._sum is None:
            self._sum = self._copy(gradient.detach())
            self._ledger.gradients.started.append(self)
            _Watcher.of(self._ledger).watch_this_thread()
        elif self._runs is None:
            self._sum += gradient
        else:
            total, added = self._sum.view(-1), gradient.reshape(-1)
            for start, stop in self._runs:
                total[start:stop] += added[start:stop]

    def _copy(self, gradient: torch.Tensor) -> torch.Tensor:
        """A copy, since autograd may use the memory for a parameter's gradient, and add to it. It has what this rank sends."""
        runs = self._bridge.runs_sent_back(self._spec)
        sent = sum(stop - start for start, stop in runs)
        if sent == gradient.numel() or len(runs) > _MOST_RUNS or not gradient.is_contiguous():
            return gradient.clone(memory_format=torch.contiguous_format)
        self._runs = runs
        copy = self._bridge.take(tuple(gradient.shape), gradient.dtype)
        target, flat = copy.view(-1), gradient.view(-1)
        for start, stop in runs:
            target[start:stop] = flat[start:stop]
        return copy

    def send(self) -> None:
        """Send the sum, once; if no backward pass has contributed, a header that stands for zeros."""
        if self._is_sent:
            return
        self._is_sent = True
        self._ledger.gradients.owed.pop(self._bridge.back_key(self._number), None)
        if self._sum is None:
            self._bridge.send_zeros_back(self._spec, self._number, 0)
            return
        if self in self._ledger.gradients.started:
            self._ledger.gradients.started.remove(self)
        self._bridge.transfer(self._sum, self._spec, back=True, options=TransferOptions(keep=True), number=self._number).start()
        self._sum = None


class _Watcher:
    """Sends gradients that must be complete although their node has not been freed.

    It does so before an optimizer's step, and when this rank is blocked: perhaps by a rank that waits for them.
    """

    def __init__(self, ledger: BatchLedger) -> None:
        self._ledger = weakref.ref(ledger)
        self._owner = threading.get_ident()
        self._is_needed = threading.Event()
        weakref.finalize(ledger, self._is_needed.set).atexit = False
        _send_before_steps()
        threading.Thread(target=self._run, name="mimo-launch gradients", daemon=True).start()

    @classmethod
    def of(cls, ledger: BatchLedger) -> "_Watcher":
        """The watcher of a ledger, made at its first use."""
        if ledger not in _watchers:
            _watchers[ledger] = cls(ledger)
        return _watchers[ledger]

    def watch_this_thread(self) -> None:
        """Watch this thread, in which a backward pass has contributed gradients."""
        self._owner = threading.get_ident()
        self._is_needed.set()

    def _run(self) -> None:
        at, polls = None, 0
        while True:
            self._is_needed.wait()
            self._is_needed.clear()  # before looking, since gradients may be added meanwhile
            is_needed = self._has_started()
            if is_needed is None:
                return
            if not is_needed:
                continue
            self._is_needed.set()
            threading.Event().wait(_POLL_S)
            frame = sys._current_frames().get(self._owner)
            here = None if frame is None or _is_in_autograd(frame) else (id(frame), frame.f_lasti)
            del frame  # it keeps all tensors of the script alive
            at, polls = here, polls + 1 if here is not None and here == at else 0
            if polls >= _BLOCKED_POLLS:
                self._send_when_free()

    def _has_started(self) -> bool | None:
        """Whether gradients are to be sent; `None` if the ledger has been freed."""
        ledger = self._ledger()
        return None if ledger is None else bool(ledger.gradients.started)

    def _send_when_free(self) -> None:
        if (ledger := self._ledger()) is not None:
            ledger.when_free(ledger.gradients.send_started)


_watchers: "weakref.WeakKeyDictionary[BatchLedger, _Watcher]" = weakref.WeakKeyDictionary()


@cache
def _send_before_steps() -> None:
    """Send gradients before each optimizer's step, for all ledgers of this process.

    The hook is never removed: a ledger may be freed during a step, in which torch iterates over the hooks.
    """
    register_optimizer_step_pre_hook(_send_started)


def _send_started(*_: object) -> None:
    for ledger in list(_watchers):
        with ledger:
            ledger.gradients.send_started()


def _is_in_autograd(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.endswith("torch/autograd/graph.py"):
            return True
        frame = frame.f_back
    return False
