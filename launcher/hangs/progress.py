"""Whether the ranks of a node join and make progress, by their heartbeat files in the node directory."""

import time
from collections.abc import Collection
from pathlib import Path

from mimo_role.host.node_dir import heartbeat_file
from mimo_role.monitoring.heartbeat import Pulse, is_joining, read_pulse

_INTERVAL_S = 1.0
_POLLS = 20
"""The least number of polls within a limit."""


class ProgressWatch:
    """Measures for how long no rank has made progress."""

    def __init__(self, node_dir: Path, ranks: range, limit_s: float) -> None:
        """
        Args:
            node_dir: the node directory.
            ranks: the ranks of this node.
            limit_s: how long they may make no progress; 0: without limit.
        """
        self._node_dir = node_dir
        self._ranks = ranks
        self._limit_s = limit_s
        self._interval_s = min(_INTERVAL_S, limit_s / _POLLS)
        self._polled_at = 0.0
        self._seen: dict[int, int] = {}
        self._still_s = 0.0

    def reset(self) -> None:
        """Restart the measurement."""
        self._still_s = 0.0

    @property
    def is_silent(self) -> bool:
        """Whether no live rank has sent a heartbeat, as of the last poll."""
        return not self._seen

    def pulses(self) -> dict[int, Pulse | None]:
        """The last heartbeat of each rank."""
        return {rank: read_pulse(heartbeat_file(self._node_dir, rank)) for rank in self._ranks}

    def last_step(self, rank: int) -> int | None:
        """The last step of a rank."""
        pulse = read_pulse(heartbeat_file(self._node_dir, rank))
        return pulse.last_step if pulse is not None else None

    def is_stalled(self, alive: Collection[int]) -> bool:
        """Whether none of these ranks has made progress for longer than the limit. Ranks without a heartbeat do not count."""
        now = time.monotonic()
        if not self._limit_s or now - self._polled_at < self._interval_s:
            return self._still_s > self._limit_s > 0
        # Counted in polls, since the clock goes on while a job is suspended.
        waited = min(now - self._polled_at, 2 * self._interval_s)
        self._polled_at = now
        beats = {rank: pulse.beats for rank, pulse in self.pulses().items() if pulse is not None and rank in alive}
        self._still_s = self._still_s + waited if beats and beats == self._seen else 0.0
        self._seen = beats
        return self._still_s > self._limit_s


class JoiningWatch:
    """Measures for how long each rank has been joining."""

    def __init__(self, node_dir: Path, ranks: range, limit_s: float) -> None:
        """
        Args:
            node_dir: the node directory.
            ranks: the ranks of this node.
            limit_s: how long they may take.
        """
        self._node_dir = node_dir
        self._ranks = ranks
        self._limit_s = limit_s
        self._interval_s = min(_INTERVAL_S, limit_s / _POLLS)
        self._polled_at = 0.0
        self.seconds: dict[int, float] = {}
        """For how long each rank has been joining that is, as of the last poll."""

    def is_overdue(self, alive: Collection[int]) -> bool:
        """Whether one of these ranks has been joining for longer than the limit."""
        now = time.monotonic()
        if now - self._polled_at >= self._interval_s:
            # Counted in polls, since the clock goes on while a job is suspended.
            waited = min(now - self._polled_at, 2 * self._interval_s)
            self._polled_at = now
            joining = [rank for rank in self._ranks if rank in alive and is_joining(heartbeat_file(self._node_dir, rank))]
            self.seconds = {rank: self.seconds[rank] + waited if rank in self.seconds else 0.0 for rank in joining}
        return any(seconds > self._limit_s for seconds in self.seconds.values())
