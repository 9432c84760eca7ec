"""A batch that a rank expects from a peer, compared with the header that comes."""

from dataclasses import dataclass
from typing import Protocol

from mimo_role.bridge.frames import BatchHeader, BatchKey, Position, Returns, Want
from mimo_role.bridge.message_tags import Purpose

_UNKNOWN = Position()


class End(Protocol):
    """This rank's end of a bridge, for messages."""

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
    """A batch that this rank waits for from one peer."""

    peer: int
    wanted: BatchHeader
    end: End
    in_order: bool
    """Whether the peer sends batches in the order in which this rank expects them."""
    header: BatchHeader | None = None
    """The header that has arrived."""
    earlier_alike: tuple[BatchKey, ...] = ()
    """Batches whose data, with the same tags, the peer sent before this one, and that this rank has not asked for."""

    @property
    def want(self) -> Want:
        """From which peer, and which batch."""
        return Want(self.peer, self.wanted.key)

    def describe(self) -> str:
        """For messages."""
        return self.end.describe_receive(self.peer, self.wanted.key, self.wanted.position)

    def _other_description(self, theirs: bytes) -> tuple[str, str] | None:
        return None if theirs == self.wanted.description else self.end.difference(self.peer, theirs)

    def difference(self, header: BatchHeader) -> str | None:
        """How a header differs from the expected one; `None` if it does not."""
        wanted = self.wanted
        wanted_name, found_name = named(wanted.key, wanted.position), named(header.key, header.position)
        place, peer = self.end.place, self.end.name_of(self.peer)
        problem = None
        if header.key != wanted.key:
            problem = f"expects {wanted_name} from {peer}, but {found_name} came"
        elif header.is_zero and self.in_order:
            problem = f"expects {wanted_name} from {peer}, whose script dropped that batch without a backward pass"
        elif not header.position._replace(names=-1).fits(wanted.position):
            problem = (
                f"expects {wanted_name} from {peer}, but {found_name} came; all ranks of a bridge run the same steps, with "
                "equally many micro-batches"
            )
        elif not header.position.fits(wanted.position):
            problem = f"expects {wanted_name} from {peer}, whose spec_of() names other tensors; use the same names on all ranks"
        elif (found := self._other_description(header.description)) is not None:
            problem = f"expects {found[0]} in {wanted_name}, but {peer} has {found[1]}"
        elif header.elements != wanted.elements:
            problem = f"expects {wanted.elements} elements of {wanted_name} from {peer}, but {header.elements} came"
        elif {header.returns, wanted.returns} == {Returns.YES, Returns.NO}:
            expects, returns = ("gradients", "none") if header.returns is Returns.YES else ("no gradients", "some")
            problem = (
                f"would return {returns} for {wanted_name} to {peer}, which expects {expects}; use torch.no_grad() or "
                "requires_grad=False on both sides or on neither (torch.utils.checkpoint with use_reentrant=True implies it)"
            )
        return None if problem is None else f"{place} {problem}"


def named(key: BatchKey, position: Position = _UNKNOWN) -> str:
    """A batch, for messages: `batch 3 (step 1, micro-batch 0 of 4)`."""
    what = "gradients of batch" if key.purpose in (Purpose.BACK, Purpose.BACK_AMONG_REPLICAS) else "batch"
    return f"{what} {key.batch}" + (f" ({position})" if str(position) else "")
