"""Which of several nodes still live, told by numbers that grow."""

from collections.abc import Mapping

BEAT_S = 2.0
"""How often a node's number grows."""


class LivenessTracker:
    """How long each node's number has stood still, in beats of this one: time goes on in a suspended job."""

    def __init__(self) -> None:
        self._still: Mapping[int, tuple[bytes, int]] = {}

    def silent(self, beats: Mapping[int, bytes], lost_after_s: float) -> int | None:
        """The first node, other than node 0, whose number has stood still for too long. To be called once a beat."""
        before = self._still
        self._still = {
            node: (beat, before[node][1] + 1 if (node in before and before[node][0] == beat) else 0)
            for node, beat in beats.items()
        }
        return next((node for node, (_, still) in self._still.items() if node and still * BEAT_S > lost_after_s), None)
