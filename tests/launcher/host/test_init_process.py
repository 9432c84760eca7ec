"""mimo-launch as process 1, as in a container that starts nothing else."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from launcher.host.init_process import become_child_of_init
from tests.launcher.jobs import NAMESPACE, lines_of, without_waiting
from tests.launcher.terminal_user import CTRL_C, at_terminal

RANKS = 3


@pytest.fixture
def contained(job):
    job.program = [*NAMESPACE, *job.program]
    return job


def test_another_process_stays_what_it_is():
    before = (os.getpid(), os.getpgid(0), signal.getsignal(signal.SIGTERM))
    become_child_of_init()
    assert (os.getpid(), os.getpgid(0), signal.getsignal(signal.SIGTERM)) == before


# The shell's child loses its parent: it is process 1's, and ends as soon as a rank has seen it.
ORPHAN = "(while test ! -e seen; do sleep 0.01; done; touch gone) & echo $! > orphan"

WAITS_FOR_THE_ORPHAN = """
import os, time
from pathlib import Path
orphan = Path("/proc", Path("orphan").read_text().strip())
print(Path("/proc/1/cmdline").read_text().split("\\0")[1:3], orphan.exists())
if os.environ["RANK"] == "0":
    Path("seen").touch()
deadline = time.monotonic() + 20
while orphan.exists() and time.monotonic() < deadline:
    time.sleep(0.01)
print("gone" if not orphan.exists() else orphan.joinpath("stat").read_text())
zombies = [path for path in Path("/proc").glob("[0-9]*/stat") if path.read_text().rpartition(")")[2].split()[0] == "Z"]
print("zombies", zombies)
"""


@pytest.mark.cluster
@pytest.mark.ranks
def test_orphans_are_reaped(job):
    job.program = [*NAMESPACE, "sh", "-c", f'({ORPHAN}); exec "$0" "$@"', *job.program]
    done = job.run(WAITS_FOR_THE_ORPHAN, "runtime.join=script")
    assert (done.returncode, done.stderr) == (0, "")
    assert lines_of(done.stdout, "[vision r0]") == ["['-m', 'launcher'] True", "gone", "zombies []"]


@pytest.mark.cluster
@pytest.mark.ranks
@pytest.mark.parametrize(
    ("ending", "code"), [("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", 1), ("raise KeyboardInterrupt", 130), ("pass", 0)]
)
def test_the_exit_code_is_the_jobs(contained, ending, code):
    done = contained.run(f"import os, sys\n{ending}", "runtime.join=script")
    assert done.returncode == code, done.stderr


SLEEPS = "import time\nprint('ready', flush=True)\ntime.sleep(1000)"


def children_of(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.cluster
@pytest.mark.ranks
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_to_process_1_ends_the_job(contained, number, code):
    process = contained.start(SLEEPS, "runtime.join=script")
    for _ in range(RANKS):
        assert process.stdout.readline().endswith("ready\n")
    (init,) = children_of(process.pid)
    os.kill(init, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert without_waiting(err).splitlines()[-1] in ("mimo-launch: interrupted", f"mimo-launch: ended by {number.name}")


SAVES = """
import os, time
try:
    print("ready", flush=True)
    time.sleep(1000)
except KeyboardInterrupt:
    open("saved" + os.environ["RANK"], "w").close()
"""


@pytest.mark.cluster
@pytest.mark.ranks
def test_ctrl_c_at_the_terminal_of_a_container_lets_every_rank_save(contained):
    with at_terminal(contained, SAVES, "runtime.join=script") as user:
        user.wait_for("ready", RANKS)
        user.type(CTRL_C)
        assert user.finish() == 130, user.seen
    assert len(list(contained.folder.glob("saved*"))) == RANKS


@pytest.mark.cluster
def test_a_command_that_starts_nothing_needs_no_process_1(contained):
    contained.write("")
    done = subprocess.run(
        [*contained.program, "plan", "job.yaml"],
        cwd=contained.folder,
        env=contained.whole_environ(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
