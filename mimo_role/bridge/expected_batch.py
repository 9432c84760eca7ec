"""A batch that a rank expects from a peer, compared with the header that comes."""

from dataclasses import dataclass
from typing import Protocol

from mimo_role.bridge.frames import BatchHeader, BatchKey, Position, Returns, Want
from mimo_role.bridge.message_tags import Purpose

_UNKNOWN = Position()


class End(Protocol):
    """This rank's end of a bridge, in words."""

    @property
    def place(self) -> str:
        """The bridge and this rank."""

    def name_of(self, rank: int) -> str:
        """A rank, its module and its lane."""

    def difference(self, peer: int, theirs: bytes) -> tuple[str, str] | None:
        """What this rank expects and what a peer has described; `None` if they fit."""

    def describe_receive(self, peer: int, key: BatchKey, position: Position) -> str:
        """What this rank waits for."""


@dataclass(eq=False, slots=True)
class Expected:
    """What this rank waits for from one peer in one batch."""

    peer: int
    wanted: BatchHeader
    end: End
    in_order: bool
    """Whether the peer sends batches in the order in which this rank expects them."""
    header: BatchHeader | None = None
    """The one that has come."""
    earlier_alike: tuple[BatchKey, ...] = ()
    """Batches of the same tags that the peer sent before this one, and that this rank has not asked for."""

    @property
    def want(self) -> Want:
        """From whom, and what."""
        return Want(self.peer, self.wanted.key)

    def describe(self) -> str:
        """For messages."""
        return self.end.describe_receive(self.peer, self.wanted.key, self.wanted.position)

    def _other_description(self, theirs: bytes) -> tuple[str, str] | None:
        return None if theirs == self.wanted.description else self.end.difference(self.peer, theirs)

    def difference(self, header: BatchHeader) -> str | None:
        """Why a header is not the one that is expected; `None` if it is."""
        wanted = self.wanted
        mine, came = named(wanted.key, wanted.position), named(header.key, header.position)
        place, peer = self.end.place, self.end.name_of(self.peer)
        problem = None
        if header.key != wanted.key:
            problem = f"expects {mine} from {peer}, but {came} came"
        elif header.is_zero and self.in_order:
            problem = f"expects {mine} from {peer}, whose script dropped that batch without a backward pass"
        elif not header.position.fits(wanted.position):
            problem = (
                f"expects {mine} from {peer}, but {came} came; all ranks of a bridge run the same steps, with as many "
                "micro-batches each"
            )
        elif (found := self._other_description(header.description)) is not None:
            problem = f"expects {found[0]} in {mine}, but {peer} has {found[1]}"
        elif header.elements != wanted.elements:
            problem = f"expects {wanted.elements} elements of {mine} from {peer}, but {header.elements} came"
        elif {header.returns, wanted.returns} == {Returns.YES, Returns.NO}:
            expects, returns = ("gradients", "none") if header.returns is Returns.YES else ("no gradients", "some")
            problem = (
                f"would return {returns} for {mine} to {peer}, which expects {expects}; use torch.no_grad() or "
                "requires_grad=False on both sides or on neither (torch.utils.checkpoint with use_reentrant=True implies it)"
            )
        return None if problem is None else f"{place} {problem}"


def named(key: BatchKey, position: Position = _UNKNOWN) -> str:
    """A batch in words, such as `batch 3 (step 1, micro-batch 0 of 4)`."""
    what = "gradients of batch" if key.purpose in (Purpose.BACK, Purpose.BACK_AMONG_COPIES) else "batch"
    return f"{what} {key.batch}" + (f" ({position})" if str(position) else "")
