"""Runs that something goes wrong in, and what holds of every one of them, however it ends."""

import contextlib
import io
import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from launcher import cli
from launcher.host import reaper
from tests.launcher.jobs import ROOT, Job

IS_SPAWNED_RANK = "'run' in sys.orig_argv and any(word.endswith('program.py') for word in sys.orig_argv)"
"""For `sitecustomize.py`: whether this interpreter is that of a rank with `start_method: spawn`."""
_Value = TypeVar("_Value")
MARK = "MIMO_FAULT_TEST"
_CONFIG = """\
name: fault
layout: {layout}
modules: {modules}
entry: {entry}
run_dir: run
runtime: {{grace_s: 1, timeout_s: 60, start_method: {start_method}}}
"""

PRELUDE = """\
import os, signal, subprocess, sys, threading, time
from pathlib import Path
rank, size, attempt = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MIMO_RESTART_COUNT"))
bad = rank == size - 1
print(f"rank {rank} is up", flush=True)
Path(f"pid{attempt}.{rank}.tmp").write_text(str(os.getpid()))
os.rename(f"pid{attempt}.{rank}.tmp", f"pid{attempt}.{rank}")

def wait_for(*names):
    while not all(os.path.exists(name) for name in names):
        time.sleep(0.01)

def talk():
    "What ranks do that have not failed: they talk, where they have joined."
    while True:
        time.sleep(0.01)
        if "mimo_role.lifecycle" in sys.modules:
            import torch.distributed
            if torch.distributed.is_initialized():
                torch.distributed.all_reduce(torch.ones(()))

wait_for(*(f"pid{attempt}.{other}" for other in range(size)))
"""
"""Where scripts of faults begin: all ranks are up, and the last one, `bad`, is the one at fault."""


@dataclass(frozen=True)
class Layout:
    """A job's ranks."""

    modules: str
    labels: tuple[str, ...]
    layout: str = "non_colocated"
    entry: str = "{script: script.py}"
    start_method: str = "forkserver"

    @property
    def config(self) -> str:
        return _CONFIG.format(layout=self.layout, modules=self.modules, entry=self.entry, start_method=self.start_method)

    def rank(self, number: int) -> str:
        """A rank as messages name it."""
        return f"rank {number} ({self.labels[number]})"

    @property
    def culprit(self) -> str:
        return self.rank(len(self.labels) - 1)


_TWO_MODULES, _THEIR_LABELS = "{vision: {}, language: {tp: 2}}", ("vision", "language.tp0", "language.tp1")

