"""The run directory of the run that is going on: taking it, and writing to it."""

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
from launcher.run_dir.layout import RunDirLayout
from mimo_role.host import environ
from mimo_role.host.files import write_whole

logger = logging.getLogger(__name__)

_OTHER_NODES_TIMEOUT_S = 60.0
"""How long a node other than node 0 waits for node 0's files, where another run seems to hold the directory."""
_LOCK_TIMEOUT_S = 0.3
"""`mimo-launch status` holds the lock for a moment to test it."""


class RunDir(RunDirLayout):
    """The run directory of one run, locked until `close`."""

    def __init__(
        self, path: Path, config_text: str, plan_text: str, agent_id: str, run_id: str, slurm_job: str | None = None
    ) -> None:
        """Lock the directory, move an earlier run's files to `previous/`, and write this run's config and plan.

        A node that finds the files of this run id there already shares the directory with the node that has locked it.

        Raises:
            LaunchError: another run holds the directory, or it cannot be written.
        """
        super().__init__(path)
        self.agent_id = agent_id
        self.run_id = run_id
        self._slurm_job = slurm_job
        self._lock: int | None = None
        if self._has_this_run():
            return
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._check_is_ours()
            self._take_lock(os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))
            if self._lock is None and self._has_this_run():
                return
            self._move_to_previous()
            self.run_id_file.write_text(self.run_id, encoding="utf-8")
            if slurm_job is not None:
                self.slurm_job_file.write_text(slurm_job, encoding="utf-8")
            self.logs_dir.mkdir()
            self.config_file.write_text(config_text, encoding="utf-8")
            self.plan_file.write_text(plan_text, encoding="utf-8")
        except OSError as error:
            raise LaunchError(f"run_dir: {error.filename or path}: {error.strerror}; choose another with run_dir=...") from None

    def write_nodes(self, nodes: Sequence[Node], hosts: Sequence[str]) -> None:
        """Write the host of each node of the plan."""
        found = [asdict(node) | {"host": host} for node, host in zip(nodes, hosts, strict=True)]
        self.nodes_file.write_text(json.dumps(found, indent=1), encoding="utf-8")

    def write_report(self, report: Mapping[str, Any]) -> None:
        """Write the outcome of the run, or log that it cannot be written."""
        try:
            write_whole(self.report_file, json.dumps(report, indent=1))
        except OSError as error:
            logger.warning("%s: %s; the report is not written", self.report_file, error.strerror)

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)

    def _has_this_run(self) -> bool:
        try:
            return self.run_id_file.read_text(encoding="utf-8") == self.run_id
        except (OSError, ValueError):
            return False

    def _check_is_ours(self) -> None:
        """Files of these names in a directory without a run id belong to something else."""
        found = self.files_of_run()
        if found and self.run_id_file not in found:
            raise LaunchError(
                f"run_dir: {self.path} contains {found[0].name} and is not a run directory of mimo-launch; "
                "choose another with run_dir=..."
            )

    def _take_lock(self, file: int) -> None:
        """Lock the directory, or find out that no lock is needed.

        It stays unlocked where the file system has no locks, where an earlier start of the same SLURM job has left a lock
        behind (a network file system keeps those of a node that has died), and where this run's files are there already:
        another node may see what node 0 has written with a delay.
        """
        deadline = time.monotonic() + (_OTHER_NODES_TIMEOUT_S if self.run_id != self.agent_id else _LOCK_TIMEOUT_S)
        try:
            while not _try_lock(file):
                holder = os.pread(file, 256, 0).decode(errors="replace")
                if self._has_this_run() or self._is_of_this_job(holder):
                    logger.info("%s: locked by %s, of the same run or job", self.path, holder)
                    return
                if time.monotonic() > deadline:
                    raise LaunchError(
                        f"run_dir: {self.path} is in use by a run that is still going on ({holder}); "
                        "wait until it has ended, or choose another with run_dir=..."
                    )
                time.sleep(0.02)
        except OSError as error:
            logger.warning("%s: no file locks (%s); two runs in one directory would not be detected", self.path, error.strerror)
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

    def _move_to_previous(self) -> None:
        """Keep an earlier run's files under its id. What the script wrote, such as checkpoints, stays where it is."""
        found = self.files_of_run()
        if not found:
            return
        previous = self.previous_dir(self.run_id_file.read_text(encoding="utf-8").strip())
        previous.mkdir(parents=True, exist_ok=True)
        for file in found:
            file.replace(previous / file.name)


def _try_lock(file: int) -> bool:
    """Lock a file, unless another process holds its lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
