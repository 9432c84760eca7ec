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


def test_a_forked_rank_frees_no_lines_of_sources_that_the_fork_server_has_read(run):
    script = "import linecache, torch\nprint([name for name, entry in linecache.cache.items() if entry[1] is not None])"
    ended = run.as_rank("forkserver", {"script": run.write("sources.py", script)})
    assert (ended.code, ended.out) == (0, "[]\n"), ended
