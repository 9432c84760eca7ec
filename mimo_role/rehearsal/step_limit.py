"""The training steps of a rehearsed rank: where they end the script, and whether all ranks would meet in them."""

from collections.abc import Callable
from itertools import pairwise

from mimo_role.monitoring.heartbeat import Heartbeat
from mimo_role.rehearsal.call_log import CallLog
from mimo_role.rehearsal.traffic import Traffic


class StepLimit:
    """Ends the script with exit code 0 when it begins a step too many."""

    def __init__(self, steps: int, world_size: int, traffic: Traffic, calls: CallLog) -> None:
        """
        Args:
            steps: how many it runs; 0: as many as it likes.
            world_size: of the real job.
            traffic: learns when steps begin.
            calls: records in which step a call is.
        """
        self.begun = 0
        """Training steps that have begun."""
        self.has_ended_script = False
        self._steps = steps
        self._world_size = world_size
        self._traffic = traffic
        self._calls = calls
        self._meetings: list[int] = []
        """The number of collectives of all ranks at the beginning of each step."""

    @property
    def meets(self) -> bool | None:
        """Whether all ranks take part in a collective in each step; `None` if no two steps have begun."""
        pairs = list(pairwise(self._meetings))
        return all(later > earlier for earlier, later in pairs) if pairs else None

    def around(self, start: Callable[..., None]) -> Callable[..., None]:
        """What replaces `Heartbeat._start_step`."""

        def start_or_end(heartbeat: Heartbeat, number: int) -> None:
            self._meetings.append(self._traffic.calls_of_all(self._world_size))
            self._traffic.begin_step()
            if self._steps and self.begun == self._steps:
                self.has_ended_script = True
                self._calls.is_open = False
                raise SystemExit(0)
            self.begun += 1
            self._calls.step = self.begun
            start(heartbeat, number)

        return start_or_end
