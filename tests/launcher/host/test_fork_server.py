"""The process from which ranks are started."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.host import limits, reaper
from launcher.host.fork_server import UNKNOWN_EXIT, Request
from mimo_role.host import environ
from tests.launcher import fork_servers
from tests.launcher.jobs import NAMESPACE, ROOT


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "node"
    folder.mkdir()
    started = fork_servers.start(f"test-{os.getpid()}", folder)
    yield started
    started.close()
    assert not folder.exists()


class Rank:
    """A process with its output in files."""

    def __init__(self, server, folder, *words, **variables):
        self.server = server
        self.out = folder / f"out{len(list(folder.iterdir()))}"
        with Path(os.devnull).open() as nothing, self.out.open("w") as out:
            streams = (nothing.fileno(), out.fileno(), out.fileno())
            self.pid = server.start_rank(Request("exec", words), dict(environ.variables()) | variables, streams)

    def exit_code(self):
        while (code := self.server.exit_code(self.pid)) is None:
            os.sched_yield()
        return code


def python(server, folder, code, **variables):
    return Rank(server, folder, sys.executable, "-c", code, **variables)


def test_exit_codes_and_signals_are_reported(server, tmp_path):
    ranks = [python(server, tmp_path, f"import os, sys; {end}") for end in ("sys.exit(3)", "os.kill(os.getpid(), 9)", "pass")]
    assert [rank.exit_code() for rank in ranks] == [3, -9, 0]


@pytest.mark.parametrize("codes", [(0,), (0, 3)], ids=["well", "one badly"])
def test_a_wait_is_over_once_all_ranks_have_ended(server, tmp_path, codes):
    def seconds_of_a_wait():
        ranks = [python(server, tmp_path, f"import sys; sys.exit({code})") for code in codes]
        began = time.monotonic()
        server.wait_for_ends([rank.pid for rank in ranks], timeout_s=15)
        took = time.monotonic() - began
        assert [server.exit_code(rank.pid) for rank in ranks] == list(codes)
        return took

    # Ends that are reported before the wait begins do not end it; that all three are is a matter of chance.
    assert any(seconds_of_a_wait() < 15 for _ in range(3))


def test_a_wait_is_over_in_time_if_a_rank_runs_or_all_have_ended_before(server, tmp_path):
    ended, running = python(server, tmp_path, ""), python(server, tmp_path, "import time; time.sleep(1000)")
    assert ended.exit_code() == 0
    for ranks in ([ended], [ended, running]):
        began = time.monotonic()
        server.wait_for_ends([rank.pid for rank in ranks], timeout_s=0.1)
        assert time.monotonic() - began >= 0.1


def test_a_wait_is_over_in_time_after_the_server_has_died(server, tmp_path):
    rank = python(server, tmp_path, "import time; time.sleep(1000)")
    os.kill(server_of(rank), signal.SIGKILL)
    for _ in range(2):
        began = time.monotonic()
        server.wait_for_ends([rank.pid], timeout_s=0.1)
        assert time.monotonic() - began >= 0.1
    assert server.has_died
    assert server.exit_code(rank.pid) == UNKNOWN_EXIT


def server_of(rank):
    """The process that has started a rank."""
    return int(Path(f"/proc/{rank.pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_rank_has_its_own_session_streams_and_environment(server, tmp_path):
    code = "import os, sys; print(os.getsid(0) == os.getpid(), os.environ['OWN'], repr(sys.stdin.read()), end=' ');"
    code += "print(*os.listdir('/proc/self/fd')[:-1])"
    rank = python(server, tmp_path, code, OWN="x")
    assert rank.exit_code() == 0
    assert rank.out.read_text() == "True x '' 0 1 2\n"


def test_a_command_that_does_not_exist_is_named(server, tmp_path):
    rank = Rank(server, tmp_path, "no-such-command")
    assert rank.exit_code() == 127
    assert rank.out.read_text() == "mimo-launch: cannot start no-such-command: No such file or directory\n"


def words_of(pid):
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]


FORGETFUL = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve("/bin/sleep", ["sleep", "1000"], {})
    os._exit(0)
time.sleep(1000)
"""


def test_processes_without_mark_session_or_parent_end_with_the_server(tmp_path):
    folder = tmp_path / "node"
    folder.mkdir()
    server = fork_servers.start("test-leftovers", folder)
    rank = python(server, tmp_path, FORGETFUL)
    own = os.getpid()
    while not (below := [pid for pid in reaper.processes_of("test-leftovers", own) if "sleep" in reaper.describe(pid)]):
        os.sched_yield()
    server.close()
    assert [reaper.state_of(pid) for pid in (*below, rank.pid)] == ["", ""]


def test_leftovers_end_before_the_next_attempt_and_the_server_stays(server, tmp_path):
    rank = python(server, tmp_path, "import time; print(flush=True); time.sleep(1000)")
    while not rank.out.stat().st_size:
        os.sched_yield()
    assert server.end_leftovers() == []
    assert rank.exit_code() == -signal.SIGTERM
    assert python(server, tmp_path, "").exit_code() == 0


def test_a_server_that_has_died_is_reported_and_replaced(server, tmp_path):
    rank = python(server, tmp_path, "import time; print(flush=True); time.sleep(1000)")
    while not rank.out.stat().st_size:
        os.sched_yield()
    (pid,) = [
        pid for pid in reaper.processes_of("none", os.getpid()) if words_of(pid)[-1:] == ["bare"] and "-I" not in words_of(pid)
    ]
    os.kill(pid, signal.SIGKILL)
    while not server.has_died:
        os.sched_yield()
    assert rank.exit_code() == UNKNOWN_EXIT
    with pytest.raises(OSError, match="has died"):
        python(server, tmp_path, "")
    server.restart_if_dead()
    assert reaper.state_of(rank.pid) in ("", "Z"), "it runs"
    assert python(server, tmp_path, "").exit_code() == 0


# Process ids start again at the end of their range; in a namespace of its own a test can choose the next one.
REUSES_AN_ID = """
import sys
from pathlib import Path
from tests.launcher import fork_servers
from tests.launcher.host.test_fork_server import python

folder, node = Path(sys.argv[1]), Path(sys.argv[1], "node")
node.mkdir()
server = fork_servers.start("test-same-id", node)
first = python(server, folder, "import sys; sys.exit(3)")
assert first.exit_code() == 3
Path("/proc/sys/kernel/ns_last_pid").write_text(str(first.pid - 1))
second = python(server, folder, "import time; print(flush=True); time.sleep(1000)")
assert second.pid == first.pid
while not second.out.stat().st_size:
    assert server.exit_code(second.pid) is None
server.end_leftovers()
assert second.exit_code() == -15
server.close()
"""


@pytest.mark.cluster
@pytest.mark.ranks
def test_a_process_has_no_exit_code_of_an_earlier_one_with_its_id(tmp_path):
    subprocess.run([*NAMESPACE, sys.executable, "-c", REUSES_AN_ID, str(tmp_path)], check=True, cwd=ROOT, timeout=120)


def test_limits_are_named_with_the_command_that_shows_them():
    assert "ulimit -n" in limits.explain(24)
    assert "ulimit -u" in limits.explain(11)
    assert limits.explain(2) == os.strerror(2)
