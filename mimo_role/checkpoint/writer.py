"""The writer of one checkpoint, to which DCP hands all ranks' parts."""

from pathlib import Path

from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from mimo_role.checkpoint import folders


class CheckpointWriter(FileSystemWriter):
    """Writes beside the checkpoint's place, and puts it there as the last act of a save.

    DCP calls `prepare_global_plan` and `finish` on rank 0 only, `finish` after all ranks have written, and has all
    ranks raise an error of either. So a save needs no collective of ours after the write, in the background as well.
    """

    def __init__(self, folder: Path, step: int, keep: int | None) -> None:
        self.final = folders.path_of(folder, step)
        super().__init__(self.final.with_name(f"{self.final.name}.tmp"))  # files are synced by default
        self._step = step
        self._keep = keep

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan  # the base class makes the folder here, before rank 0 has removed an earlier one

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        folders.clear_left_over(self.final.parent)  # before the write: the disk may be full of it
        Path(self.path).mkdir(parents=True)
        return super().prepare_global_plan(plans)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        Path(self.path).mkdir(exist_ok=True)  # a network file system may not show this node yet what rank 0 has made
        return super().write_data(plan, planner)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        super().finish(metadata, results)
        folders.put_in_place(Path(self.path), self.final)
        folders.thin_out(self.final.parent, self._step, self._keep)
