"""GPUs, CPU cores and memory of this machine."""

import pytest

from launcher.host import resources


@pytest.mark.parametrize(("visible", "count"), [("", 0), ("-1", 0), ("0", 1), ("0,3", 2), ("GPU-1a,GPU-2b", 2)])
def test_gpus_are_counted_without_torch(monkeypatch, visible, count):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert resources.gpus() == count
    assert resources.rank_slots() == (count or resources.cores())


class Machine:
    """A machine's GPUs, as the driver and the device files show them."""

    def __init__(self, folder, monkeypatch):
        self._proc, self._dev = folder / "gpus", folder / "dev"
        self._dev.mkdir()
        for name in ("nvidiactl", "nvidia-uvm", "nvidia-caps"):
            (self._dev / name).touch()
        monkeypatch.setattr(resources, "_DRIVERS_GPUS", self._proc)
        monkeypatch.setattr(resources, "_DEVICES", self._dev)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def has(self, *, driver, files):
        for number in range(driver):
            (self._proc / f"0000:{number:02x}:00.0").mkdir(parents=True)
        for number in files:
            (self._dev / f"nvidia{number}").touch()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("driver", "files", "count"),
    [
        pytest.param(0, (), 0, id="no GPU"),
        pytest.param(8, range(8), 8, id="a machine"),
        pytest.param(0, (5, 12), 2, id="a container without the driver's directory"),
        pytest.param(8, (3,), 1, id="a container with one of the machine's GPUs"),
        pytest.param(8, (), 8, id="a machine whose device files are not created yet"),
    ],
)
def test_gpus_are_those_whose_device_files_are_there_or_else_the_drivers(machine, driver, files, count):
    machine.has(driver=driver, files=files)
    assert resources.gpus() == count


def test_gpus_whose_device_files_cannot_be_opened_do_not_count(machine, monkeypatch):
    machine.has(driver=2, files=range(2))
    monkeypatch.setattr(resources.os, "access", lambda path, _: path.name == "nvidia1")  # a superuser may open all
    assert resources.gpus() == 1


def test_visible_devices_come_before_device_files(machine, monkeypatch):
    machine.has(driver=8, files=range(8))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert resources.gpus() == 2


def test_this_machine_has_memory_and_cores():
    assert resources.cores() >= 1
    assert resources.available_memory() > 0
