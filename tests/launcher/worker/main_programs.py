"""Programs by themselves, under plain Python and as ranks: what they print, and how they end.

The ranks are started by a fork server as an agent starts them, but without an agent: one takes a fraction of a second.
"""

import itertools
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from launcher.config.loader import load
from launcher.host.fork_server import ForkServer, Request
from launcher.host.preload_list import ModuleToPreload, PreloadList
from launcher.host.server_process import PROGRAM, interpreter
from launcher.plan.planner import make_plan
from tests.launcher import fork_servers

START_METHODS = ("forkserver", "spawn")
_TIMEOUT_S = 60
_OF_THE_TESTS = ("PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_CONFIG = """\
name: one
layout: colocated
modules: {language: {}}
entry: {script: script.py}
runtime: {backend: gloo, join: script}
"""


_DIFFERENT = {
    re.compile(r"\b0x[0-9a-f]+"): "0x...",
    re.compile(r'^  File "(<frozen runpy>|.*/runpy\.py)", line .*\n(    .*\n)?', re.MULTILINE): "",
}
"""Addresses of objects; frames of `python -m`, which ranks leave out."""


@dataclass(frozen=True)
class Ended:
    """How a program has ended."""

    code: int
    """Its exit code, negative for a signal."""
    out: str
    err: str

    @classmethod
    def of(cls, code: int, out: str, err: str) -> "Ended":
        """Without what differs between any two processes."""
        for pattern, text in _DIFFERENT.items():
            out, err = pattern.sub(text, out), pattern.sub(text, err)
        return cls(code, out, err)


class Programs:
    """Runs programs in one folder."""

    def __init__(self, server: ForkServer, folder: Path, environ: dict[str, str]) -> None:
        self.folder = folder
        self._server = server
        self._environ = environ
        self._count = itertools.count()

    def write(self, name: str, text: str | bytes) -> str:
        """Write a file in the folder; return its path."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    def by_python(self, *words: str, **variables: str) -> Ended:
        """Run `python -u WORDS`, as torchrun runs a rank."""
        done = subprocess.run(
            [sys.executable, "-u", *words],
            cwd=self.folder,
            env=self._environ | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=_TIMEOUT_S,
            check=False,
        )
        return Ended.of(done.returncode, done.stdout, done.stderr)

    def as_rank(
        self,
        start_method: str,
        entry: Mapping[str, str],
        *args: str,
        env: Mapping[str, str] | None = None,
        **variables: str,
    ) -> Ended:
        """Run a program as the only rank of a job whose script joins.

        Args:
            start_method: of the config.
            entry: of the config.
            args: the program's.
            env: the configured environment of the rank's module.
            variables: in the environment of mimo-launch.
        """
        own = self.folder / f"rank{next(self._count)}"
        own.mkdir()
        words = ("run", str(_write_plan(own, entry, args, env or {})), "a-run", "node0")
        forked, spawned = Request("run", words[1:]), Request("exec", (*interpreter(), PROGRAM, *words))
        of_the_rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_ERROR_FILE": str(own / "error.json")}
        with Path(os.devnull).open() as nothing, (own / "out").open("w") as out, (own / "err").open("w") as err:
            streams = (nothing.fileno(), out.fileno(), err.fileno())
            request = forked if start_method == "forkserver" else spawned
            pid = self._server.start_rank(request, self._environ | variables | of_the_rank, streams)
        code = self._wait_for(pid)
        return Ended.of(code, *((own / name).read_text(encoding="utf-8") for name in ("out", "err")))

    def _wait_for(self, pid: int) -> int:
        with suppress(ProcessLookupError):  # it has ended
            pidfd = os.pidfd_open(pid)
            ended, _, _ = select.select([pidfd], [], [], _TIMEOUT_S)
            os.close(pidfd)
            if not ended:
                os.kill(pid, signal.SIGKILL)
                pytest.fail(f"it has not ended in {_TIMEOUT_S} s")
        while (code := self._server.exit_code(pid)) is None:
            time.sleep(0.001)
        return code


@contextmanager
def programs(folder: Path, *, preload: Sequence[str] = (), **variables: str) -> Iterator[Programs]:
    """Programs in a folder, which is the current one of all of them.

    Args:
        folder: one without the names that `Programs` uses.
        preload: modules that the fork server imports, for scripts in this folder.
        variables: in the environment of all processes.
    """
    directory = folder / "node directory"
    directory.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in _OF_THE_TESTS:
            patch.delenv(name, raising=False)
        for name, value in variables.items():
            patch.setenv(name, value)
        environ = dict(os.environ)
        modules = tuple(ModuleToPreload.listed(at, name) for at, name in enumerate(preload))
        wanted = PreloadList(modules, {"script": str(folder / "script.py"), "args": []}) if preload else None
        server = fork_servers.start(f"test-{os.getpid()}", directory, preload=True, wanted=wanted)
    try:
        server.wait_for_modules(print)
        yield Programs(server, folder, environ)
    finally:
        server.close()


def _write_plan(folder: Path, entry: Mapping[str, str], args: Sequence[str], env: Mapping[str, str]) -> Path:
    config_file = folder / "job.yaml"
    config_file.write_text(_CONFIG, encoding="utf-8")
    (folder / "script.py").touch()
    plan = make_plan(load(config_file, [])[0], config_file, ())
    plan = replace(plan, entry=replace(plan.entry, **{"script": None, **entry}, args=tuple(args)), module_env={"language": env})
    plan_file = folder / "plan.json"
    plan_file.write_text(plan.to_json(), encoding="utf-8")
    return plan_file
