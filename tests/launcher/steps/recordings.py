"""Rings that a test writes as a rank would, at times of its own."""

from mimo_role.monitoring.records import NONE, Flag, Kind, Record
from mimo_role.monitoring.ring_reader import NewRecords

COLLECTIVES_THREAD = 2**16 - 1


class Written:
    """Records of one rank. Times are in ms."""

    def __init__(self):
        self.names = ["(further names)"]
        self.records = []
        self.number = 0
        self.step_number = NONE

    def step(self, number, at, last=0):
        self.step_number = number
        return self._add(Kind.STEP, "(further names)", at, at, value=float(last))

    def span(self, kind, name, begin, end, *, device=False, step=None):
        thread = COLLECTIVES_THREAD if kind is Kind.COLLECTIVE else 0
        return self._add(kind, name, begin, end, thread=thread, flags=Flag.DEVICE if device else 0, step=step)

    def scalar(self, name, value, at=0, step=None):
        return self._add(Kind.SCALAR, name, at, at, value=value, step=step)

    def take(self, count=None, overwritten=0):
        """What was not taken yet, or the first of it."""
        taken, self.records = self.records[:count], self.records[len(self.records[:count]) :]
        return NewRecords(taken, list(self.names), overwritten, 0)

    def _add(self, kind, name, begin, end, *, value=0.0, thread=0, flags=0, step=None):
        if name not in self.names:
            self.names.append(name)
        number, self.number = self.number, self.number + 1
        at = self.step_number if step is None else step
        fields = (round(1e6 * begin), round(1e6 * end), at, value, NONE, NONE, self.names.index(name), 0, thread)
        self.records.append(Record(*fields, int(kind), int(flags), number))
        return self
