"""The names of all files in a run directory.

RUN_DIR/
config.yaml     the config with all interpolations resolved
plan.json       the launch plan
nodes.json      the host of each node of the plan
report.json     the outcome of the run; of a failure, which rank failed first and why
run_id          the id of the run; its presence marks the directory as one of mimo-launch
slurm_job       the id of the SLURM job that the run is part of
logs/attempt0/  rank3.stdout.log, rank3.stderr.log, rank3.error.json, rank3.stacks.txt; one directory per attempt
                rank3.recording.gz, what a rank has recorded; node0.clock.json, how far a node's clock is from node 0's
metrics.jsonl   the steps so far, one line each: times by module, and scalars
tensorboard/mimo_launch/    the same steps as TensorBoard's events, with runtime.tensorboard; later runs add to them
live.json       what the ranks do now, as `mimo-launch top` shows it; rewritten every second or so
report.trace.json    the last seconds of a run that failed or hung
mimo_trace.json      what `mimo-launch trace` has written
report.html          what `mimo-launch report --html` has written
rehearsal/      the run directory of `mimo-launch rehearse`: as this one, and rehearsal.json, what each kind of rank did;
                files/rank3/ is the run directory that the script of rank 3 sees
previous/ID/    the same files of earlier runs, by run id
.lock           locked while a run is going on
jobs/ID/        one directory per submission: `SubmissionLayout`
"""

import re
from pathlib import Path
from typing import Literal


