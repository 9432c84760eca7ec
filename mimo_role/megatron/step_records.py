"""What Megatron-Core's schedule does, as records.

The schedule runs a forward between a call that receives activations and the next one that sends them, also on stages that
receive or send none, and a backward between those that receive and send gradients. It has timers, too, but in its backward for
several modules it does not use them (0.19).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from mimo_role.bridge.frames import Position
from mimo_role.bridge.transfer import Transfer
from mimo_role.megatron.micro_batch_count import MicroBatchCount
from mimo_role.monitoring.heartbeat import Heartbeat
from mimo_role.monitoring.recorder import Recorder
from mimo_role.monitoring.records import NONE, Kind


class StepRecords:
    """Records the steps of one schedule as `Schedule1F1B` does."""

    def __init__(self, recorder: Recorder, heartbeat: Heartbeat, stage: str) -> None:
        """
        Args:
            recorder: this rank's.
            heartbeat: which counts steps if the script does not.
            stage: this rank's, such as `language.1`.
        """
        self.recorder = recorder
        self.stage = stage
        self._heartbeat = heartbeat
        self._number = recorder.count_schedule()
        self._computing: AbstractContextManager[Any] | None = None

    def begin_forward(self, count: MicroBatchCount) -> None:
        """A forward has begun, perhaps of a new step."""
        before = self._heartbeat.last_step
        count.begin_forward()
        if self._heartbeat.last_step != before:
            self.recorder.begin_step(self._heartbeat.last_step)
        self.recorder.begin_batch(self._number, count.step)

    def waiting(
        self, kind: Kind, link: str, position: Position, transfer: Transfer | None = None
    ) -> AbstractContextManager[Any]:
        """The wait for a micro-batch, or for its size before there is a transfer."""
        senders = () if transfer is None else transfer.senders
        return self.recorder.span(kind, link, position.micro_batch, 1, senders[0] if senders else NONE)

    def received(self, link: str, position: Position, transfer: Transfer) -> None:
        """A micro-batch has come from all that have sent it."""
        for sender in transfer.senders[1:]:
            self.recorder.arrival(link, position.micro_batch, sender)

    def sending(self, kind: Kind, sent: Sequence[tuple[str, Transfer]], position: Position) -> AbstractContextManager[Any]:
        """The start of sends over some links."""
        spans = ExitStack()
        for link in dict.fromkeys(link for link, transfer in sent if transfer.sends):
            spans.enter_context(self.recorder.span(kind, link, position.micro_batch, 1))
        return spans

    def begin_computing(self, kind: Kind, position: Position) -> None:
        """A forward or a backward begins."""
        self.end_computing()  # one that an exception has ended
        self._computing = self.recorder.span(kind, self.stage, position.micro_batch, 1)
        self._computing.__enter__()

    def end_computing(self) -> None:
        """It has ended."""
        if self._computing is not None:
            computing, self._computing = self._computing, None
            computing.__exit__(None, None, None)

    def waiting_for_receivers(self) -> AbstractContextManager[Any]:
        """The wait until something that was sent long before has been received."""
        return self.recorder.span(Kind.WAIT_SENT, self.stage)
