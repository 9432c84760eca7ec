"""A process group whose other members have what this rank has."""
# mypy: disable-error-code="override, assignment"
# torch describes these methods by the overloads of its own groups; those that it calls of a group in Python are fewer.
# ruff: noqa: ARG002, B008, N802

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as bindings
from torch._C._distributed_c10d import (  # the options' defaults, as torch's own groups in Python have them
    AllgatherOptions,
    AllreduceOptions,
    AllToAllOptions,
    BarrierOptions,
    BroadcastOptions,
    GatherOptions,
    ReduceOptions,
    ReduceScatterOptions,
    ScatterOptions,
)
from torch.distributed import distributed_c10d as c10d

from mimo_role.rehearsal.broadcasts import Broadcasts
from mimo_role.rehearsal.call_log import CallLog
from mimo_role.rehearsal.known_numbers import KnownNumbers
from mimo_role.rehearsal.operation_names import of_parts, of_reduction, of_tensors
from mimo_role.rehearsal.reduction import reduce_equal
from mimo_role.rehearsal.traffic import Runs, Traffic, runs_of

NAME = "rehearsal"

Tensors = Sequence[torch.Tensor]

_attach_flight_recorder = getattr(c10d, "_maybe_attach_flight_recorder", None)
"""From torch 2.15 on. It asks the group for a name that groups written in Python do not have in C++."""


def register(make: Callable[..., "RehearsalGroup"]) -> None:
    """Make `NAME` a backend of torch.

    Args:
        make: makes a group from its store, this rank's place in it, its size and its timeout.
    """
    dist.Backend.register_backend(NAME, make, devices=["cpu", "cuda"])
    if _attach_flight_recorder is not None:
        c10d._maybe_attach_flight_recorder = _attach_to_others  # type: ignore[attr-defined]


def _attach_to_others(group: dist.ProcessGroup, *rest: Any) -> None:
    if not isinstance(group, RehearsalGroup):
        assert _attach_flight_recorder is not None
        _attach_flight_recorder(group, *rest)


