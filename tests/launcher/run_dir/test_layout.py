"""The files of a run directory."""

from launcher.run_dir.layout import RunDirLayout, SubmissionLayout


def test_attempts_are_in_numerical_order(tmp_path):
    layout = RunDirLayout(tmp_path)
    for attempt in (10, 9, 0):
        layout.attempt_dir(attempt).mkdir(parents=True)
    (layout.logs_dir / "attempt_of_mine").mkdir()
    assert layout.attempts() == [0, 9, 10]


def test_a_directory_without_logs_has_no_attempts(tmp_path):
    assert RunDirLayout(tmp_path).attempts() == []


def test_the_stacks_of_all_ranks_match_the_pattern(tmp_path):
    layout = RunDirLayout(tmp_path)
    assert layout.stacks_file(0, 12).match(str(layout.stacks_file(0, "*")))


def test_the_runs_of_slurm_jobs_are_ordered_from_the_latest(tmp_path):
    layout = RunDirLayout(tmp_path)
    for run_id in ("20261124T120000-1", "20261125T120000-1"):
        layout.previous_dir(run_id).mkdir(parents=True)
        RunDirLayout(layout.previous_dir(run_id)).slurm_job_file.touch()
    assert [run.path.name for run in layout.of_slurm_jobs()] == [tmp_path.name, "20261125T120000-1", "20261124T120000-1"]


def test_the_latest_submission_is_one_that_a_scheduler_accepted(tmp_path):
    layout = RunDirLayout(tmp_path)
    submissions = [SubmissionLayout(layout.jobs_dir / name) for name in ("2026-1", "2026-2", "2026-3")]
    for submission in submissions:
        submission.path.mkdir(parents=True)
        submission.plan_file.touch()
    assert layout.has_submissions()
    assert layout.latest_submission() is None
    submissions[1].record_file.touch()
    assert layout.latest_submission() == submissions[1].path
    assert submissions[1].run_dir.path == tmp_path
