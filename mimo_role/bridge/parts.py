"""The messages of one rank in batches of one spec, as parts of its tensors. Pure arithmetic."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import NamedTuple

from mimo_role.resharding.overlap import Overlap
from mimo_role.resharding.transfer_plan import Chunk, TransferPlan


class Part(NamedTuple):
    """The data of one message, in this rank's flattened tensor."""

    peer: int
    overlap: int
    """Its index among the overlaps of its direction."""
    start: int
    stop: int
    """Elements of the overlap."""
    pieces: tuple[tuple[int, int], ...]
    """Elements of the tensor: begin and end of each piece, in order."""

    @classmethod
    def of(cls, chunk: Chunk, overlap: Overlap, width: int) -> "Part":
        """The part for a chunk of an overlap whose rows have `width` elements."""
        pieces, passed = [], 0
        for run in overlap.runs:
            start, stop = max(chunk.start - passed, 0), min(chunk.stop - passed, len(run) * width)
            if start < stop:
                pieces.append((run.start * width + start, run.start * width + stop))
            passed += len(run) * width
        return cls(chunk.peer, chunk.overlap, chunk.start, chunk.stop, tuple(pieces))


@dataclass(frozen=True)
class Parts:
    """What one rank exchanges with others, and what it sends itself."""

    sends: tuple[Part, ...]
    receives: tuple[Part, ...]
    replica_sends: tuple[Part, ...]
    replica_receives: tuple[Part, ...]
    local: tuple[tuple[Part, Part], ...]
    """What this rank sends itself: the part that is sent, and the part that is received."""
    is_staged: tuple[bool, ...]
    """For each overlap that is received, whether its messages need staging memory: it is not contiguous in the result."""
    sent_to: dict[int, int]
    """Elements by peer, as the next three."""
    received_from: dict[int, int]
    replica_sent_to: dict[int, int]
    replica_received_from: dict[int, int]

    @cached_property
    def sent_runs(self) -> tuple[tuple[int, int], ...]:
        """The elements of the rank's flattened tensor that it sends: begin and end of each run, in order, without overlaps."""
        runs: list[tuple[int, int]] = []
        pieces = chain.from_iterable(part.pieces for part in (*self.sends, *(sent for sent, _ in self.local)))
        for start, stop in sorted(pieces):
            if runs and start <= runs[-1][1]:
                runs[-1] = (runs[-1][0], max(runs[-1][1], stop))
            else:
                runs.append((start, stop))
        return tuple(runs)

    @classmethod
    def of(cls, plan: TransferPlan, rank: int, width: int) -> "Parts":
        """The parts of a rank's plan for rows of `width` elements."""

        def parts(chunks: Sequence[Chunk], overlaps: Sequence[Overlap], *, local: bool = False) -> tuple[Part, ...]:
            return tuple(Part.of(chunk, overlaps[chunk.overlap], width) for chunk in chunks if (chunk.peer == rank) == local)

        sends, receives = parts(plan.sends, plan.send_overlaps), parts(plan.receives, plan.receive_overlaps)
        replica_sends = parts(plan.replica_sends, plan.receive_overlaps)
        replica_receives = parts(plan.replica_receives, plan.receive_overlaps)
        to_itself = parts(plan.sends, plan.send_overlaps, local=True)
        from_itself = parts(plan.receives, plan.receive_overlaps, local=True)
        return cls(
            sends=sends,
            receives=receives,
            replica_sends=replica_sends,
            replica_receives=replica_receives,
            local=tuple(zip(to_itself, from_itself, strict=True)),
            is_staged=tuple(len(overlap.runs) > 1 and not overlap.cuts for overlap in plan.receive_overlaps),
            sent_to=_elements_by_peer(sends),
            received_from=_elements_by_peer(receives),
            replica_sent_to=_elements_by_peer(replica_sends),
            replica_received_from=_elements_by_peer(replica_receives),
        )


def _elements_by_peer(parts: Iterable[Part]) -> dict[int, int]:
    elements: Counter[int] = Counter()
    for part in parts:
        elements[part.peer] += part.stop - part.start
    return dict(elements)
