"""The run folder: what a run leaves on disk, and who may write there.

config.yaml     the config with all interpolations resolved
plan.json       the launch plan
nodes.json      which host is which of the plan's nodes, where there are several
logs/attempt0/  rank3.stdout.log, rank3.stderr.log, rank3.error.json: one set per rank, a folder per restart
previous/       the same of earlier runs, by their ids
.lock           held while a run is going on
"""

import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from launcher.errors import LaunchError
from launcher.placement import Node

_OURS = ("config.yaml", "plan.json", "nodes.json", "run_id", "logs")


class RunDir:
    """One run's folder, locked for as long as this object is open."""

    def __init__(self, path: Path, config_text: str, plan_text: str, agent_id: str, run_id: str) -> None:
        """Take the folder, put an earlier run's files aside, and write this run's.

        A node that finds the run of this id there already shares the folder with the node that has taken it.

        Raises:
            LaunchError: another run has it, or it cannot be written.
        """
        self.path = path
        self.agent_id = agent_id
        self.run_id = run_id
        self._lock: int | None = None
        if self._is_there():
            return
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._check_is_ours()
            self._take_lock(os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))
            self._put_aside()
            (path / "run_id").write_text(self.run_id, encoding="utf-8")
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
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(file, 32).decode(errors="replace")
            os.close(file)
            raise LaunchError(
                f"run_dir: {self.path} belongs to a run that is still going on (process {holder}); "
                "wait for it, or choose another with run_dir=..."
            ) from None
        self._lock = file
        os.ftruncate(file, 0)
        os.write(file, str(os.getpid()).encode())

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
