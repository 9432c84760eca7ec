"""Many starts and ends in a row leave nothing behind."""

import contextlib
import os
import uuid
from pathlib import Path

import pytest

from tests.faults.harness import MARK, marked
from tests.launcher.jobs import Job

pytestmark = pytest.mark.ranks

STARTS = int(os.environ.get("MIMO_TEST_STARTS", "6"))
"""200 take about eight minutes."""

CONFIG = """\
name: again
layout: colocated
modules: {language: {dp: 4}}
entry: {script: script.py}
"""

SCRIPT = """
import multiprocessing, os, signal, tempfile, torch
from multiprocessing.shared_memory import SharedMemory
kept = tempfile.NamedTemporaryFile()
memory = SharedMemory("{mark}" + os.environ["RANK"], create=True, size=64)
worker = multiprocessing.get_context("fork").Process(target=input, daemon=True)
worker.start()
os.system("(sleep 1000 &) >/dev/null")
if os.environ["RANK"] != "3":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it would end a rank without removing its file
torch.distributed.barrier()
if os.environ["RANK"] == "3" and {fails}:
    raise SystemExit(3)
memory.close(), memory.unlink()
"""


@pytest.mark.timeout(60 + 10 * STARTS)
def test_starts_and_ends_leave_no_process_and_no_file(tmp_path):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    mark = uuid.uuid4().hex
    others = children_of(os.getpid())
    job = Job(tmp_path, CONFIG, environ={"TMPDIR": str(temporary), MARK: mark})
    for number in range(STARTS):
        fails = number % 2 == 1
        done = job.run(SCRIPT.format(fails=fails, mark=mark), "runtime.grace_s=30")
        assert done.returncode == (3 if fails else 0), done.stderr
        assert marked(mark) == []
        assert list(temporary.iterdir()) == []
        run_id = (tmp_path / "runs" / "again" / "run_id").read_text()
        assert [path.name for path in Path("/dev/shm").iterdir() if mark in path.name or run_id in path.name] == []
    assert set(children_of(os.getpid())) <= set(others)


def children_of(parent):
    """Zombies too."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            found += [path.parent.name] if path.read_text().rpartition(")")[2].split()[1] == str(parent) else []
    return found