LAYOUTS = {
    "non_colocated": Layout(_TWO_MODULES, _THEIR_LABELS),
    "colocated": Layout(
        "{vision: {dp: 2}, language: {tp: 2}}", ("vision.dp0+language.tp0", "vision.dp1+language.tp1"), layout="colocated"
    ),
    "pipeline": Layout("{vision: {}, language: {pp: 2}}", ("vision", "language.pp0", "language.pp1")),
    "spawn": Layout(_TWO_MODULES, _THEIR_LABELS, start_method="spawn"),
    "command": Layout(_TWO_MODULES, _THEIR_LABELS, entry="{command: [python3, -u, script.py]}"),
    "digits": Layout(
        "{vision: {dp: 2}, language: {tp: 2}}",
        ("vision.dp0", "vision.dp1", "language.tp0", "language.tp1"),
        entry=f"{{script: {ROOT}/examples/digits_vlm/train.py}}",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong in a run, and what is to be told of it. `{culprit}` in `says` stands for the rank at fault."""

    code: int
    script: str = "talk()"
    layout: str = "non_colocated"
    says: tuple[str, ...] = ()
    names: str = "{culprit}"
    """What the first line of the message names."""
    outcome: str | None = "failed"
    """The word in the report; `None` where nobody is left to write one."""
    words: tuple[str, ...] = ()
    """More words of the command line."""
    strike: "Callable[[Run], None] | None" = None
    """What is done from outside once all ranks are up."""
    has_prelude: bool = True
    attempts: int = 1
    bound_s: float = 60.0
    """How long the run may take from its start, on a slow and busy machine."""

    @property
    def place(self) -> Layout:
        return LAYOUTS[self.layout]

    def told(self) -> list[str]:
        return [text.replace("{culprit}", self.place.culprit) for text in self.says]


@dataclass
class Run:
    """One mimo-launch on this machine, and all processes that it has started."""

    job: Job
    fault: Fault
    process: "subprocess.Popen[str]"
    deadline: float
    mark: str
    out: str = ""
    err: str = ""

    @property
    def folder(self) -> Path:
        return self.job.folder / "run"

    @cached_property
    def agent_id(self) -> str:
        self.wait_until(lambda: (self.folder / "run_id").exists() and (self.folder / "logs").exists(), "the run directory")
        return (self.folder / "run_id").read_text()

    def pid(self, rank: int = -1, attempt: int = 0) -> int:
        """A rank's process, as soon as all ranks are up. By default that of the last rank, which is at fault."""
        number = rank % len(self.fault.place.labels)
        self.wait_until(lambda: self._ranks_up(attempt) == len(self.fault.place.labels), "all ranks to be up")
        return int((self.job.folder / f"pid{attempt}.{number}").read_text())

    def fork_server(self) -> int:
        """The process that ranks are started from. The first one of a job of spawned ranks is soon replaced."""
        (found,) = self.wait_until(self._fork_servers, "the fork server")
        return found

    def _fork_servers(self) -> list[int]:
        reapers = [pid for pid in reaper.processes_of(self.agent_id) if reaper.__file__.encode() in words_of(pid)]
        below = [pid for pid in reaper.processes_of(self.agent_id) if parent_of(pid) in reapers]  # orphans too
        return [pid for pid in below if b"program.py" in words_of(pid)]

    def ranks(self) -> list[int]:
        """The processes started from the server, in the order of their ranks unless process numbers have begun anew."""
        servers = self._fork_servers()
        return sorted(pid for pid in reaper.processes_of(self.agent_id) if parent_of(pid) in servers)

    def touch(self, name: str) -> None:
        """Tell the script something."""
        (self.job.folder / name).touch()

    def wait_until(self, met: Callable[[], _Value], what: str) -> _Value:
        """Look again and again, as long as the run may take, and return the first true value."""
        while not (value := met()):
            assert self.process.poll() is None or met(), f"waited for {what}; {self.process.communicate()}"
            assert time.monotonic() < self.deadline, f"waited for {what}"
            time.sleep(0.005)
        return value

    def finish(self) -> None:
        """Wait for the end, within the bound."""
        self.out, self.err = self.process.communicate(timeout=max(0.1, self.deadline - time.monotonic()))

    def left(self) -> list[int]:
        """All processes that come from this one's environment, mimo-launch itself and its helpers among them."""
        return marked(self.mark)

    def report(self) -> dict:
        return json.loads((self.folder / "report.json").read_text(encoding="utf-8"))

    def _ranks_up(self, attempt: int) -> int:
        return len([path for path in self.job.folder.glob(f"pid{attempt}.*") if path.suffix != ".tmp"])


@contextlib.contextmanager
def running(job: Job, fault: Fault) -> Iterator[Run]:
    """Start a run; whatever becomes of the test, none of its processes stays."""
    mark = uuid.uuid4().hex
    job.config = fault.place.config
    job.environ |= {MARK: mark}
    script = (PRELUDE if fault.has_prelude else "") + fault.script
    process = job.start(script, *fault.words)
    try:
        yield Run(job, fault, process, time.monotonic() + fault.bound_s, mark)
    finally:
        for pid in marked(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        process.communicate()


def suffer(job: Job, fault: Fault) -> Run:
    """Let a run go wrong, and check all that holds of every run."""
    with running(job, fault) as run:
        if fault.strike is not None:
            fault.strike(run)
        run.finish()
        check(run)
        return run


def check(run: Run) -> None:
    """The exit code, the message, that nothing is left, and that the run directory can be read."""
    fault = run.fault
    assert run.process.returncode == fault.code, run.err[-4000:]
    check_nothing_is_left(run)
    missing = [text for text in fault.told() if text not in run.err]
    assert not missing, run.err[-4000:]
    if fault.outcome is not None:
        check_report(run)
    else:
        assert not (run.folder / "report.json").exists()
    check_folder(run)


def check_nothing_is_left(run: Run) -> None:
    """Neither processes nor the folder in memory. Who was not killed itself has seen to it before it ended."""
    if run.process.returncode > 0:
        assert reaper.processes_of(run.agent_id) == []
    wait_until_gone(run.mark)
    assert not list(Path("/dev/shm").glob(f"mimo-{run.agent_id}-*"))


def check_report(run: Run) -> None:
    report, fault = run.report(), run.fault
    assert (report["outcome"], report["exit_code"], report["attempts"]) == (fault.outcome, fault.code, fault.attempts)
    if fault.code == 0:
        assert report["headline"] is None
        return
    assert fault.names.replace("{culprit}", fault.place.culprit) in report["headline"]
    headline = report["headline"].encode(errors="backslashreplace").decode()
    assert f"mimo-launch: {headline}\n" in run.err, run.err[-4000:]


def check_folder(run: Run) -> None:
    """People can read what is left on disk, by hand and by mimo-launch."""
    status = mimo_launch("status", str(run.folder))
    assert f"run directory: {run.folder}: over" in status
    assert "vision" in status
    assert "language" in status
    logs = mimo_launch("logs", str(run.folder))
    for rank, label in enumerate(run.fault.place.labels):
        if run.fault.has_prelude:
            assert (run.folder / "logs" / f"attempt{run.fault.attempts - 1}" / f"rank{rank}.stdout.log").exists()
            assert f"[{label} r{rank}] rank {rank} is up\n" in logs


def mimo_launch(*words: str) -> str:
    """What a command prints that starts no ranks."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.main(list(words)) == 0, words
    return out.getvalue()


def marked(mark: str) -> list[int]:
    """The processes that live with this mark in their environment."""
    entry = f"{MARK}={mark}".encode()
    found = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/environ") if entry in _read(path).split(b"\0")]
    return [pid for pid in found if pid != os.getpid()]


def wait_until_gone(mark: str, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while left := marked(mark):
        assert time.monotonic() < deadline, [reaper.describe(pid) for pid in left]
        time.sleep(0.01)


def parent_of(pid: int) -> int | None:
    stat = _read(Path(f"/proc/{pid}/stat"))
    return int(stat.rpartition(b")")[2].split()[1]) if stat else None


def words_of(pid: int) -> bytes:
    """A process's command line."""
    return _read(Path(f"/proc/{pid}/cmdline"))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
