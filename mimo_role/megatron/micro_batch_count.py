"""The micro-batches of a rank in one step of Megatron-Core's schedule, which does not number them itself."""

from dataclasses import dataclass

import torch

from mimo_role.bridge.frames import Position
from mimo_role.errors import ScheduleError
from mimo_role.monitoring.heartbeat import Heartbeat


@dataclass
class _Counts:
    """Micro-batches so far in this step."""

    received: int = 0
    sent: int = 0
    gradients_received: int = 0
    gradients_sent: int = 0


class MicroBatchCount:
    """Numbers steps and micro-batches, so that headers have both: unequal numbers of micro-batches are an error.

    In training a step begins with the forward that comes when all micro-batches have had their backward. Without gradients
    there is no such sign, and nothing is numbered.
    """

    def __init__(self, heartbeat: Heartbeat, most: int) -> None:
        """
        Args:
            heartbeat: reports progress.
            most: micro-batches without a backward that the schedule has at once on this rank.
        """
        self._heartbeat = heartbeat
        self._most = most
        self._step = -1
        self._counts = _Counts()

    @property
    def step(self) -> int:
        """The current step, from 0; -1 before the first."""
        return self._step

    def begin_forward(self) -> None:
        """A forward, of a new step if all backwards of the last one have been run."""
        if torch.is_grad_enabled() and self._counts.received == self._counts.gradients_sent:
            self._step += 1
            self._counts = _Counts()
            self._heartbeat.scheduled_step()

    def received(self) -> Position:
        """Activations are to be received.

        Raises:
            ScheduleError: more micro-batches have had no backward than in any schedule with backwards.
        """
        if torch.is_grad_enabled() and self._counts.received - self._counts.gradients_sent >= self._most:
            raise ScheduleError(
                f"no backward has come after {self._most} forwards; run a schedule with forward_only=True under torch.no_grad()"
            )
        self._counts.received += torch.is_grad_enabled()
        return self._position(self._counts.received)

    def sent(self) -> Position:
        """Activations are to be sent."""
        self._counts.sent += torch.is_grad_enabled()
        return self._position(self._counts.sent)

    def gradient_received(self) -> Position:
        """Gradients are to be received."""
        self._counts.gradients_received += 1
        return self._position(self._counts.gradients_received)

    def gradient_sent(self) -> Position:
        """Gradients are to be sent."""
        self._counts.gradients_sent += 1
        return self._position(self._counts.gradients_sent)

    def _position(self, count: int) -> Position:
        self._heartbeat.beat()
        if not torch.is_grad_enabled():
            return Position(step=self._heartbeat.script_step)
        return Position(step=self._heartbeat.script_step, scheduled=self._step, micro_batch=count - 1)
