"""When the state of a line without an end is printed: a progress bar, or a prompt."""

from launcher.logs.file_tail import FileTail

_STILL_S = 1.0
_FIRST_GAP_S = 1.0
_LONGEST_GAP_S = 60.0


class Pace:
    """Prints states rarely, where each is a line of its own.

    After 1, 2, 4, ... seconds of the stream's first bar, and then once a minute: the bars of a long job take a line a minute
    in its log, and a user who has just started it sees that it moves.
    """

    def __init__(self, tail: FileTail, now: float) -> None:
        """
        Args:
            tail: the stream.
            now: the time.
        """
        self._tail = tail
        self._position = tail.position
        self._read_at = now
        self._began_at: float | None = None
        self._gap_s = _FIRST_GAP_S
        self._next = now

    def observe(self, *, ended: bool, now: float) -> None:
        """Take note of what was read; `ended`: a line has ended."""
        if not self._tail.rows.states():
            self._began_at = None
        elif ended or self._began_at is None:
            self._began_at = now
        if self._tail.position != self._position:
            self._position, self._read_at = self._tail.position, now

    def is_state(self, now: float) -> bool:
        """Whether there is something, and for a while: it is not just a line in the middle of being written."""
        return self._began_at is not None and now - self._began_at >= _STILL_S

    def due(self, now: float) -> list[bytes]:
        """The states that are to be printed now. Called again, they are not returned a second time."""
        is_still_and_new = now - self._read_at >= _STILL_S and self._tail.rows.is_new
        if not self.is_state(now) or not (now >= self._next or is_still_and_new):
            return []
        states = self._tail.rows.new_states()
        if states and now >= self._next:
            self._next = now + self._gap_s
            self._gap_s = min(_LONGEST_GAP_S, 2 * self._gap_s)
        return states
