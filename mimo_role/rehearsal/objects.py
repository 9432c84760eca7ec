"""Collectives of Python objects, with peers that have this rank's object.

Where another rank decides for all, as the first rank does for checkpoints, its object is taken if that rank has been rehearsed.
"""

from collections import Counter
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from mimo_role.rehearsal.board import Board
from mimo_role.rehearsal.call_log import CallLog
from mimo_role.rehearsal.traffic import runs_of

_UNKNOWN = object()


class ObjectCollectives:
    """What replaces the functions of torch.distributed of the same names, with their arguments."""

    NAMES = (
        "all_gather_object",
        "gather_object",
        "broadcast_object_list",
        "scatter_object_list",
        "send_object_list",
        "recv_object_list",
    )

    def __init__(self, board: Board, calls: CallLog) -> None:
        self._board = board
        self._log = calls
        self._calls: Counter[str] = Counter()
        self.not_known = 0
        """Objects of ranks that have not been rehearsed, in whose place this rank used its own."""
        self.known = 0
        """Objects that came from other ranks' rehearsals."""

    def all_gather_object(self, object_list: list[Any], obj: Any, group: Any = None) -> None:
        """Each rank has this rank's object."""
        if self._takes_part("all_gather_object", group):
            object_list[:] = [obj] * dist.get_world_size(group)

    def gather_object(
        self,
        obj: Any,
        object_gather_list: list[Any] | None = None,
        dst: int | None = None,
        group: Any = None,
        group_dst: Any = None,
    ) -> None:
        """On the destination, each rank's object is this rank's."""
        destination = _global_rank(group, dst, group_dst)
        if self._takes_part("gather_object", group, destination) and dist.get_rank() == destination:
            if object_gather_list is None:
                raise ValueError("Argument ``object_gather_list`` must be specified on destination rank.")
            object_gather_list[:] = [obj] * dist.get_world_size(group)

    def broadcast_object_list(
        self,
        object_list: list[Any],
        src: int | None = None,
        group: Any = None,
        device: Any = None,
        group_src: Any = None,
        **_: Any,
    ) -> None:
        """The source's objects, if it has been rehearsed; otherwise `object_list` stays as it is."""
        del device
        source = _global_rank(group, src, group_src)
        if self._takes_part("broadcast_object_list", group, source):
            found = self._from("broadcast", object_list, source, group)
            if found is not _UNKNOWN:
                object_list[:] = found

    def scatter_object_list(
        self,
        scatter_object_output_list: list[Any],
        scatter_object_input_list: list[Any] | None = None,
        src: int | None = None,
        group: Any = None,
        group_src: Any = None,
    ) -> None:
        """This rank's of the source's objects, if that has been rehearsed; otherwise `None`."""
        source = _global_rank(group, src, group_src)
        if self._takes_part("scatter_object_list", group, source):
            found = self._from("scatter", scatter_object_input_list, source, group)
            scatter_object_output_list[0] = None if found is _UNKNOWN else found[dist.get_rank(group)]

    def send_object_list(
        self,
        object_list: list[Any],
        dst: int | None = None,
        group: Any = None,
        device: Any = None,
        group_dst: Any = None,
        **_: Any,
    ) -> None:
        """Keep the objects for the destination's rehearsal."""
        del device
        destination = _global_rank(group, dst, group_dst)
        self._record_message(group, dist.get_rank(), destination, len(object_list))
        self._board.put(self._message(dist.get_rank(), destination), list(object_list))

    def recv_object_list(
        self,
        object_list: list[Any],
        src: int | None = None,
        group: Any = None,
        device: Any = None,
        group_src: Any = None,
        **_: Any,
    ) -> int:
        """The source's objects, if it has been rehearsed; otherwise `object_list` stays as it is. Any source is rank 0."""
        del device
        source = _global_rank(group, src, group_src)
        if src is None and group_src is None:
            self._log.add_receive_from_any(group or c10d._get_default_group())
        else:
            self._record_message(group, source, dist.get_rank(), len(object_list))
        found = self._board.get(self._message(source, dist.get_rank()), _UNKNOWN)
        if found is _UNKNOWN:
            self.not_known += 1
        else:
            self.known += 1
            object_list[:] = found
        return source

    def _takes_part(self, operation: str, group: Any, root: int | None = None) -> bool:
        """Record an operation; `False` where this rank is not in the group, and torch does nothing."""
        if group is c10d.GroupMember.NON_GROUP_MEMBER:
            return False
        group = group or c10d._get_default_group()
        member = "" if root is None else f"root: member {dist.get_group_rank(group, root)}"
        self._log.add(group, f"{operation}({member})")
        return True

    def _record_message(self, group: Any, source: int, destination: int, count: int) -> None:
        group = group or c10d._get_default_group()
        sender, receiver = (dist.get_group_rank(group, rank) for rank in (source, destination))
        self._log.add_message(group, sender, receiver, 0, f"{count} objects")

    def _message(self, source: int, destination: int) -> str:
        name = f"objects from {source} to {destination}"
        self._calls[name] += 1
        return f"{name}: {self._calls[name]}"

    def _from(self, what: str, given: Any, source: int, group: Any) -> Any:
        """What the source has given in the call of this number."""
        ranks = runs_of(dist.get_process_group_ranks(group or c10d._get_default_group()))
        name = f"{what} from {source} over {ranks}"
        self._calls[name] += 1
        name = f"{name}: {self._calls[name]}"
        if source == dist.get_rank():
            self._board.put(name, list(given))
            return given
        found = self._board.get(name, _UNKNOWN)
        self.not_known += found is _UNKNOWN
        self.known += found is not _UNKNOWN
        return found


def _global_rank(group: Any, rank: int | None, group_rank: int | None) -> int:
    if group_rank is not None:
        return dist.get_global_rank(group or c10d._get_default_group(), group_rank)
    return rank or 0
