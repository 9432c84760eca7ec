"""Makes this process one rank of a rehearsed world: replaces functions of torch.distributed and of this package."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed import distributed_c10d as c10d
from torch.distributed.checkpoint.utils import _DistWrapper
from torch.distributed.tensor import _collective_utils, placement_types

from mimo_role import lifecycle
from mimo_role.bridge import bridge_base, handshake, messages
from mimo_role.bridge.bridge_base import BridgeBase
from mimo_role.data import sample_sizes
from mimo_role.data.sample_reader import SampleReader
from mimo_role.monitoring.heartbeat import Heartbeat
from mimo_role.monitoring.ring import Ring
from mimo_role.pipeline import trained_stages
from mimo_role.rehearsal.agreement import Contributions, same_samples
from mimo_role.rehearsal.board import Board
from mimo_role.rehearsal.broadcasts import Broadcasts
from mimo_role.rehearsal.call_log import CallLog
from mimo_role.rehearsal.group_creation import recorded_new_group
from mimo_role.rehearsal.group_functions import monitored_barrier, scattered_from_own, split_group
from mimo_role.rehearsal.known_numbers import KnownNumbers
from mimo_role.rehearsal.ledger import Headers, RehearsalLedger
from mimo_role.rehearsal.links import RehearsalLinks
from mimo_role.rehearsal.objects import ObjectCollectives
from mimo_role.rehearsal.process_group import NAME, RehearsalGroup, register
from mimo_role.rehearsal.specs import Specs
from mimo_role.rehearsal.step_limit import StepLimit
from mimo_role.rehearsal.traffic import Traffic


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What this process has recorded."""

    rank: int
    board: Board
    traffic: Traffic
    calls: CallLog
    objects: ObjectCollectives
    numbers: KnownNumbers
    headers: Headers
    specs: Specs
    steps: StepLimit

    def close(self) -> dict[str, Any]:
        """At the end of the process: keep what the other sides of this rank's bridges have to know, and return the record."""
        self.board.put(_headers_of(self.rank), self.headers)
        self.board.put(_specs_of(self.rank), self.specs.sent)
        return {
            "steps": self.steps.begun,
            "meets": self.steps.meets,
            "ended_by_steps": self.steps.has_ended_script,
            "objects_known": self.objects.known + self.numbers.known,
            "objects_not_known": self.objects.not_known + self.numbers.not_known,
            "traffic": self.traffic.as_list(),
        }


def install(
    board: Board,
    rank: int,
    world_size: int,
    *,
    earlier: Iterable[int] = (),
    steps: int = 0,
    observe: Callable[[Iterable[torch.Tensor]], None] | None = None,
) -> Rehearsal:
    """Make this process the rank; it joins a world whose other ranks do not exist.

    Args:
        board: what other ranks have sent in this rehearsal.
        rank: of the world.
        world_size: of the real job.
        earlier: the ranks that have been rehearsed.
        steps: training steps after which the script ends with exit code 0; 0: when it ends by itself.
        observe: called with the tensors that are passed to each operation of a group.
    """
    traffic, calls = Traffic(observe=observe), CallLog()
    objects, broadcasts, numbers = ObjectCollectives(board, calls), Broadcasts(board), KnownNumbers(board)
    register(lambda _store, at, size, _timeout: RehearsalGroup(at, size, traffic, calls, broadcasts, numbers))
    create = _with_our_backend(c10d._new_process_group_helper, calls)
    _replace(c10d, _new_process_group_helper=create, rendezvous=lambda *_, **__: iter([(HashStore(), rank, world_size)]))
    for module in (dist, c10d):
        _replace(module, **{name: getattr(objects, name) for name in ObjectCollectives.NAMES})
        _replace(module, new_group=recorded_new_group(module.new_group, calls))
        _replace(module, monitored_barrier=monitored_barrier, split_group=split_group)
    _replace(placement_types, mesh_scatter=scattered_from_own(_collective_utils.mesh_scatter))
    _replace(_DistWrapper, __init__=_uncoordinated(_DistWrapper.__init__, calls))
    earlier = tuple(earlier)
    RehearsalLedger.seen = _seen(board, earlier)
    headers = RehearsalLedger.sent = {}
    specs = Specs(board.get(_specs_of(other), {}) for other in earlier)
    contributions = Contributions(board)
    _replace(SampleReader, __getitem__=_of_the_same_sample(SampleReader.__getitem__))
    _replace(sample_sizes, sum_over_ranks=contributions.sum_of_sizes)
    _replace(trained_stages, largest_over_ranks=contributions.largest_flags)
    _replace(BridgeBase, transfer=_recorded(BridgeBase.transfer, calls))
    _replace(bridge_base, exchange=specs.around(handshake.exchange))
    _replace(messages, _post_one=traffic.around(messages._post_one))
    _replace(lifecycle, connect_peers=lambda rank, _timeout: RehearsalLinks(rank), BatchLedger=RehearsalLedger)
    limit = StepLimit(steps, world_size, traffic, calls)
    _replace(Ring, create=staticmethod(_of_one_rank(Ring.create)))
    _replace(Heartbeat, _start_step=limit.around(Heartbeat._start_step))
    return Rehearsal(
        rank=rank,
        board=board,
        traffic=traffic,
        calls=calls,
        objects=objects,
        numbers=numbers,
        headers=headers,
        specs=specs,
        steps=limit,
    )


