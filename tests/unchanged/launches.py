"""The same program under torchrun and under mimo-launch: what it prints and writes, and how it ends."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(__file__).parent / "scripts"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
MIMO_LAUNCH = [sys.executable, str(ROOT / "mimo_launch.py")]
CONFIG = "job.yaml"
WORLD_SIZE = 2
_TIMEOUT_S = 300
_ENDS_WITHIN_S = 60
_OF_THE_TESTS = re.compile(r"RANK|WORLD_SIZE|PYTEST_.*|PYTHON(PATH|HASHSEED|UNBUFFERED)|(OMP|MKL)_NUM_THREADS|TORCH.*")
_VARYING = (
    (re.compile(r"\b([IWE])\d{4} \d\d:\d\d:\d\d\.\d+ (\d+ )?"), r"\1 TIME "),
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"), "TIME"),
    (re.compile(r"\r? *\d+%\|[^\r\n\[]*\[[^\]]*\] *"), ""),  # how often a progress bar is drawn depends on time
    (re.compile(r"\r| +$|\n\s*(?=\n)"), ""),
    (re.compile(r"\(pid=\d+\)"), "(pid=PID)"),
    (re.compile(r"(_(?:runtime|per_second)['\"]: )['\"]?[\d.]+"), r"\1TIME"),
)
"""Dates and times of torch's log, of Python's, of tqdm, and of Trainer's metrics; and process ids."""
_UUID = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Program:
    """A training program in `scripts`, and its arguments."""

    entry: str
    """A script, or the name of a module for `-m`."""
    args: tuple[str, ...] = ()

    @property
    def is_module(self) -> bool:
        return not self.entry.endswith(".py")


@dataclass(frozen=True)
class RankOutput:
    """All that one rank has printed."""

    stdout: str
    stderr: str


@dataclass(frozen=True)
class Launch:
    """One run of a program."""

    code: int
    ranks: tuple[RankOutput, ...]
    stdout: str
    """Of the launcher."""
    stderr: str
    files: Mapping[str, str | bytes] = field(repr=False)
    """What the program has written in its folder."""


def torchrun_command(program: Program, project: Path, *options: str) -> list[str]:
    """The command line of torchrun that runs the program on two ranks."""
    entry = ["-m", program.entry] if program.is_module else [str(project / program.entry)]
    return [*TORCHRUN, "--standalone", f"--nproc-per-node={WORLD_SIZE}", *options, *entry, *program.args]


def mimo_launch_command(program: Program, project: Path, *overrides: str, join: str = "script") -> list[str]:
    """The command line of mimo-launch that does the same, with the shortest config for it."""
    _write_config(project, program, join)
    return [*MIMO_LAUNCH, "run", CONFIG, "--log-fold=off", *overrides, "--", *program.args]


def by_torchrun(program: Program, folder: Path, given: str = "", wrapper: Sequence[str] = ()) -> Launch:
    """Run the program under torchrun.

    Args:
        program: what to run.
        folder: an empty one, for the run.
        given: what the launcher reads from its standard input.
        wrapper: a command that starts the launcher.
    """
    project, logs = copy_project(folder), folder / "logs"
    done = _finish([*wrapper, *torchrun_command(program, project, f"--log-dir={logs}", "--tee=3")], project, given)
    (attempt,) = logs.glob("*/attempt_0")
    return _launch(done, folder, lambda rank, stream: attempt / str(rank) / f"{stream}.log")


def by_mimo_launch(
    program: Program, folder: Path, given: str = "", wrapper: Sequence[str] = (), join: str = "script"
) -> Launch:
    """Run the program under mimo-launch; arguments as for torchrun, and the config's `runtime.join`."""
    project = copy_project(folder)
    done = _finish([*wrapper, *mimo_launch_command(program, project, join=join)], project, given)
    attempt = folder / "run" / "logs" / "attempt0"
    return _launch(done, folder, lambda rank, stream: attempt / f"rank{rank}.{stream}.log")


def _write_config(project: Path, program: Program, join: str) -> None:
    entry = {"module": program.entry} if program.is_module else {"script": program.entry}
    config = {
        "name": "unchanged",
        "layout": "colocated",
        "modules": {"language": {"dp": WORLD_SIZE}},
        "entry": entry,
        "runtime": {"backend": "gloo", "join": join},
        "run_dir": "../run",
    }
    (project / CONFIG).write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML


def environment(**settings: str) -> dict[str, str]:
    """The environment of a user's shell."""
    kept = {name: value for name, value in os.environ.items() if not _OF_THE_TESTS.fullmatch(name)}
    return kept | {"COLUMNS": "300", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1", **settings}


def copy_project(folder: Path) -> Path:
    """Copy the programs into a folder of their own, from which they are started."""
    return Path(shutil.copytree(SCRIPTS, folder / "project", ignore=shutil.ignore_patterns("__pycache__")))


def _finish(command: list[str], folder: Path, given: str) -> "subprocess.CompletedProcess[str]":
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        try:
            out, err = process.communicate(given, timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.terminate()  # so that it ends its ranks
            process.communicate(timeout=_ENDS_WITHIN_S)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _launch(done: "subprocess.CompletedProcess[str]", folder: Path, logs: Callable[[int, str], Path]) -> Launch:
    def read(rank: int, stream: str) -> str:
        return comparable(logs(rank, stream).read_text(encoding="utf-8"), folder)

    return Launch(
        code=done.returncode,
        ranks=tuple(RankOutput(read(rank, "stdout"), read(rank, "stderr")) for rank in range(WORLD_SIZE)),
        stdout=comparable(done.stdout, folder),
        stderr=comparable(done.stderr, folder),
        files=_written_in(folder),
    )


def comparable(text: str, folder: Path) -> str:
    """A text without what differs between any two runs: the folder, times and process ids."""
    text = text.replace(str(folder), "FOLDER")
    for pattern, replacement in _VARYING:
        text = pattern.sub(replacement, text)
    return text


def _written_in(folder: Path) -> dict[str, str | bytes]:
    found: dict[str, str | bytes] = {}
    for path in (path for path in (folder / "project").rglob("*") if path.is_file()):
        name, data = str(path.relative_to(folder / "project")), path.read_bytes()
        if name == CONFIG or (SCRIPTS / name).exists():
            continue
        try:
            found[name] = comparable(data.decode(), folder)
        except UnicodeDecodeError:
            found[name] = _UUID.sub(b"UUID", data)
    return found
