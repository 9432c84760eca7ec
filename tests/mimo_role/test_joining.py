"""The GPU of a rank, where torch reports GPUs that this machine lacks."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch

import mimo_role
from mimo_role import joining


@pytest.fixture
def gpus(monkeypatch):
    """Simulate GPUs: their number, the current one (`None`: CUDA has not been used), and the world's."""

    def simulate(visible, *, current=None, world=None, local_rank="0"):
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: current is not None)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
        monkeypatch.setattr(joining.dist, "group", SimpleNamespace(WORLD=world))
        chosen = mock.Mock()
        monkeypatch.setattr(torch.cuda, "set_device", chosen)
        device = joining.device_of(True)
        chosen.assert_called_once_with(device)
        return device.index

    return simulate


def world_on(device):
    return SimpleNamespace(bound_device_id=device)


def test_each_rank_has_the_gpu_of_its_local_rank(gpus):
    assert gpus(8, local_rank="3") == 3


def test_a_rank_that_sees_its_own_gpu_only_uses_it(gpus):
    assert gpus(1, local_rank="3") == 0


def test_a_script_that_has_bound_its_world_keeps_the_device(gpus):
    assert gpus(8, world=world_on(torch.device("cuda", 5)), current=0, local_rank="3") == 5


def test_a_script_that_has_set_a_device_keeps_it(gpus):
    assert gpus(8, current=6, local_rank="3") == 6
    assert gpus(8, world=world_on(None), current=6, local_rank="3") == 6
    assert gpus(8, world=world_on(None), current=0, local_rank="3") == 0


def test_a_script_that_has_only_asked_about_gpus_has_set_none(gpus):
    assert gpus(8, current=0, local_rank="3") == 3
    assert gpus(8, world=world_on(None), local_rank="3") == 3


def test_a_local_rank_without_a_gpu_is_an_error(gpus):
    with pytest.raises(mimo_role.ContextError, match=r"LOCAL_RANK=3 on .*, where torch sees 2 GPUs"):
        gpus(2, local_rank="3")