class RehearsalGroup(dist.ProcessGroup):
    """All peers have what this rank has: sums are multiples, gathered tensors repeat, and received ones are zero.

    All operations are complete when they return. The names of methods and their arguments are those by which torch calls a
    group that is written in Python.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        traffic: Traffic,
        calls: CallLog | None = None,
        broadcasts: Broadcasts | None = None,
        numbers: KnownNumbers | None = None,
    ) -> None:
        """
        Args:
            rank: this process's place in the group.
            size: the number of ranks.
            traffic: counts operations.
            calls: records them; `None`: nothing does.
            broadcasts: has what roots have sent; `None`: a broadcast keeps this rank's tensor.
            numbers: has the integers that ranks have sent each other; `None`: zeros are received.
        """
        super().__init__(rank, size)  # type: ignore[call-arg]
        self._rank = rank
        self._size = size
        self._traffic = traffic
        self._runs: Runs | None = None
        self._calls = calls
        self._broadcasts = broadcasts
        self._numbers = numbers
        self._name: Any = None

    def size(self) -> int:
        """The number of ranks."""
        return self._size

    def rank(self) -> int:
        """This rank's place in the group."""
        return self._rank

    @property
    def group_name(self) -> Any:
        """The group's name, by which functional collectives find it. torch asks for it, too, after the group is gone."""
        self._name = c10d._world.pg_names.get(self, self._name)
        return self._name

    @property
    def _device_types(self) -> list[torch.device]:
        return [torch.device("cpu"), torch.device("cuda")]

    def getBackendName(self) -> str:
        """The backend's name."""
        return NAME

    def _get_backend(self, device: torch.device) -> "RehearsalGroup":
        """Itself, for any device. From 2.15 on torch asks every group for it, to send and receive in a batch."""
        return self

    def allreduce(self, tensors: Tensors, opts: Any = AllreduceOptions()) -> dist.Work:
        self.count("all_reduce", tensors)
        self.record(f"all_reduce({of_tensors(tensors)}, {of_reduction(opts)})")
        for tensor in tensors:
            reduce_equal(tensor.detach(), opts.reduceOp, self._size)
        return _done(tensors)

    allreduce_coalesced = allreduce

    def reduce(self, tensors: Tensors, opts: Any = ReduceOptions()) -> dist.Work:
        self.count("reduce", tensors)
        self.record(f"reduce({of_tensors(tensors)}, {of_reduction(opts)}, to member {opts.rootRank})")
        if opts.rootRank == self._rank:
            for tensor in tensors:
                reduce_equal(tensor.detach(), opts.reduceOp, self._size)
        return _done(tensors)

    def broadcast(self, tensors: Tensors, opts: Any = BroadcastOptions()) -> dist.Work:
        self.record(f"broadcast({of_tensors(tensors)}, from member {opts.rootRank})")
        self.count("broadcast", tensors)
        if self._broadcasts is not None and self._size > 1:
            exchange = self._broadcasts.send if opts.rootRank == self._rank else self._broadcasts.receive
            exchange(self.group_desc, self._members(), dist.get_global_rank(self, opts.rootRank), tensors)
        return _done(tensors)

    def allgather(self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any = AllgatherOptions()) -> dist.Work:
        self.count("all_gather", inputs)
        self.record(f"all_gather({of_parts(outputs, inputs)})")
        for output, own in zip(outputs, inputs, strict=True):
            _repeat(output, own)
        return _done(outputs)

    def all_gather_single(self, output: torch.Tensor, own: torch.Tensor, opts: Any = AllgatherOptions()) -> dist.Work:
        self.count("all_gather", [own])
        self.record(f"all_gather({of_tensors([own])})")
        _repeat_into(output, own)
        return _done(output)

    _allgather_base = all_gather_single

    def all_gather_single_coalesced(self, outputs: Tensors, inputs: Tensors, opts: Any = AllgatherOptions()) -> dist.Work:
        self.count("all_gather", inputs)
        self.record(f"all_gather({of_tensors(inputs)})")
        for output, own in zip(outputs, inputs, strict=True):
            _repeat_into(output, own)
        return _done(outputs)

    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def gather(self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any = GatherOptions()) -> dist.Work:
        self.count("gather", inputs)
        self.record(f"gather({of_tensors(inputs)}, to member {opts.rootRank})")
        if opts.rootRank == self._rank:
            for output, own in zip(outputs, inputs, strict=True):
                _repeat(output, own)
        return _done(outputs)

    def scatter(self, outputs: Tensors, inputs: Sequence[Tensors], opts: Any = ScatterOptions()) -> dist.Work:
        self.record(f"scatter({of_tensors(outputs)}, from member {opts.rootRank})")
        for number, output in enumerate(outputs):
            if opts.rootRank == self._rank:
                self.count("scatter", inputs[number])
                output.detach().copy_(inputs[number][self._rank])
            else:
                output.detach().zero_()
        return _done(outputs)

    def reduce_scatter(self, outputs: Tensors, inputs: Sequence[Tensors], opts: Any = ReduceScatterOptions()) -> dist.Work:
        self.record(f"reduce_scatter({of_parts(inputs, outputs)}, {of_reduction(opts)})")
        for output, parts in zip(outputs, inputs, strict=True):
            self.count("reduce_scatter", parts)
            self._reduce_into(output, parts[self._rank], opts)
        return _done(outputs)

    def reduce_scatter_single(self, output: torch.Tensor, whole: torch.Tensor, opts: Any = ReduceScatterOptions()) -> dist.Work:
        self.count("reduce_scatter", [whole])
        self.record(f"reduce_scatter({of_tensors([whole])}, {of_reduction(opts)})")
        self._reduce_into(output, self._part_of(whole, output), opts)
        return _done(output)

    _reduce_scatter_base = reduce_scatter_single

    def reduce_scatter_single_coalesced(
        self, outputs: Tensors, wholes: Tensors, opts: Any = ReduceScatterOptions()
    ) -> dist.Work:
        self.count("reduce_scatter", wholes)
        self.record(f"reduce_scatter({of_tensors(wholes)}, {of_reduction(opts)})")
        for output, whole in zip(outputs, wholes, strict=True):
            self._reduce_into(output, self._part_of(whole, output), opts)
        return _done(outputs)

    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def alltoall(self, outputs: Tensors, inputs: Tensors, opts: Any = AllToAllOptions()) -> dist.Work:
        self.count("all_to_all", inputs)
        self.record(f"all_to_all({of_tensors(inputs[:1], sizes=False)})")
        for output in outputs:
            _fill(output, inputs[self._rank])
        return _done(outputs)

    def all_to_all_single(
        self,
        output: torch.Tensor,
        own: torch.Tensor,
        output_sizes: Sequence[int] | None = None,
        input_sizes: Sequence[int] | None = None,
        opts: Any = AllToAllOptions(),
    ) -> dist.Work:
        del opts
        outputs = _split(output, output_sizes, self._size)
        return self.alltoall(outputs, _split(own, input_sizes, self._size))

    alltoall_base = all_to_all_single

    def send(self, tensors: Tensors, to: int, tag: int = 0) -> dist.Work:
        peer = dist.get_global_rank(self, to)
        self._traffic.add(self.group_desc, self._size, "send", tensors, ((peer, peer + 1, 1),))
        self._record_message(self._rank, to, tag, tensors)
        if self._numbers is not None and self._traffic.bridge is None:
            self._numbers.sent(self._message(self._rank, to, tag), tensors)
        return _done(tensors)

    def recv(self, tensors: Tensors, source: int, tag: int = 0) -> dist.Work:
        self._record_message(source, self._rank, tag, tensors)
        done = self._receive(tensors)
        if self._numbers is not None and self._traffic.bridge is None:
            self._numbers.received(self._message(source, self._rank, tag), tensors)
        return done

    def recv_anysource(self, tensors: Tensors, tag: int = 0) -> dist.Work:
        if self._calls is not None:
            self._calls.add_receive_from_any(self)
        return self._receive(tensors)

    def _receive(self, tensors: Tensors) -> dist.Work:
        for tensor in tensors:
            tensor.detach().zero_()
        return _done(tensors)

    def barrier(self, opts: Any = BarrierOptions()) -> dist.Work:
        self.count("barrier", ())
        self.record("barrier()")
        return _done([])

    def _part_of(self, whole: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        size = output.numel()
        return whole.reshape(-1)[self._rank * size : (self._rank + 1) * size].view(output.shape)

    def _reduce_into(self, output: torch.Tensor, own: torch.Tensor, opts: Any) -> None:
        reduced = output.detach()
        reduced.copy_(own)
        reduce_equal(reduced, opts.reduceOp, self._size)

    def count(self, operation: str, tensors: Tensors) -> None:
        """Count one call of an operation with these tensors of this rank."""
        self._traffic.add(self.group_desc, self._size, operation, tensors, self._members())

    def _members(self) -> Runs:
        if self._runs is None:
            self._runs = runs_of(dist.get_process_group_ranks(self))
        return self._runs

    def record(self, operation: str) -> None:
        """Record an operation, for the comparison with other members: its name, and what has to be the same on all."""
        if self._calls is not None:
            self._calls.add(self, operation)

    def _message(self, source: int, destination: int, tag: int) -> str:
        sender, receiver = (dist.get_global_rank(self, place) for place in (source, destination))
        return f"numbers from {sender} to {receiver}, {self.group_desc}, tag {tag}"

    def _record_message(self, source: int, destination: int, tag: int, tensors: Tensors) -> None:
        # Bridges compare their messages themselves.
        if self._calls is not None and self._traffic.bridge is None:
            self._calls.add_message(self, source, destination, tag, of_tensors(tensors))


def _repeat(outputs: Tensors, own: torch.Tensor) -> None:
    for output in outputs:
        _fill(output, own)


def _repeat_into(output: torch.Tensor, own: torch.Tensor) -> None:
    """Fill a tensor of all ranks' with this rank's, again and again."""
    if own.numel():
        # A copy: FSDP2 gathers in place, with its shard inside of the output.
        output.detach().view(-1, own.numel()).copy_(own.detach().reshape(1, -1).clone())


def _fill(output: torch.Tensor, own: torch.Tensor) -> None:
    """Copy as many elements as both have, and zeros beyond: peers' parts may have other sizes."""
    if output.shape == own.shape:
        output.detach().copy_(own.detach())
        return
    flat, given = output.detach().view(-1), own.detach().reshape(-1)
    common = min(flat.numel(), given.numel())
    flat[:common] = given[:common]
    flat[common:] = 0


def _split(tensor: torch.Tensor, sizes: Sequence[int] | None, parts: int) -> list[torch.Tensor]:
    return list(torch.split(tensor.detach(), list(sizes) if sizes else tensor.shape[0] // parts))


def _done(result: Any) -> dist.Work:
    future: torch.futures.Future[Any] = torch.futures.Future()
    future.set_result(result)
    work: dist.Work = bindings._create_work_from_future(future)  # type: ignore[attr-defined]
    return work
