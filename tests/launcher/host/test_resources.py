"""GPUs, CPU cores and memory of this machine."""

import pytest

from launcher.host import resources


@pytest.mark.parametrize(("visible", "count"), [("", 0), ("-1", 0), ("0", 1), ("0,3", 2), ("GPU-1a,GPU-2b", 2)])
def test_gpus_are_counted_without_torch(monkeypatch, visible, count):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert resources.gpus() == count
    assert resources.rank_slots() == (count or resources.cores())


def test_this_machine_has_memory_and_cores():
    assert resources.cores() >= 1
    assert resources.available_memory() > 0
