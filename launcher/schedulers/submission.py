"""One submission of a plan: everything that the job needs, written when it is submitted."""

import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from tempfile import mkdtemp

from launcher.errors import LaunchError
from launcher.plan.launch_plan import LaunchPlan
from launcher.run_dir.layout import RunDirLayout, SubmissionLayout
from launcher.schedulers.code_snapshot import take


@dataclass(frozen=True)
class JobRecord:
    """A submitted job."""

    scheduler: str
    job_id: str


class Submission(SubmissionLayout):
    """The directory of one submission."""

    @classmethod
    def new(cls, plan: LaunchPlan, config_text: str, *, snapshot: bool) -> tuple["Submission", LaunchPlan, Path]:
        """Write everything but the script.

        Returns:
            The submission, the plan as the job will run it, and the job's working directory.

        Raises:
            LaunchError: the directory cannot be written, SLURM would not accept its name, or the code cannot be copied.
        """
        if "%" in plan.run_dir or "\\" in plan.run_dir:
            raise LaunchError(f"run_dir={plan.run_dir}: SLURM reads % and \\ in a path as patterns; choose another")
        cwd = Path.cwd()
        jobs = RunDirLayout(Path(plan.run_dir)).jobs_dir
        try:
            jobs.mkdir(parents=True, exist_ok=True)
            submission = cls(Path(mkdtemp(prefix=f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S.%f}-", dir=jobs)))
            if snapshot:
                plan, cwd = _moved(plan, take(cwd, plan.entry.script, submission.code_dir), cwd)
            submission.config_file.write_text(config_text, encoding="utf-8")
            submission.plan_file.write_text(plan.to_json(), encoding="utf-8")
        except OSError as error:
            raise LaunchError(f"run_dir: {error.filename or jobs}: {error.strerror}; choose another with run_dir=...") from None
        return submission, plan, cwd

    @classmethod
    def latest(cls, run_dir: RunDirLayout) -> "Submission | None":
        """The last one that a scheduler accepted."""
        found = run_dir.latest_submission()
        return cls(found) if found is not None else None

    def record(self, record: JobRecord) -> None:
        """Write down the id of the job."""
        self.record_file.write_text(json.dumps(asdict(record)), encoding="utf-8")

    def recorded(self) -> JobRecord | None:
        """The job, if a scheduler accepted it."""
        try:
            return JobRecord(**json.loads(self.record_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def _moved(plan: LaunchPlan, copies: dict[Path, Path], cwd: Path) -> tuple[LaunchPlan, Path]:
    """The plan over the copy: the script and the working directory, each in the tree that was copied."""

    def copy_of(path: Path) -> Path:
        return next((copy / path.relative_to(tree) for tree, copy in copies.items() if path.is_relative_to(tree)), path)

    script = plan.entry.script and str(copy_of(Path(plan.entry.script).resolve()))
    return replace(plan, entry=replace(plan.entry, script=script)), copy_of(cwd.resolve())
