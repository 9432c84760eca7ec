"""A rank is the main program of its process: it prints the same, in the same order, and ends as under plain Python."""

import importlib.util
import io
import marshal
import zipfile
from pathlib import Path

import pytest

from tests.launcher.worker.main_programs import START_METHODS, Ended, programs

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with programs(tmp_path_factory.mktemp("programs")) as found:
        yield found


# C calls its exit functions after Python's, and then writes what is in buffers of its own.
AFTER_THE_LAST_LINE = """
import atexit, ctypes, pickle, sys, threading, time
library = ctypes.CDLL(None)
library.strdup.restype = library.fdopen.restype = ctypes.c_void_p

class State:
    def __init__(self, name): self.name = name

class Tee:
    def __init__(self, stream): self.stream, self.kept = stream, []
    def write(self, text): self.kept.append(text)
    def flush(self): self.stream.write("".join(self.kept)); self.kept.clear(); self.stream.flush()

def save(name):
    threading.main_thread().join()
    print("saved", name, pickle.loads(pickle.dumps(State(name))).name, sys.modules["__main__"].State is State)

sys.stdout = Tee(sys.stdout)
state = State("a global")
library.fputs(b"from C", ctypes.c_void_p(library.fdopen(1, b"w")))
library.__cxa_atexit(library.puts, ctypes.c_void_p(library.strdup(b"exit function of C")), None)
for number in range(2):
    atexit.register(print, "exit function", number)
atexit.register(lambda: print("the last one sees", state.name, sys.modules["__main__"].__dict__ is globals()))
threading.Thread(target=save, args=("thread",)).start()
threading.Thread(target=lambda: (time.sleep(100), print("never")), daemon=True).start()
print("last line")
"""

