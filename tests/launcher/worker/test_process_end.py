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


C_EXIT_FUNCTION = """
import atexit, ctypes, sys, torch
library, python = ctypes.CDLL(None), ctypes.pythonapi
library.on_exit(library.psignal, b"printed by C")  # is called with the exit code
python.PyInterpreterState_Get.restype = python.PyInterpreterState_GetDict.restype = ctypes.c_void_p
python.PyInterpreterState_GetDict.argtypes = [ctypes.c_void_p]
of_interpreter = python.PyInterpreterState_GetDict(python.PyInterpreterState_Get())
ctypes.cast(of_interpreter, ctypes.py_object).value[{key!r}] = None
class Last:
    def __del__(self, write=sys.stderr.write): write("printed by Python\\n")
last = Last()
library.psignal(2, b"before the end")
sys.exit(3)
"""


@pytest.mark.parametrize(("key", "late"), [("another", "printed by C: Quit\n"), ("__nb_internals_v17", "")])
def test_nanobind_does_not_list_what_a_forked_rank_has_kept_as_leaks(run, key, late):
    """It prints to C's `stderr` after the end of the interpreter, as `psignal` does here."""
    ended = run.as_rank("forkserver", {"script": run.write("late_print.py", C_EXIT_FUNCTION.format(key=key))})
    assert (ended.code, ended.err) == (3, "before the end: Interrupt\nprinted by Python\n" + late)


def test_a_forked_rank_frees_no_lines_of_sources_that_the_fork_server_has_read(run):
    script = "import linecache, torch\nprint([name for name, entry in linecache.cache.items() if entry[1] is not None])"
    ended = run.as_rank("forkserver", {"script": run.write("sources.py", script)})
    assert (ended.code, ended.out) == (0, "[]\n"), ended
