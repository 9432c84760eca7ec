"""How a forked rank ends: early, where that has no effect but to save time."""

import pytest

from tests.launcher.worker.main_programs import programs

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with programs(tmp_path_factory.mktemp("programs")) as found:
        yield found


SCRIPT = """
import sys, torch
class Last:
    def __del__(self, names=vars(sys), say=print): say("__mimo_launch_end__" in names)
last = Last()
{rest}
"""


@pytest.mark.parametrize(
    ("rest", "code", "is_early"),
    [
        ("pass", 0, True),
        ("sys.exit()", 0, True),
        ("sys.exit(3)", 3, False),
        ("import setproctitle", 0, False),
        ("sys.stdout = open(1, 'w', closefd=False)", 0, False),
    ],
    ids=["end", "exit", "failure", "extension module", "stream of its own"],
)
def test_a_forked_rank_ends_early_only_where_nothing_is_left_to_do(run, rest, code, is_early):
    ended = run.as_rank("forkserver", {"script": run.write("last.py", SCRIPT.format(rest=rest))})
    assert (ended.code, ended.out.split()) == (code, [str(is_early)])


FAULTS = """
import resource, torch
class Last:
    def __del__(self, usage=resource.getrusage, say=print): say(usage(0).ru_minflt - self.before)
last = Last()
last.before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
"""


def test_the_end_copies_little_of_the_memory_of_the_fork_server(run):
    """To look at each of its 1,500 modules would copy 1,400 pages."""
    ended = run.as_rank("forkserver", {"script": run.write("faults.py", FAULTS)})
    assert ended.code == 0, ended
    assert int(ended.out) < 1200
