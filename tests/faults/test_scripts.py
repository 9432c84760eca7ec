"""Scripts that raise, exit or crash, and what they print meanwhile."""

import pytest

from tests.faults.harness import Fault, suffer

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(120)]


def by_the_last_rank(statement: str) -> str:
    return f"if bad:\n    {statement}\ntalk()\n"


def in_all(layouts, name, **fault):
    return [pytest.param(Fault(layout=layout, **fault), id=f"{name}, {layout}") for layout in layouts]


RAISES = [
    *in_all(
        ["non_colocated", "colocated", "pipeline", "spawn", "command"],
        "an exception",
        script=by_the_last_rank("raise RuntimeError('no good')"),
        code=1,
        says=("{culprit} failed first: RuntimeError: no good", "in <module>"),
    ),
    *in_all(
        ["non_colocated"],
        "a message of 10 MB",
        script=by_the_last_rank("raise ValueError('x' * 10_000_000 + ' the end')"),
        code=1,
        says=("failed first: ValueError: xxx", "  output: "),
    ),
    *in_all(
        ["command"],
        "a message of 10 MB",
        script=by_the_last_rank("raise ValueError('x' * 10_000_000 + ' the end')"),
        code=1,
        says=("failed first: exit code 1", "  | ... xxx", "xxx the end\n"),
    ),
    *in_all(
        ["colocated"],
        "an object that cannot be pickled",
        script=by_the_last_rank("raise RuntimeError(threading.Lock(), lambda: 0)"),
        code=1,
        says=("failed first: RuntimeError: (<unlocked _thread.lock",),
    ),
    *in_all(
        ["non_colocated"],
        "an exception whose text cannot be made",
        script="class Odd(Exception):\n    def __str__(self):\n        raise KeyError('odd')\n" + by_the_last_rank("raise Odd"),
        code=1,
        says=("failed first: Odd: (str() of it failed: KeyError)",),
    ),
    *in_all(
        ["colocated"],
        "an exception whose text cannot be made even so",
        script="class Odd(Exception):\n    def __str__(self):\n        return 5\n    __repr__ = __str__\n"
        + by_the_last_rank("raise Odd"),
        code=1,
        says=("failed first: Odd: (str() of it failed: TypeError)",),
    ),
    *in_all(
        ["non_colocated"],
        "surrogates in the message",
        script=by_the_last_rank(r"raise ValueError('\udcff\ud800 bad')"),
        code=1,
        says=(r"failed first: ValueError: \udcff\ud800 bad",),
    ),
    *in_all(
        ["pipeline"],
        "output that is not UTF-8",
        script=by_the_last_rank(r"os.write(1, b'\xff\xfe\x80 out\n'); os.write(2, b'\xff\xc3( err\n'); sys.exit(9)"),
        code=9,
        says=("failed first: exit code 9", "\ufffd", "err"),
    ),
    *in_all(
        ["pipeline"],
        "a message of several lines",
        script=by_the_last_rank(r"raise ValueError('first line\nsecond line\n\nlast line')"),
        code=1,
        says=("failed first: ValueError: first line", "  | second line\n", "  | last line\n"),
    ),
    *in_all(
        ["colocated"],
        "endless recursion",
        script="def again():\n    again()\n" + by_the_last_rank("again()"),
        code=1,
        says=("failed first: RecursionError: maximum recursion depth exceeded",),
    ),
]

EXITS = [
    *in_all(
        ["non_colocated", "command"],
        "exit code 7",
        script=by_the_last_rank("sys.exit(7)"),
        code=7,
        says=("{culprit} failed first: exit code 7",),
    ),
    *in_all(
        ["colocated", "command"],
        "an exit with a text",
        script=by_the_last_rank("sys.exit('no data\\nat all')"),
        code=1,
        says=("{culprit} failed first: exit code 1", "no data", "at all"),
    ),
    *in_all(
        ["colocated", "spawn"],
        "an exit past all clean-up",
        script=by_the_last_rank("print('last words', flush=True); os._exit(7)"),
        code=7,
        says=("{culprit} failed first: exit code 7", "last words"),
    ),
    *in_all(
        ["non_colocated"],
        "exit code 2",
        script=by_the_last_rank("sys.exit(2)"),
        code=2,
        words=("runtime.max_restarts=3",),
        says=("{culprit} failed first: exit code 2", "not restarted: exit code 2"),
    ),
    *in_all(
        ["non_colocated"],
        "an end too early",
        script=by_the_last_rank("sys.exit(0)"),
        code=1,
        names="rank ",
        says=("hint: {culprit} exited with exit code 0 while others still needed it",),
    ),
]

CRASHES = [
    *in_all(
        ["non_colocated", "command"],
        "a segmentation fault",
        script="import ctypes\n" + by_the_last_rank("ctypes.string_at(0)"),
        code=1,
        says=("{culprit} failed first: killed by SIGSEGV",),
    ),
    *in_all(
        ["colocated"],
        "an abort",
        script=by_the_last_rank("os.abort()"),
        code=1,
        says=("{culprit} failed first: killed by SIGABRT", "script.py:"),
    ),
]

READS = [
    pytest.param(
        Fault(
            script="import not_there_at_all",
            has_prelude=False,
            code=1,
            names="ModuleNotFoundError",
            says=("rank 0 (vision)", "the same on ", "hint: not_there_at_all is not installed"),
        ),
        id="an import that fails",
    ),
    pytest.param(
        Fault(
            script="from torch import not_there_at_all",
            has_prelude=False,
            code=1,
            names="ImportError",
            layout="spawn",
            says=("the same on ", "hint: "),
        ),
        id="a name that a package does not have",
    ),
    pytest.param(
        Fault(
            script="x = 1\ndef broken(:\n",
            has_prelude=False,
            code=1,
            names="SyntaxError",
            layout="colocated",
            says=("the same on ", "script.py", "line 2"),
        ),
        id="a script that Python cannot read",
    ),
    pytest.param(
        Fault(
            script="open('not/there')",
            has_prelude=False,
            code=1,
            names="FileNotFoundError",
            layout="pipeline",
            says=("the same on 2 other ranks", "hint: not/there is relative to the directory"),
        ),
        id="a file that is not there",
    ),
    pytest.param(
        Fault(
            script="raise RuntimeError(f'rank {rank} is sad')",
            code=1,
            names="RuntimeError: rank ",
            says=("the same on 2 other ranks: rank ",),
        ),
        id="the same exception on all ranks",
    ),
    pytest.param(
        Fault(
            script="import socket\none, two = socket.socket(), socket.socket()\none.bind(('127.0.0.1', 0))\n"
            + by_the_last_rank("two.bind(one.getsockname())"),
            code=1,
            says=("hint: the script uses a port",),
        ),
        id="a port that is taken",
    ),
    pytest.param(
        Fault(
            script=by_the_last_rank("resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)); bytearray(8 << 30)").replace(
                "if bad", "import resource\nif bad"
            ),
            code=1,
            says=("failed first: MemoryError", "hint: ", "has no memory left for modules.language"),
        ),
        id="a limit on memory",
    ),
]


@pytest.mark.parametrize("fault", [*RAISES, *EXITS, *CRASHES, *READS])
def test_a_fault_of_the_script_ends_the_run(job, fault):
    suffer(job, fault)
