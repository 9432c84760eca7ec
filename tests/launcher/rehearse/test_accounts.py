"""With which torch memory is counted."""

import pytest

from launcher.errors import LaunchError
from launcher.rehearse import memory


@pytest.mark.parametrize("installed", ["2.8.0", "2.11.0+cu130", "2.12.1"])
def test_an_earlier_torch_is_refused_as_its_numbers_are_wrong(monkeypatch, installed):
    monkeypatch.setattr(memory, "version", lambda _: installed)
    with pytest.raises(LaunchError, match=rf"--memory needs torch 2\.13 or later, .* this is torch {installed[:4]}"):
        memory.check_torch()


@pytest.mark.parametrize("installed", ["2.13.0+cpu", "2.15.0a0+git1234", "3.0.0"])
def test_a_later_torch_is_not(monkeypatch, installed):
    monkeypatch.setattr(memory, "version", lambda _: installed)
    memory.check_torch()
