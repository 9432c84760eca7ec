"""Whether the ranks of a node make progress, by what they write into the node's folder."""

import time
from collections.abc import Collection
from pathlib import Path

from mimo_role.monitoring.heartbeat import Pulse, beat_file, read_pulse

_LOOK_S = 1.0
_LOOKS = 20
"""How many looks there are, at least, in the time that ranks may stand still."""


class ProgressWatch:
    """Looks now and then."""

    def __init__(self, folder: Path, ranks: range, limit_s: float) -> None:
        """
        Args:
            folder: the node's.
            ranks: those of this node.
            limit_s: how long they may make no progress; 0: as long as they like.
        """
        self._folder = folder
        self._ranks = ranks
        self._limit_s = limit_s
        self._interval_s = min(_LOOK_S, limit_s / _LOOKS)
        self._looked_at = 0.0
        self._seen: dict[int, int] = {}
        self._still_s = 0.0

    def begin_again(self) -> None:
        """Give the ranks the whole time once more."""
        self._still_s = 0.0

    def start_again(self) -> None:
        """Forget ranks that are there no more."""
        self._seen, self._still_s = {}, 0.0

    @property
    def is_silent(self) -> bool:
        """Whether no rank that is alive has said anything of its progress, as of the last look."""
        return not self._seen

    def pulses(self) -> dict[int, Pulse | None]:
        """What each rank has said last."""
        return {rank: read_pulse(beat_file(self._folder, rank)) for rank in self._ranks}

    def last_step(self, rank: int) -> int | None:
        """The step that a rank has come to."""
        pulse = read_pulse(beat_file(self._folder, rank))
        return pulse.last_step if pulse is not None else None

    def stands_still(self, alive: Collection[int]) -> bool:
        """Whether none of these ranks has made progress for too long. Ranks that have not begun to tell are not waited for."""
        now = time.monotonic()
        if not self._limit_s or now - self._looked_at < self._interval_s:
            return self._still_s > self._limit_s > 0
        # Counted in looks: time goes on in a suspended job.
        waited = min(now - self._looked_at, 2 * self._interval_s)
        self._looked_at = now
        beats = {rank: pulse.beats for rank, pulse in self.pulses().items() if pulse is not None and rank in alive}
        self._still_s = self._still_s + waited if beats and beats == self._seen else 0.0
        self._seen = beats
        return self._still_s > self._limit_s
