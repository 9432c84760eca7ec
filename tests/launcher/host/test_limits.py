"""Limits of the machine under which a job starts, or is refused in one message."""

import os
import resource
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import LaunchError
from launcher.host import limits
from tests.launcher.jobs import ROOT, lines_of

NEEDED = 52
"""The open files that mimo-launch needs for three ranks."""

OPEN_FILES = """
import resource, torch, torch.distributed as dist
dist.all_reduce(torch.ones(()))
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def under(job, *options):
    """The job with a limit of the shell's."""
    job.program = ["sh", "-c", f'ulimit {" ".join(map(str, options))}; exec "$0" "$@"', *job.program]
    return job


@pytest.mark.ranks
@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_a_low_soft_limit_of_open_files_is_raised_for_mimo_launch_and_kept_for_ranks(job, start_method):
    done = under(job, "-Sn", NEEDED - 5).run(OPEN_FILES, f"runtime.start_method={start_method}")
    assert (done.returncode, done.stderr) == (0, "")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert lines_of(done.stdout, "[vision r0]") == lines_of(done.stdout, "[language.tp1 r2]") == [f"{NEEDED - 5} {hard}"]


@pytest.mark.ranks
def test_a_job_runs_with_exactly_the_open_files_that_it_asks_for(job):
    done = under(job, "-n", NEEDED).run(OPEN_FILES)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_hard_limit_of_open_files_that_is_too_low_is_named(job):
    done = under(job, "-n", NEEDED - 1).run("")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"mimo-launch: the limit of open files is {NEEDED - 1} (ulimit -Hn), and mimo-launch needs {NEEDED} for 3 ranks; "
        "raise it, in a container by --ulimit nofile=65536, or put fewer ranks on a machine\n"
    )


@given(
    soft=st.integers(0, 500) | st.just(resource.RLIM_INFINITY),
    hard=st.integers(0, 500) | st.just(resource.RLIM_INFINITY),
    ranks=st.integers(1, 100),
)
def test_the_soft_limit_is_raised_as_far_as_needed_and_never_lowered(soft, hard, ranks):
    if hard != resource.RLIM_INFINITY and (soft == resource.RLIM_INFINITY or soft > hard):
        soft = hard
    with pytest.MonkeyPatch.context() as patch:
        now = [(soft, hard)]
        patch.setattr(resource, "getrlimit", lambda _: now[-1])
        patch.setattr(resource, "setrlimit", lambda _, pair: now.append(pair))
        try:
            limits.allow_open_files(ranks)
        except LaunchError:
            assert hard != resource.RLIM_INFINITY
            assert hard < 40 + 4 * ranks
            assert now == [(soft, hard)]
        else:
            raised, kept = now[-1]
            assert kept == hard
            assert raised == resource.RLIM_INFINITY or raised >= max(40 + 4 * ranks, soft)


def test_a_thread_that_cannot_be_started_is_an_os_error_that_names_the_limit():
    named = r"Resource temporarily unavailable: the limit of processes is .*pids\.max"
    with pytest.raises(BlockingIOError, match=named), limits.threads_as_os_errors():
        raise RuntimeError("can't start new thread")
    with pytest.raises(RuntimeError, match="another"), limits.threads_as_os_errors():
        raise RuntimeError("another")


@pytest.fixture
def control_group():
    """A control group that limits the number of processes and threads."""
    roots = (Path("/sys/fs/cgroup", name) for name in ("pids", ""))
    root = next(path for path in roots if (path / "cgroup.procs").exists())
    group = root / f"mimo-test-{os.getpid()}"
    group.mkdir()
    yield group
    while (group / "cgroup.procs").read_text():
        time.sleep(0.01)
    group.rmdir()


@pytest.mark.cluster
@pytest.mark.ranks
@pytest.mark.parametrize("most", [2, 3, 4, 6, 8, 10, 11, 12])
def test_too_few_processes_are_named_wherever_mimo_launch_or_a_rank_meets_the_limit(job, control_group, most):
    (control_group / "pids.max").write_text(str(most))
    job.program = ["sh", "-c", f'echo $$ > {control_group}/cgroup.procs; exec "$0" "$@"', *job.program]
    done = job.run("import time\ntime.sleep(1000)", "runtime={join: script, grace_s: 1}")
    assert done.returncode in (1, 2), done.stderr
    assert "pids.max" in done.stderr
    assert "Traceback" not in done.stderr


TRAINS = (ROOT / "launcher" / "templates" / "plain" / "train.py").read_text(encoding="utf-8")
"""A script with groups and a bridge."""


def long_folder(folder):
    path = folder.joinpath(*(letter * 100 for letter in "xyz"))
    path.mkdir(parents=True)
    return str(path)


@pytest.mark.ranks
def test_a_job_with_groups_and_a_bridge_runs_with_a_tmpdir_of_any_length(job):
    job.environ["TMPDIR"] = long_folder(job.folder)
    done = job.run(TRAINS, "modules.language={dp: 2}", "--", "--steps", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "step 1: loss" in done.stdout
    assert not list(Path(job.environ["TMPDIR"]).glob("mimo-*"))


def with_small_memory(job, size):
    """The job with a /dev/shm of its own."""
    mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    job.program = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$0" "$@"', *job.program]
    return job


@pytest.mark.cluster
@pytest.mark.ranks
def test_a_tiny_shared_memory_is_not_used(job):
    job.environ["TMPDIR"] = long_folder(job.folder)
    done = with_small_memory(job, "16k").run(TRAINS, "modules.language={dp: 2}", "--", "--steps", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert not list(Path(job.environ["TMPDIR"]).glob("mimo-*"))


@pytest.mark.cluster
def test_without_any_room_the_message_names_both_places(job):
    job.environ["TMPDIR"] = "/dev/shm"
    done = with_small_memory(job, "16k").run("")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "/dev/shm: No space left on device" in line
    assert line.endswith("; set TMPDIR")