class _PlanDir:
    """A directory with a plan and the config that it was made from."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def plan_file(self) -> Path:
        """The launch plan, which every rank reads."""
        return self.path / "plan.json"

    @property
    def config_file(self) -> Path:
        """The config with all interpolations resolved."""
        return self.path / "config.yaml"


class RunDirLayout(_PlanDir):
    """The paths in one run directory, whether or not the files exist."""

    @property
    def nodes_file(self) -> Path:
        """The host of each node of the plan."""
        return self.path / "nodes.json"

    @property
    def report_file(self) -> Path:
        """The outcome of the run."""
        return self.path / "report.json"

    @property
    def run_id_file(self) -> Path:
        """The id of the run."""
        return self.path / "run_id"

    @property
    def slurm_job_file(self) -> Path:
        """The id of the SLURM job that the run is part of."""
        return self.path / "slurm_job"

    @property
    def lock_file(self) -> Path:
        """Locked while a run is going on; its text describes the process that locked it."""
        return self.path / ".lock"

    @property
    def logs_dir(self) -> Path:
        """The output of the ranks."""
        return self.path / "logs"

    def attempt_dir(self, attempt: int) -> Path:
        """The output of one attempt."""
        return self.logs_dir / f"attempt{attempt}"

    def log_file(self, attempt: int, rank: int, stream: str) -> Path:
        """A rank's output. `stream` is `stdout` or `stderr`."""
        return self.attempt_dir(attempt) / f"rank{rank}.{stream}.log"

    def error_file(self, attempt: int, rank: int) -> Path:
        """The exception that ended a rank."""
        return self.attempt_dir(attempt) / f"rank{rank}.error.json"

    def stacks_file(self, attempt: int, rank: int | Literal["*"]) -> Path:
        """The stacks of a rank that crashed in C or hung; `*` for the pattern of all ranks' files."""
        return self.attempt_dir(attempt) / f"rank{rank}.stacks.txt"

    def recording_file(self, attempt: int, rank: int) -> Path:
        """What a rank has recorded."""
        return self.attempt_dir(attempt) / f"rank{rank}.recording.gz"

    def clock_file(self, attempt: int, node: int) -> Path:
        """How far a node's clock is from node 0's."""
        return self.attempt_dir(attempt) / f"node{node}.clock.json"

    @property
    def metrics_file(self) -> Path:
        """The steps so far."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard_dir(self) -> Path:
        """The steps so far as TensorBoard's events, apart from those that the script writes."""
        return self.path / "tensorboard" / "mimo_launch"

    @property
    def live_file(self) -> Path:
        """What the ranks do now."""
        return self.path / "live.json"

    @property
    def trace_file(self) -> Path:
        """The trace of all ranks."""
        return self.path / "mimo_trace.json"

    @property
    def page_file(self) -> Path:
        """The run as a page."""
        return self.path / "report.html"

    @property
    def failure_trace_file(self) -> Path:
        """The trace of the last seconds of a run that failed or hung."""
        return self.path / "report.trace.json"

    @property
    def rehearsal(self) -> "RunDirLayout":
        """The run directory of rehearsals of this job."""
        return RunDirLayout(self.path / "rehearsal")

    @property
    def rehearsal_file(self) -> Path:
        """In a rehearsal's run directory: what each kind of rank did."""
        return self.path / "rehearsal.json"

    @property
    def rehearsed_files_dir(self) -> Path:
        """In a rehearsal's run directory: the run directories that scripts see, one for each rank."""
        return self.path / "files"

    def attempts(self) -> list[int]:
        """The attempts that have left output, in order."""
        found = (re.fullmatch(r"attempt(\d+)", path.name, re.ASCII) for path in self.logs_dir.glob("attempt*"))
        return sorted(int(match[1]) for match in found if match is not None)

    def files_of_run(self) -> list[Path]:
        """The files that belong to one run and exist. The run id comes last: it marks the others as ours."""
        files = [self.config_file, self.plan_file, self.nodes_file, self.slurm_job_file, self.report_file, self.logs_dir]
        files += [self.metrics_file, self.live_file, self.trace_file, self.failure_trace_file]
        files += [self.page_file, self.rehearsal_file]
        return [file for file in (*files, self.run_id_file) if file.exists()]

    def previous_dir(self, run_id: str) -> Path:
        """The files of an earlier run."""
        return self.path / "previous" / run_id

    def of_slurm_jobs(self) -> list["RunDirLayout"]:
        """The runs in this directory that were SLURM jobs: the present one first, then the earlier ones, latest first."""
        earlier = sorted((file.parent for file in self.path.glob("previous/*/slurm_job")), reverse=True)
        return [RunDirLayout(path) for path in (self.path, *earlier)]

    @property
    def jobs_dir(self) -> Path:
        """The submissions."""
        return self.path / "jobs"

    def has_submissions(self) -> bool:
        """Whether something was submitted from here, or was to be."""
        return any(self.jobs_dir.glob("*/plan.json"))

    def latest_submission(self) -> Path | None:
        """The directory of the last submission that a scheduler accepted."""
        return max((file.parent for file in self.jobs_dir.glob("*/job.json")), default=None)


class SubmissionLayout(_PlanDir):
    """The paths in the directory of one submission.

    RUN_DIR/jobs/20261124T120000.123456-a1b2c3d4/
    config.yaml   the config with all interpolations resolved
    plan.json     the launch plan that the job runs
    job.sbatch    the script for sbatch
    job.json      the name of the scheduler and the id of the job
    code/         with --snapshot, a copy of the code
    slurm-ID.out  the output of SLURM and of mimo-launch itself
    """

    @property
    def script_file(self) -> Path:
        """The script for sbatch."""
        return self.path / "job.sbatch"

    @property
    def record_file(self) -> Path:
        """The name of the scheduler and the id of the job."""
        return self.path / "job.json"

    @property
    def code_dir(self) -> Path:
        """The copy of the code."""
        return self.path / "code"

    def output_file(self, job_id: str) -> Path:
        """The output of SLURM and of mimo-launch itself. `%j` is sbatch's pattern for the id."""
        return self.path / f"slurm-{job_id}.out"

    @property
    def run_dir(self) -> RunDirLayout:
        """The run directory that this is part of."""
        return RunDirLayout(self.path.parent.parent)
