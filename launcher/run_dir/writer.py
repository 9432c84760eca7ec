"""The run folder: what a run leaves on disk, and who may write there.

config.yaml     the config with all interpolations resolved
plan.json       the launch plan
nodes.json      which host is which of the plan's nodes, where there are several
report.json     how the run ended, and of a failure which rank was first and why
slurm_job       the id of the SLURM job that the run is part of
logs/attempt0/  rank3.stdout.log, rank3.stderr.log, rank3.error.json: one set per rank, a folder per restart
previous/       the same of earlier runs, by their ids
.lock           held while a run is going on
"""

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.errors import LaunchError
from launcher.plan.placement import Node
from mimo_role.host import environ
from mimo_role.host.files import write_whole

logger = logging.getLogger(__name__)

# The id goes last: it tells that the others are ours.
_OURS = ("config.yaml", "plan.json", "nodes.json", "slurm_job", "report.json", "logs", "run_id")
_PATIENCE_S = 60.0
"""How long a node other than node 0 looks for what node 0 has written, where another run seems to have the folder."""
_MOMENT_S = 0.3
"""`mimo-launch status` looks at a lock by taking it."""


class RunDir:
    """One run's folder, locked for as long as this object is open."""

    def __init__(
        self, path: Path, config_text: str, plan_text: str, agent_id: str, run_id: str, slurm_job: str | None = None
    ) -> None:
        """Take the folder, put an earlier run's files aside, and write this run's.

        A node that finds the run of this id there already shares the folder with the node that has taken it.

        Raises:
            LaunchError: another run has it, or it cannot be written.
        """
        self.path = path
        self.agent_id = agent_id
        self.run_id = run_id
        self._slurm_job = slurm_job
        self._lock: int | None = None
        if self._is_there():
            return
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._check_is_ours()
            self._take_lock(os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))
            if self._lock is None and self._is_there():
                return
            self._put_aside()
            (path / "run_id").write_text(self.run_id, encoding="utf-8")
            if slurm_job is not None:
                (path / "slurm_job").write_text(slurm_job, encoding="utf-8")
            (path / "logs").mkdir()
            (path / "config.yaml").write_text(config_text, encoding="utf-8")
            self.plan_file.write_text(plan_text, encoding="utf-8")
        except OSError as error:
            raise LaunchError(f"run_dir: {error.filename or path}: {error.strerror}; choose another with run_dir=...") from None

    @property
    def plan_file(self) -> Path:
        """The plan that every rank reads."""
        return self.path / "plan.json"

    def write_nodes(self, nodes: Sequence[Node], hosts: Sequence[str]) -> None:
        """Keep which host each of the plan's nodes is."""
        found = [asdict(node) | {"host": host} for node, host in zip(nodes, hosts, strict=True)]
        (self.path / "nodes.json").write_text(json.dumps(found, indent=1), encoding="utf-8")

    def log_file(self, attempt: int, rank: int, stream: str) -> Path:
        """Where a rank's output goes. `stream` is `stdout` or `stderr`."""
        return self.path / "logs" / f"attempt{attempt}" / f"rank{rank}.{stream}.log"

    def error_file(self, attempt: int, rank: int) -> Path:
        """Where a rank writes down the exception that ends it."""
        return self.path / "logs" / f"attempt{attempt}" / f"rank{rank}.error.json"

    @property
    def report_file(self) -> Path:
        """How the run ended."""
        return self.path / "report.json"

    def write_report(self, report: Mapping[str, Any]) -> None:
        """Keep how the run ended; where that cannot be written, it has been told at least."""
        try:
            write_whole(self.report_file, json.dumps(report, indent=1))
        except OSError as error:
            logger.warning("%s: %s; the report is not kept", self.report_file, error.strerror)

    def close(self) -> None:
        """Let others have the folder."""
        if self._lock is not None:
            os.close(self._lock)

    def _is_there(self) -> bool:
        try:
            return (self.path / "run_id").read_text(encoding="utf-8") == self.run_id
        except (OSError, ValueError):
            return False

    def _check_is_ours(self) -> None:
        """Files of these names in a folder without a run's id are somebody's own."""
        found = [name for name in _OURS if (self.path / name).exists()]
        if found and "run_id" not in found:
            raise LaunchError(
                f"run_dir: {self.path} has a {found[0]} and is not a run folder of mimo-launch; choose another with run_dir=..."
            )

    def _take_lock(self, file: int) -> None:
        """Lock the folder, or find out that it need not be.

        It stays unlocked where the file system has no locks, where an earlier start of the same SLURM job has left one behind
        (a network file system keeps those of a node that has died), and where the run is there already: another node's file
        system may show what node 0 has written with a delay.
        """
        deadline = time.monotonic() + (_PATIENCE_S if self.run_id != self.agent_id else _MOMENT_S)
        try:
            while not _is_lockable(file):
                holder = os.pread(file, 256, 0).decode(errors="replace")
                if self._is_there() or self._is_of_this_job(holder):
                    logger.info("%s: locked by %s, of the same run or job", self.path, holder)
                    return
                if time.monotonic() > deadline:
                    raise LaunchError(
                        f"run_dir: {self.path} belongs to a run that is still going on ({holder}); "
                        "wait for it, or choose another with run_dir=..."
                    )
                time.sleep(0.02)
        except OSError as error:
            logger.warning("%s: no locks here (%s); two runs in one folder would not notice", self.path, error.strerror)
            return
        else:
            self._lock = file
        finally:
            if self._lock is None:
                os.close(file)
        os.ftruncate(file, 0)
        job = f", SLURM job {self._slurm_job}" if self._slurm_job is not None else ""
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}{job}".encode(), 0)

    def _is_of_this_job(self, holder: str) -> bool:
        return self._slurm_job is not None and environ.slurm_restarts() > 0 and holder.endswith(f"SLURM job {self._slurm_job}")

    def _put_aside(self) -> None:
        """Keep an earlier run's files under its id. What the script wrote, such as checkpoints, stays where it is."""
        found = [self.path / name for name in _OURS if (self.path / name).exists()]
        if not found:
            return
        earlier = (self.path / "run_id").read_text(encoding="utf-8").strip()
        shelf = self.path / "previous" / earlier
        shelf.mkdir(parents=True, exist_ok=True)
        for file in found:
            file.replace(shelf / file.name)


def _is_lockable(file: int) -> bool:
    """Take a file's lock if nobody has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