def _headers_of(rank: int) -> str:
    return f"headers of rank {rank}"


def _specs_of(rank: int) -> str:
    return f"specs of rank {rank}"


def _seen(board: Board, ranks: Iterable[int]) -> Headers:
    found: Headers = {}
    for rank in ranks:
        for key, header in board.get(_headers_of(rank), {}).items():
            found.setdefault(key, header)
    return found


def _replace(place: Any, **values: Any) -> None:
    """Set attributes of a module or class."""
    for name, value in values.items():
        setattr(place, name, value)


def _of_one_rank(create: Callable[..., Any]) -> Callable[..., Any]:
    """A recording as large as that of a node's only rank: the others do not exist."""
    return lambda path, rank, _: create(path, rank, 1)


def _of_the_same_sample(read: Callable[..., Any]) -> Callable[..., Any]:
    return lambda reader, request: read(reader, same_samples(request))


def _with_our_backend(create: Callable[..., Any], calls: CallLog) -> Callable[..., Any]:
    """Whatever backend a group is asked for with, such as gloo for checkpoints."""

    def create_rehearsed(size: int, rank: int, ranks: Any, backend: Any, store: Any, *rest: Any, **settings: Any) -> Any:
        del backend
        group, own_store = create(size, rank, ranks, dist.Backend(NAME), store, *rest, **{**settings, "device_id": None})
        if isinstance(group, RehearsalGroup):
            assert group.group_name  # which it remembers
            if size > 1:
                calls.created(group, ranks or range(size))
        return group, own_store

    return create_rehearsed


def _recorded(transfer: Callable[..., Any], calls: CallLog) -> Callable[..., Any]:
    """Batches over bridges, which both sides count; their gradients follow from them."""

    def transfer_recorded(bridge: BridgeBase, *arguments: Any, back: bool, **settings: Any) -> Any:
        if not back:
            calls.add_batch(str(bridge))
        return transfer(bridge, *arguments, back=back, **settings)

    return transfer_recorded


def _uncoordinated(make: Callable[..., Any], calls: CallLog) -> Callable[..., Any]:
    """DCP without a coordinator: each rank writes and reads its part as if it were alone."""

    def make_alone(self: Any, group: Any, use_dist: bool, coordinator_rank: int) -> None:
        if use_dist:
            calls.add(group or c10d._get_default_group(), f"torch.distributed.checkpoint(coordinator {coordinator_rank})")
        make(self, group, False, 0)

    return make_alone
