from dataclasses import dataclass, field

from mimo_role.bridge.frames import BatchKey, Edge, Want
from mimo_role.bridge.message_tags import Purpose
from mimo_role.bridge.wait_cycles import WaitCycles


@dataclass
class Awaiting:
    want: Want

    def describe(self):
        return f"waits for batch {self.want.key.batch} from rank {self.want.peer}"


@dataclass
class Gradients:
    sent: int = 0

    def send(self):
        self.sent += 1


@dataclass
class Rank:
    """A rank that waits, with the gradients that it owes and the reports that it forwards."""

    rank: int
    awaited: list
    owed: dict = field(default_factory=dict)
    passed_on: list = field(default_factory=list)
    invalid: set = field(default_factory=set)
    cycles: WaitCycles = field(default_factory=WaitCycles)

    def resolve(self):
        return self.cycles.resolve(
            self.rank,
            self.awaited,
            self.owed,
            lambda edge: edge not in self.invalid,
            lambda peer, path: self.passed_on.append((peer, path)),
        )


def forward(batch):
    return BatchKey(0, Purpose.FORWARD, batch)


def back(batch):
    return BatchKey(0, Purpose.BACK, batch)


def test_a_cycle_of_two_ranks_is_found():
    own = Rank(0, [Awaiting(Want(1, forward(5)))])
    own.cycles.add((Edge(1, Want(0, forward(4))),))
    problem = own.resolve()
    assert problem is not None
    assert problem.startswith("waits for batch 5 from rank 1, while rank 1 waits for batch 4 of bridge 0 from rank 0: ")
    assert own.passed_on == []


def test_a_cycle_of_three_ranks_is_found_by_forwarding_reports():
    """0 waits for 1, 1 for 2, and 2 for 0."""
    ranks = [Rank(rank, [Awaiting(Want((rank + 1) % 3, forward(rank)))]) for rank in range(3)]
    ranks[1].cycles.add((Edge(0, Want(1, forward(0))),))
    assert ranks[1].resolve() is None
    ((peer, path),) = ranks[1].passed_on
    assert (peer, path) == (2, (Edge(0, Want(1, forward(0))), Edge(1, Want(2, forward(1)))))
    ranks[2].cycles.add(path)
    problem = ranks[2].resolve()
    assert problem is not None
    assert "(by way of ranks 0, 1)" in problem


def test_a_report_is_forwarded_once_to_each_awaited_rank():
    own = Rank(1, [Awaiting(Want(2, forward(0))), Awaiting(Want(3, forward(0)))])
    own.cycles.add((Edge(0, Want(1, forward(0))),))
    assert [own.resolve() for _ in range(3)] == [None] * 3
    assert [peer for peer, _ in own.passed_on] == [2, 3]


def test_a_path_that_is_too_long_is_not_forwarded():
    own = Rank(99, [Awaiting(Want(100, forward(0)))])
    own.cycles.add(tuple(Edge(rank, Want(rank + 1, forward(0))) for rank in range(67, 99)))
    assert own.resolve() is None
    assert own.passed_on == []


def test_gradients_owed_within_a_cycle_are_sent_once():
    own = Rank(1, [Awaiting(Want(0, forward(8)))], {back(7): Gradients()})
    own.cycles.add((Edge(0, Want(1, back(7))),))
    assert [own.resolve(), own.resolve()] == [None, None]
    assert own.owed[back(7)].sent == 1
    assert not own.cycles


def test_gradients_are_not_sent_without_a_cycle():
    own = Rank(1, [Awaiting(Want(2, forward(8)))], {back(7): Gradients()})
    own.cycles.add((Edge(0, Want(1, back(7))),))
    assert own.resolve() is None
    assert own.owed[back(7)].sent == 0


def test_a_path_that_is_no_longer_valid_is_dropped():
    own = Rank(0, [Awaiting(Want(1, forward(5)))])
    edge = Edge(1, Want(0, forward(4)))
    own.invalid.add(edge)
    own.cycles.add((edge,))
    assert own.resolve() is None
    assert not own.cycles


def test_a_cycle_is_resolved_by_the_rank_that_owes_gradients():
    waits_for_gradients = Rank(0, [Awaiting(Want(1, back(4)))])
    waits_for_gradients.cycles.add((Edge(1, Want(0, forward(5))),))
    assert waits_for_gradients.resolve() is None
    in_the_middle = Rank(2, [Awaiting(Want(0, forward(5)))])
    in_the_middle.cycles.add((Edge(0, Want(1, back(4))), Edge(1, Want(2, forward(5)))))
    assert in_the_middle.resolve() is None


def test_a_cycle_over_a_receipt_of_gradients_is_an_error():
    own = Rank(0, [Awaiting(Want(1, back(4), is_receipt=True))])
    own.cycles.add((Edge(1, Want(0, forward(5))),))
    assert own.resolve() is not None
