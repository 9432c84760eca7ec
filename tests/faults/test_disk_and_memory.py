"""A disk that is full or cannot be written, and memory that has run out, for the kernel to see."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.faults.harness import Fault, check_folder, check_nothing_is_left, running, suffer

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]
if os.geteuid() != 0:
    pytest.skip("only root can mount file systems and make cgroups", allow_module_level=True)

CGROUPS = Path("/sys/fs/cgroup/memory")
FILLS = """
def fill():
    with open("run/fill", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
"""
SAYS_FULL = ("OSError: [Errno 28] No space left on device", "hint: free some space on ")


@pytest.fixture
def disk(job):
    """A small file system in the place of the run directory."""
    folder = job.folder / "run"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(
            Fault(code=1, script=FILLS + "if bad:\n    fill()\ntalk()", says=("{culprit} failed first: ", *SAYS_FULL)),
            id="a rank fills it, non_colocated",
        ),
        pytest.param(
            Fault(
                layout="spawn",
                code=1,
                script=FILLS + "if bad:\n    fill()\ntalk()",
                says=("{culprit} failed first: ", *SAYS_FULL),
            ),
            id="a rank fills it, spawn",
        ),
        pytest.param(
            Fault(layout="command", code=1, script=FILLS + "if bad:\n    fill()\ntalk()", says=("{culprit} failed first: ",)),
            id="a rank fills it, command",
        ),
        pytest.param(
            Fault(
                layout="colocated",
                code=1,
                script=FILLS + "if bad:\n    try:\n        fill()\n    except OSError:\n        print('x' * 10000)\ntalk()",
                says=("{culprit} failed first: ", *SAYS_FULL),
            ),
            id="output has no place, colocated",
        ),
        pytest.param(
            Fault(
                layout="pipeline",
                code=7,
                script=FILLS + "if bad:\n    try:\n        fill()\n    except OSError:\n        sys.exit(7)\ntalk()",
                says=("{culprit} failed first: exit code 7",),
            ),
            id="a rank fills it and exits, pipeline",
        ),
    ],
)
def test_a_disk_that_becomes_full_is_told(job, disk, fault):
    with running(job, fault) as run:
        run.finish()
        assert run.process.returncode == fault.code, run.err[-4000:]
        check_nothing_is_left(run)
        assert all(text in run.err for text in fault.told()), run.err[-4000:]
        # It is told where it cannot be kept.
        assert "report.json: No space left on device; the report is not written" in run.err, run.err
        assert not (disk / "report.json").exists()
        check_folder(run)


def test_a_disk_that_is_full_already_is_refused(job, disk):
    with pytest.raises(OSError, match="No space left"):
        (disk / "fill").write_bytes(bytes(2 << 20))
    _check_refused(job, f"mimo-launch: run_dir: {disk}: No space left on device; choose another with run_dir=...")


def test_a_run_folder_that_cannot_be_written_is_refused(job, disk):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    _check_refused(job, f"mimo-launch: run_dir: {disk}/.lock: Read-only file system; choose another with run_dir=...")


def test_a_parent_of_the_run_folder_that_cannot_be_written_is_refused(job, disk):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    _check_refused(job, f"mimo-launch: run_dir: {disk}/mine: Read-only file system; choose", "run_dir=run/mine")


def _check_refused(job, says, *words):
    before = {path.name for path in Path("/dev/shm").glob("mimo-*")}
    with running(job, Fault(code=2, bound_s=20, words=words)) as run:
        run.finish()
        assert run.process.returncode == 2
        assert says in run.err
        assert run.left() == []
        assert not [path for path in Path("/dev/shm").glob(f"mimo-*-{run.process.pid}-*") if path.name not in before]


@pytest.fixture
def cgroup():
    """A group of processes that may take 300 MiB together."""
    if not (CGROUPS / "memory.limit_in_bytes").exists() or not os.access(CGROUPS, os.W_OK):
        pytest.skip("no memory controller of cgroup v1 that can be written")
    folder = CGROUPS / f"mimo-fault-{os.getpid()}"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text(str(300 << 20))
    yield folder
    folder.rmdir()


TAKES_TOO_MUCH = """
if bad:
    Path({!r}, "cgroup.procs").write_text(str(os.getpid()))
    much = bytearray(1 << 30)
    much[::4096] = bytes(1 << 18)
talk()
"""


@pytest.mark.parametrize("layout", ["non_colocated", "colocated", "command"])
def test_the_kernels_out_of_memory_killer_is_named(job, cgroup, layout):
    module = "modules.vision, modules.language" if layout == "colocated" else "modules.language"
    says = (
        "{culprit} failed first: killed by SIGKILL",
        "hint: the kernel's out-of-memory killer has ended ",
        f"since the run began: {module} takes",
    )
    suffer(job, Fault(layout=layout, code=1, script=TAKES_TOO_MUCH.format(str(cgroup)), says=says))


def test_a_data_loader_worker_that_the_kernel_has_killed_for_want_of_memory(job, cgroup):
    script = f"""
from torch.utils.data import DataLoader, Dataset
class Large(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        if bad:
            Path({str(cgroup)!r}, "cgroup.procs").write_text(str(os.getpid()))
            bytearray(1 << 30)[::4096] = bytes(1 << 18)
        return index
for _ in DataLoader(Large(), num_workers=1, multiprocessing_context="fork"):
    pass
talk()
"""
    says = (
        "{culprit} failed first: RuntimeError: DataLoader worker (pid",
        "hint: the kernel's out-of-memory killer has ended ",
    )
    suffer(job, Fault(code=1, script=script, says=says))
