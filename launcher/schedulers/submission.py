"""The folder that a submitted job starts from: what it runs, frozen when it was submitted.

RUN_DIR/jobs/20261124T120000.123456-a1b2c3d4/
config.yaml   the config with all interpolations resolved
plan.json     the launch plan, which the job runs
job.sbatch    the script that was handed to sbatch
job.json      the scheduler's name and the job's id
code/         with --snapshot, what the entry needs, as it was
slurm-ID.out  what SLURM and mimo-launch wrote
"""

import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from tempfile import mkdtemp

from launcher.errors import LaunchError
from launcher.plan.launch_plan import LaunchPlan
from launcher.schedulers.code_snapshot import take


@dataclass(frozen=True)
class JobRecord:
    """What is known of a job once it has been submitted."""

    scheduler: str
    job_id: str


class Submission:
    """One submission of a plan."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def new(cls, plan: LaunchPlan, config_text: str, *, snapshot: bool) -> tuple["Submission", LaunchPlan, Path]:
        """Write everything but the script.

        Returns:
            The submission, the plan as the job will run it, and the folder that it will run in.

        Raises:
            LaunchError: a folder that cannot be written, whose name SLURM would not take, or code that cannot be copied.
        """
        if "%" in plan.run_dir or "\\" in plan.run_dir:
            raise LaunchError(f"run_dir={plan.run_dir}: SLURM reads % and \\ in a folder's name as patterns; choose another")
        here = Path.cwd()
        jobs = Path(plan.run_dir) / "jobs"
        try:
            jobs.mkdir(parents=True, exist_ok=True)
            folder = Path(mkdtemp(prefix=f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S.%f}-", dir=jobs))
            if snapshot:
                plan, here = _moved(plan, take(here, plan.entry.script, folder / "code"), here)
            (folder / "config.yaml").write_text(config_text, encoding="utf-8")
            (folder / "plan.json").write_text(plan.to_json(), encoding="utf-8")
        except OSError as error:
            raise LaunchError(f"run_dir: {error.filename or jobs}: {error.strerror}; choose another with run_dir=...") from None
        return cls(folder), plan, here

    @classmethod
    def latest(cls, run_dir: Path) -> "Submission | None":
        """The last one that was handed over from a run folder."""
        found = sorted(path.parent for path in run_dir.glob("jobs/*/job.json"))
        return cls(found[-1]) if found else None

    @property
    def plan_file(self) -> Path:
        """The plan that the job runs."""
        return self.folder / "plan.json"

    @property
    def script_file(self) -> Path:
        """The script that is handed to the scheduler."""
        return self.folder / "job.sbatch"

    @property
    def run_dir(self) -> Path:
        """The run folder that this is part of."""
        return self.folder.parent.parent

    def record(self, record: JobRecord) -> None:
        """Keep under which id the job is known."""
        (self.folder / "job.json").write_text(json.dumps(asdict(record)), encoding="utf-8")

    def recorded(self) -> JobRecord | None:
        """Under which id the job is known, if it was handed over."""
        try:
            return JobRecord(**json.loads((self.folder / "job.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def _moved(plan: LaunchPlan, copies: dict[Path, Path], here: Path) -> tuple[LaunchPlan, Path]:
    """The plan over the copy: the script and the current folder, each in the tree that was copied."""

    def copy_of(path: Path) -> Path:
        return next((copy / path.relative_to(tree) for tree, copy in copies.items() if path.is_relative_to(tree)), path)

    script = plan.entry.script and str(copy_of(Path(plan.entry.script).resolve()))
    return replace(plan, entry=replace(plan.entry, script=script)), copy_of(here.resolve())