ENDINGS = {
    "exit code": "import sys; sys.exit(3)",
    "exit codes are taken modulo 256": "raise SystemExit(-1)",
    "True": "raise SystemExit(True)",
    "text": "import sys; sys.exit('a reason\\nin two lines')",
    "object": "raise SystemExit(('a', 'tuple'), 'and more')",
    "own class of SystemExit": "class Stop(SystemExit): code = 4\nraise Stop('x')",
    "exit() of site": "exit(5)",
    "quit() of site": "quit()",
    "exit in a thread": "import sys, threading\nthreading.Thread(target=sys.exit, args=(3,)).start()",
    "_exit": "import os\nprint('lost?', flush=True)\nos._exit(5)",
    "exception": "def inner():\n    raise ValueError('boom')\nprint('before')\ninner()",
    "exception with a cause": "try:\n    1/0\nexcept ZeroDivisionError as error:\n    raise KeyError('x') from error",
    "exception in a handler": "try:\n    1/0\nexcept ZeroDivisionError:\n    raise KeyError('x')",
    "exception without a text": "class Mute(Exception):\n    def __str__(self): raise RuntimeError\nraise Mute",
    "syntax error in what it imports": "exec(compile('x = (', 'other.py', 'exec'))",
    "KeyboardInterrupt": "import atexit\natexit.register(print, 'exit function')\nraise KeyboardInterrupt('by hand')",
    "SIGKILL after output of C and of Python": (
        "import ctypes, os, signal\nctypes.CDLL(None).printf(b'from C')\nprint('from Python', end='')\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    ),
    "exception without an environment": "import os\nos.environ.clear()\n1/0",
    "SIGTERM": "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)",
    "SIGPIPE is ignored": "import signal; print(signal.getsignal(signal.SIGPIPE), signal.getsignal(signal.SIGINT))",
    "SIGINT": "import os, signal, threading\nos.kill(os.getpid(), signal.SIGINT)\nthreading.Event().wait(9)",
    "a handler that exits": (
        "import os, signal, sys, threading\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(6))\n"
        "os.kill(os.getpid(), signal.SIGTERM)\nthreading.Event().wait(9)"
    ),
    "hook": "import sys, traceback\nsys.excepthook = lambda kind, error, tb: print(kind, error, traceback.extract_tb(tb))\n1/0",
    "hook for SystemExit is not called": "import sys\nsys.excepthook = print\nsys.exit('text')",
    "hook that fails": "import sys\ndef hook(*_): raise KeyError('in the hook')\nsys.excepthook = hook\n1/0",
    "hook that exits": "import sys\ndef hook(*_): sys.exit(9)\nsys.excepthook = hook\n1/0",
    "hook around Python's": (
        "import sys\ndef hook(*args):\n    print('hook')\n    sys.__excepthook__(*args)\nsys.excepthook = hook\n1/0"
    ),
    "None as the hook": "import sys\nsys.excepthook = None\n1/0",
    "hook for an interrupt": "import sys\nsys.excepthook = lambda *args: print(args[0])\nraise KeyboardInterrupt",
    "what debuggers read at exit": (
        "import atexit, sys, traceback\n"
        "atexit.register(lambda: print(sys.last_type, sys.last_value, traceback.extract_tb(sys.last_traceback)))\n1/0"
    ),
    "no traceback": "import sys\nsys.tracebacklimit = 0\n1/0",
    "own stderr": (
        "import io, sys\nclass Loud(io.StringIO):\n    def write(self, text): sys.__stderr__.write(text.upper())\n"
        "sys.stderr = Loud()\n1/0"
    ),
    "no stderr": "import sys\nsys.stderr = None\n1/0",
    "closed stdout": "import sys\nsys.stdout.close()\nsys.exit(3)",
    "hook of threads": (
        "import threading\nthreading.excepthook = lambda args: print(args.exc_type, args.thread.name)\n"
        "threading.Thread(target=lambda: 1/0, name='t').start()"
    ),
    "exception in a thread": "import threading\nthreading.Thread(target=lambda: 1/0, name='t').start()",
    "hook of what cannot be raised": (
        "import sys\nsys.unraisablehook = lambda args: print(args.exc_type, args.object.__qualname__)\n"
        "class Bad:\n    def __del__(self): 1/0\nBad()"
    ),
    "exception in __del__": "class Bad:\n    def __del__(self): 1/0\nBad()",
    "exception in an exit function": (
        "import atexit\natexit.register(print, 'first')\natexit.register(lambda: 1/0)\natexit.register(print, 'last')"
    ),
    "exit in an exit function": "import atexit, sys\natexit.register(print, 'first')\natexit.register(sys.exit, 7)",
    "_exit in an exit function": "import atexit, os\natexit.register(os._exit, 7)",
    "globals are deleted": (
        "import atexit\nclass Witness:\n    def __del__(self): print('deleted', self.others)\n"
        "alone, in_a_circle = Witness(), Witness()\nalone.others, in_a_circle.others = None, [in_a_circle]\n"
        "atexit.register(print, 'exit function')"
    ),
    "modules are taken apart": (
        "import sys, types\nclass Witness:\n    def __del__(self): print('deleted', self.name)\n"
        "for name in ('before torch', 'after it'):\n    own = sys.modules[name] = types.ModuleType(name)\n"
        "    own.witness = Witness()\n    own.witness.name = name\n    del own\n    import torch"
    ),
    "modules are taken apart, wherever the script has put others": (
        "import decimal, importlib, logging, sys, types\nclass Witness:\n    def __del__(self): print('deleted', self.name)\n"
        "for name in ('own', 'decimal'):\n    own = sys.modules[name] = types.ModuleType(name)\n"
        "    own.witness = Witness()\n    own.witness.name = name\n    del own\nimportlib.reload(logging)"
    ),
    "children are waited for, or ended": (
        "import multiprocessing, time\ndef late(seconds):\n    time.sleep(seconds)\n    print('late', flush=True)\n"
        "for seconds in (0.2, 100):\n"
        "    multiprocessing.get_context('fork').Process(target=late, args=(seconds,), daemon=seconds > 1).start()\n"
        "print('last line', flush=True)"
    ),
    "work of a pool is finished": (
        "import concurrent.futures, time\npool = concurrent.futures.ThreadPoolExecutor(1)\n"
        "for number in range(3):\n    pool.submit(lambda number=number: (time.sleep(0.1), print('done', number)))\n"
        "print('last line')"
    ),
    "finalizers": (
        "import atexit, os, tempfile, weakref\nclass Own: pass\nown = Own()\nweakref.finalize(own, print, 'finalized')\n"
        "folder = tempfile.TemporaryDirectory()\natexit.register(lambda: print(os.path.exists(folder.name)))"
    ),
    "own breakpoint hook": "import sys\nsys.breakpointhook = lambda: print('own')\nbreakpoint()",
    "breakpoints are switched off": "import os\nos.environ['PYTHONBREAKPOINT'] = '0'\nbreakpoint()\nprint('went on')",
    "own start method": (
        "import multiprocessing\nmultiprocessing.set_start_method('spawn')\nprint(multiprocessing.get_start_method())"
    ),
    "script that imports itself": "import script, sys\nprint(__name__, script is sys.modules['__main__'])",
    "subprocesses of asyncio": (
        "import asyncio\nasync def main():\n    child = await asyncio.create_subprocess_exec('sh', '-c', 'exit 3')\n"
        "    print(await child.wait())\nasyncio.run(main())"
    ),
    "warnings": "import warnings\nwarnings.warn('careful')",
    "end of input": "input()",
    "streams": "import sys\nprint(sys.stdin, sys.stdout, sys.stderr, sys.stdout.mode, sys.stdout.buffer)",
    "exception in asyncio": "import asyncio\nasync def main(): raise ValueError('x')\nasyncio.run(main())",
    "thread that outlives an exception": (
        "import threading\ndef late():\n    threading.main_thread().join(0.2)\n    print('late')\n"
        "threading.Thread(target=late).start()\n1/0"
    ),
}


@pytest.mark.parametrize("script", ENDINGS.values(), ids=ENDINGS)
def test_a_script_ends_as_under_python(run, script):
    path = run.write("script.py", script)
    expected = run.by_python(path)
    for start_method in START_METHODS:
        assert run.as_rank(start_method, {"script": path}) == expected, start_method


def test_a_huge_exit_code_is_that_of_python(run):
    path = run.write("huge.py", "raise SystemExit(2**80)")
    expected = run.by_python(path).code  # some releases of Python also print that it is too large
    assert [run.as_rank(start_method, {"script": path}).code for start_method in START_METHODS] == [expected] * 2


def test_what_a_script_does_after_its_last_line_is_done_in_pythons_order(run):
    path = run.write("late.py", AFTER_THE_LAST_LINE)
    expected = run.by_python(path)
    assert expected.code == 0
    assert [line.split()[0] for line in expected.out.splitlines()] == ["last", "saved", "the", "exit", "exit", "exit", "from"]
    assert expected.out.endswith("\nexit function of C\nfrom C")
    for start_method in START_METHODS:
        assert run.as_rank(start_method, {"script": path}) == expected, start_method


def test_a_file_that_is_not_closed_is_written(run):
    path = run.write("unclosed.py", "import sys\nunclosed = open(sys.argv[1], 'w')\nunclosed.write('written')")
    for start_method in START_METHODS:
        run.as_rank(start_method, {"script": path}, start_method)
        assert (run.folder / start_method).read_text() == "written"


def test_links_that_lead_to_themselves_hide_nothing_beside_them(run):
    run.write("links/sympy/__init__.py", "print('own')")
    path = run.write("links/main.py", "import sympy")
    for number in range(20):
        (run.folder / "links" / f"link{number}").symlink_to(f"link{number}")
    assert run.as_rank("forkserver", {"script": path}) == run.by_python(path) == Ended(0, "own\n", "")


ABOUT_MAIN = """
'''Its text.'''
import builtins, inspect, os, pickle, sys
number: int = 1
class Own:
    def method(self): return 1
def names(): return sorted(name for name in vars(sys.modules["__main__"]) if name.startswith("__"))
spec = __spec__ and (__spec__.name, __spec__.origin, __spec__.parent, type(__spec__.loader).__name__)
print(__name__, __file__, __package__, spec, __doc__, __annotations__, __builtins__ is builtins, names())
print(type(__loader__).__name__, getattr(__loader__, "name", None), sys.modules["__main__"].__dict__ is globals())
print(sys.argv, sys.path[0], os.getcwd(), sys.orig_argv[-len(sys.argv):])
print(pickle.loads(pickle.dumps(Own)) is Own, Own.__module__, inspect.getsource(Own.method), inspect.getfile(Own))
try: import neighbour; print(neighbour.__file__)
except ImportError as error: print(error)
"""
RELATIVE = ABOUT_MAIN + "\nfrom . import neighbour as other; print(other.__name__)\n"


def zipped(text):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("__main__.py", text)
        archive.writestr("neighbour.py", "")
    return data.getvalue()


def compiled(text):
    return importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(compile(text, "was.py", "exec"))


FILES = {
    "name with spaces and $": ("a $HOME {x} 'folder/a script.py", ABOUT_MAIN),
    "name beyond ASCII": ("größe/学.py", ABOUT_MAIN),
    "no suffix": ("train", "#!/usr/bin/env python\n" + ABOUT_MAIN),
    "other suffix": ("train.txt", ABOUT_MAIN),
    "compiled": ("train.pyc", compiled("print(__file__, __spec__, __cached__, type(__loader__).__name__)")),
    "folder": ("folder/__main__.py", ABOUT_MAIN),
    "zip file": ("app.zip", zipped(ABOUT_MAIN)),
    "zip file of zipapp": ("app.pyz", b"#!/usr/bin/env python3\n" + zipped(ABOUT_MAIN)),
    "zip file without suffix": ("app", zipped(ABOUT_MAIN)),
    "BOM": ("bom.py", b"\xef\xbb\xbfprint('\xc3\xa9')"),
    "cookie": ("cookie.py", b"# -*- coding: latin-1 -*-\nprint('\xe9')"),
    "line ends of Windows": ("crlf.py", b"print(repr('''a\r\nb'''))\r\nif 1:\r\n    print(1)"),
    "syntax error": ("syntax.py", "print('never')\nx = ("),
    "indentation": ("indent.py", "if 1:\n  x = 1\n y = 2"),
    "empty": ("empty.py", ""),
    "future": ("future.py", "from __future__ import annotations\nx: NoSuch = 1\nprint(__annotations__)"),
    "no future": ("no_future.py", "x: NoSuch = 1"),
}


@pytest.mark.parametrize(("name", "text"), FILES.values(), ids=FILES)
def test_a_file_runs_as_under_python(run, name, text):
    path = run.write(f"files/{name}", text)
    run.write(str(Path(path).parent / "neighbour.py"), "")
    path = path.removesuffix("/__main__.py")
    expected = run.by_python(path, "--x", "a b")
    for start_method in START_METHODS:
        assert run.as_rank(start_method, {"script": path}, "--x", "a b") == expected, start_method


def test_a_link_to_a_script_finds_the_modules_beside_the_script(run):
    run.write("real/neighbour.py", "")
    path = run.folder / "link.py"
    path.symlink_to(run.write("real/script.py", ABOUT_MAIN))
    expected = run.by_python(str(path))
    assert str(run.folder / "real" / "neighbour.py") in expected.out
    for start_method in START_METHODS:
        assert run.as_rank(start_method, {"script": str(path)}) == expected, start_method


MODULES = {
    "module": "plain_module",
    "package": "package",
    "module in a package": "package.sub.train",
    "module in a namespace": "space.train",
    "package that cannot be executed": "package.sub",
    "module that does not exist": "package.no_such",
    "module that fails": "package.fails",
    "package that fails": "failing",
    "module of Python": "this",
}


@pytest.mark.parametrize("name", MODULES.values(), ids=MODULES)
def test_a_module_runs_as_under_python_m(run, name):
    for path in ("package/__init__.py", "package/sub/__init__.py", "package/neighbour.py", "package/sub/neighbour.py"):
        run.write(path, "")
    for path in ("package/__main__.py", "package/sub/train.py", "space/train.py"):
        run.write(path, RELATIVE)
    run.write("plain_module.py", ABOUT_MAIN)
    run.write("package/fails.py", "1/0")
    run.write("failing/__init__.py", "1/0")
    expected = run.by_python("-m", name, "--x")
    for start_method in START_METHODS:
        assert run.as_rank(start_method, {"module": name}, "--x") == expected, start_method
