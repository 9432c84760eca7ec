"""Small tensors that roots broadcast in their own rehearsals."""

import pytest
import torch

from mimo_role.rehearsal.board import Board
from mimo_role.rehearsal.broadcasts import Broadcasts

PAIR, OTHER_PAIR, ALIKE = ((0, 2, 1),), ((0, 3, 2),), ((4, 6, 1),)


@pytest.fixture
def board(tmp_path):
    return Board(tmp_path)


def received(board, group, ranks, root=0, like=(0,)):
    tensor = torch.tensor(like)
    Broadcasts(board).receive(group, ranks, root, [tensor])
    return tensor.tolist()


def test_members_of_two_groups_without_a_description_get_what_is_sent_over_theirs(board):
    root = Broadcasts(board)
    root.send("undefined", PAIR, 0, [torch.tensor([3])])
    root.send("undefined", OTHER_PAIR, 0, [torch.tensor([7])])
    assert received(board, "undefined", PAIR) == [3]
    assert received(board, "undefined", OTHER_PAIR) == [7]
    assert received(board, "undefined", ALIKE, root=4) == [0]


def test_a_group_whose_root_was_not_rehearsed_gets_what_an_alike_one_sends(board):
    Broadcasts(board).send("language.tp", PAIR, 0, [torch.tensor([3])])
    assert received(board, "language.tp", ALIKE, root=4) == [3]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (torch.arange(1024), True),
        (torch.arange(1025), False),
        (torch.full((64,), 0.1, dtype=torch.bfloat16), True),
        (torch.ones(65), False),
    ],
)
def test_many_integers_and_few_fractions_are_kept(board, sent, kept):
    Broadcasts(board).send("world", PAIR, 0, [sent])
    tensor = torch.full_like(sent, 2)
    Broadcasts(board).receive("world", PAIR, 0, [tensor])
    assert torch.equal(tensor, sent if kept else torch.full_like(sent, 2))
