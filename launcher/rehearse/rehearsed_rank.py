"""The files and the environment of one rank that is rehearsed."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.config.schema import Backend, StartMethod
from launcher.host.fork_server import Request
from launcher.plan.launch_plan import LaunchPlan
from launcher.plan.placement import Node
from launcher.run_dir.writer import RunDir

_IMPORTED_ONCE = ("torch._dynamo", "mimo_role.rehearsal.world")
"""What torch's optimizers import in each process when they are first made, and the module that replaces communication."""


def rehearsed_plan(plan: LaunchPlan) -> LaunchPlan:
    """The plan with what a rehearsal changes: ranks are forked, without GPUs, and are not compared before they join."""
    runtime = replace(
        plan.runtime,
        backend=Backend.GLOO,
        start_method=StartMethod.FORKSERVER,
        preload=(*plan.runtime.preload, *_IMPORTED_ONCE),
        numa_binding=None,
        max_restarts=0,
    )
    return replace(plan, runtime=runtime, preflight=False, debug=(), debug_port=None)


@dataclass(frozen=True, kw_only=True)
class RehearsedRank:
    """One rank of the plan, and where its files are."""

    plan: LaunchPlan
    rank: int
    run_dir: RunDir
    """Of the rehearsal."""
    node_dir: Path
    tensors: str | None = None
    """`fake` or `real` ones whose memory is counted; `None`: it is not."""

    @property
    def record_file(self) -> Path:
        """What its process records at its end."""
        return self.node_dir / f"rank{self.rank}.record.json"

    @property
    def calls_file(self) -> Path:
        """The operations over its groups, in their order."""
        return self.node_dir / f"rank{self.rank}.calls.json"

    @property
    def _files(self) -> Path:
        """The run directory that its script sees."""
        return self.run_dir.rehearsed_files_dir / f"rank{self.rank}"

    def clear(self) -> None:
        """Remove what an earlier process of this rank has left."""
        shutil.rmtree(self._files, ignore_errors=True)
        for file in (self.record_file, self.run_dir.error_file(0, self.rank), *self.node_dir.glob(f"rank{self.rank}.*")):
            file.unlink(missing_ok=True)

    def write(self, earlier: Sequence[int], steps: int) -> Request:
        """Write its files, and return what its process runs.

        Args:
            earlier: the ranks that have been rehearsed.
            steps: after which its script ends; 0: when it ends by itself.
        """
        self._files.mkdir(parents=True)
        plan_file, task_file = (self.node_dir / f"rank{self.rank}.{name}.json" for name in ("plan", "task"))
        plan_file.write_text(replace(self.plan, run_dir=str(self._files)).to_json(), encoding="utf-8")
        task = {
            "plan": str(plan_file),
            "run_id": self.run_dir.run_id,
            "node": self._node.name,
            "rank": self.rank,
            "world_size": self.plan.topology.world_size,
            "earlier": list(earlier),
            "steps": steps,
            "tensors": self.tensors,
            "board": str(self.node_dir),
            "record": str(self.record_file),
            "calls": str(self.calls_file),
        }
        task_file.write_text(json.dumps(task), encoding="utf-8")
        return Request("rehearse", (str(task_file),))

    def variables(self) -> dict[str, str]:
        """The variables that torchelastic sets for the rank in the real job."""
        node, world = self._node, str(self.plan.topology.world_size)
        number = self.plan.nodes.index(node)
        return {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.rank - node.first_rank),
            "WORLD_SIZE": world,
            "LOCAL_WORLD_SIZE": str(node.procs),
            "GROUP_RANK": str(number),
            "GROUP_WORLD_SIZE": str(len(self.plan.nodes)),
            "ROLE_RANK": str(self.rank),
            "ROLE_WORLD_SIZE": world,
            "ROLE_NAME": "mimo",
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": "29500",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCHELASTIC_MAX_RESTARTS": "0",
            "TORCHELASTIC_RUN_ID": self.run_dir.run_id,
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_ERROR_FILE": str(self.run_dir.error_file(0, self.rank)),
        }

    @property
    def _node(self) -> Node:
        return next(node for node in self.plan.nodes if self.rank in node.ranks)
