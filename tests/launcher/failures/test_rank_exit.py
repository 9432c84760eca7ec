"""Reading the files of a rank that has exited, and which failure came first."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.failures.crash import Crash, write_crash
from launcher.failures.output_tail import crash_in, fatal_in, tail_of
from launcher.failures.rank_exit import RankExit, describe_exit_code, first_failure, read_rank_exit
from mimo_role import REQUEUE_EXIT_CODE
from tests.launcher.failures.rank_exits import (
    GLOO_LOST_A_PEER,
    NCCL_LOST_A_PEER,
    NCCL_LOST_A_PEER_INSIDE,
    STORE_LOST_A_PEER,
    crash,
    record,
)

OWN = crash("ValueError", "bad batch")
INTERRUPT = crash("KeyboardInterrupt", "", bases=("BaseException",))


def output_of(script, folder, name="script.py"):
    """The stderr of a Python program, in a file, and its exit code."""
    (folder / name).write_text(script, encoding="utf-8")
    with (folder / "stderr").open("wb") as file:
        done = subprocess.run([sys.executable, name], stderr=file, cwd=folder, timeout=60, check=False)
    return folder / "stderr", done.returncode


def crash_of(script, folder):
    return crash_in(output_of(script, folder)[0])


# The last lines of output.


@pytest.mark.parametrize(
    ("written", "tail"),
    [
        pytest.param(b"", [], id="nothing"),
        pytest.param(b"one\ntwo\n", ["one", "two"], id="whole lines"),
        pytest.param(b"one\ntw", ["one", "tw"], id="a line without an end"),
        pytest.param(b"caf\xe9 \xff\n", ["caf\\xe9 \\xff"], id="not UTF-8"),
        pytest.param(b"%d\n" * 2 % (1, 2) * 30, ["1", "2"] * 10, id="many lines"),
        pytest.param(b"x" * 20_000 + b"\nend\n", ["end"], id="a long line before"),
        pytest.param(b"x" * 99_000 + b"end", ["... " + "x" * 297 + "end"], id="one long line"),
        pytest.param("é".encode() * 10_000 + b"\nend", ["end"], id="cut inside a character"),
        pytest.param(b"one\n\r 40%\r 50%", ["one", " 50%"], id="a progress bar"),
        pytest.param(b"\r 50%" * 10_000, ["...  50%"], id="a long progress bar"),
        pytest.param(b"\router\n\rinner 0\x1b[A\n\rinner 1\x1b[A", ["outer", "inner 1"], id="nested bars"),
        pytest.param(b"\x1b[2Jone\x1b[A\n", ["one"], id="codes that move the cursor"),
    ],
)
def test_the_tail_has_the_last_lines_of_a_file(tmp_path, written, tail):
    (tmp_path / "log").write_bytes(written)
    assert tail_of(tmp_path / "log") == tail


def test_a_missing_file_has_no_tail(tmp_path):
    assert tail_of(tmp_path / "log") == []
    assert crash_in(tmp_path / "log") is None
    assert fatal_in(tmp_path / "log") is None


# Tracebacks in output.


@pytest.mark.parametrize(
    ("script", "kind", "text", "functions"),
    [
        pytest.param("def f():\n    raise ValueError('no')\nf()", "ValueError", "no", ["<module>", "f"], id="a message"),
        pytest.param("raise ValueError", "ValueError", "", ["<module>"], id="no message"),
        pytest.param("raise ValueError('a\\nb: c\\n\\nd')", "ValueError", "a\nb: c\n\nd", ["<module>"], id="several lines"),
        pytest.param(
            "import no_such_package", "ModuleNotFoundError", "No module named 'no_such_package'", ["<module>"], id="an import"
        ),
        pytest.param("class Own(Exception): pass\nraise Own('mine')", "Own", "mine", ["<module>"], id="a class of the script"),
        pytest.param(
            "import json; json.loads('')",
            "json.decoder.JSONDecodeError",
            "Expecting value: line 1 column 1 (char 0)",
            ["<module>", "loads", "decode", "raw_decode"],
            id="a class of a package",
        ),
        pytest.param(
            "try:\n    1/0\nexcept ZeroDivisionError as e:\n    raise OSError('disk') from e",
            "OSError",
            "disk",
            ["<module>"],
            id="with a cause",
        ),
        pytest.param("try:\n    1/0\nfinally:\n    {}[1]", "KeyError", "1", ["<module>"], id="while another was handled"),
        pytest.param("raise KeyboardInterrupt", "KeyboardInterrupt", "", ["<module>"], id="Ctrl-C"),
        pytest.param("raise ValueError('café 🏖️')", "ValueError", "café 🏖️", ["<module>"], id="odd characters"),
        pytest.param("(1\n", "SyntaxError", "'(' was never closed", ["<module>"], id="a script that cannot be read"),
        pytest.param(
            "if 1:\nx = 2\n",
            "IndentationError",
            "expected an indented block after 'if' statement on line 1",
            ["<module>"],
            id="indentation",
        ),
    ],
)
def test_a_traceback_at_the_end_of_the_output_is_found(tmp_path, script, kind, text, functions):
    found = crash_of(script, tmp_path)
    assert (found.kind, found.text, found.kinds) == (kind, text, (kind,))
    assert [frame.function for frame in found.frames] == functions
    assert all(frame.source for frame in found.frames)


def test_the_frames_of_a_traceback_have_places_and_owners(tmp_path):
    found = crash_of("import json\n\njson.loads('')", tmp_path)
    assert [frame.is_users for frame in found.frames] == [True, False, False, False]
    assert (found.frames[0].line, found.frames[0].source) == (3, "json.loads('')")
    assert Path(found.frames[0].file).name == "script.py"


def test_a_traceback_behind_other_output_is_found(tmp_path):
    assert crash_of("import sys\nsys.stderr.write('x' * 100_000 + '\\n')\n1/0", tmp_path).kind == "ZeroDivisionError"


def test_a_traceback_in_the_middle_is_ignored(tmp_path):
    survived = "import sys, traceback\ntry:\n    1/0\nexcept ZeroDivisionError:\n    traceback.print_exc()\n"
    assert crash_of(survived + "sys.stderr.write('going on\\n' * 30)\nsys.exit(3)", tmp_path) is None


def test_of_two_tracebacks_the_last_counts(tmp_path):
    survived = "import sys, traceback\ntry:\n    1/0\nexcept ZeroDivisionError:\n    traceback.print_exc()\n"
    assert crash_of(survived + "raise OSError('disk')", tmp_path).kind == "OSError"


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(b"error: nothing to be done\n", id="no traceback"),
        pytest.param(b"Traceback (most recent call last):\n", id="its head alone"),
        pytest.param(b'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    x()\n', id="cut"),
        pytest.param(b'  File "a.py", line 1, in f\nValueError: x\n', id="no head"),
        pytest.param(b"SyntaxError: of another program\n", id="an error without a place"),
    ],
)
def test_output_without_a_traceback_has_no_crash(tmp_path, written):
    (tmp_path / "log").write_bytes(written)
    assert crash_in(tmp_path / "log") is None


# Crashes in C.

_FATAL = """
import faulthandler, threading, ctypes
faulthandler.enable(**{})
def inner():
    {}
def outer():
    inner()
outer()
"""


@pytest.mark.parametrize("all_threads", [True, False])
@pytest.mark.parametrize(
    ("call", "code", "kind"),
    [
        pytest.param("ctypes.string_at(0)", -signal.SIGSEGV, "Segmentation fault", id="a null pointer"),
        pytest.param("faulthandler._sigabrt()", -signal.SIGABRT, "Aborted", id="abort"),
        pytest.param("faulthandler._sigfpe()", -signal.SIGFPE, "Floating point exception", id="a division by zero"),
    ],
)
def test_a_stack_by_faulthandler_is_found(tmp_path, call, code, kind, all_threads):
    log, ended = output_of(_FATAL.format({"all_threads": all_threads}, call), tmp_path)
    found = crash_in(log)
    assert ended == code
    assert (found.kind.replace("-", " "), found.text) == (kind, "")  # with a hyphen from Python 3.12 on
    users = [frame.function for frame in found.frames if frame.is_users]
    assert users == ["<module>", "outer", "inner"]


def test_of_several_threads_the_stack_of_the_one_that_crashed_counts(tmp_path):
    script = _FATAL.format({}, "ctypes.string_at(0)")
    script = script.replace("def inner", "threading.Thread(target=threading.Event().wait, daemon=True).start()\ndef inner", 1)
    found = crash_of(script, tmp_path)
    assert [frame.function for frame in found.frames if frame.is_users] == ["<module>", "outer", "inner"]


def test_a_stack_by_faulthandler_before_more_output_is_found(tmp_path):
    log, _ = output_of(_FATAL.format({}, "ctypes.string_at(0)"), tmp_path)
    with log.open("ab") as file:
        file.write(b"\nsh: line 1: 4242 Segmentation fault (core dumped)\n")
    assert crash_in(log).kind == "Segmentation fault"


def test_stacks_on_request_are_not_a_crash(tmp_path):
    log, _ = output_of("import faulthandler; faulthandler.dump_traceback()", tmp_path)
    assert fatal_in(log) is None
    assert crash_in(log) is None


# The exit in one line.


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        pytest.param(record(0, 3), "exit code 3", id="a code"),
        pytest.param(record(0, -signal.SIGSEGV), "killed by SIGSEGV", id="a signal"),
        pytest.param(record(0, -60), "killed by signal 60", id="a signal without a name"),
        pytest.param(record(0, 1, crash=crash("ValueError", "no")), "ValueError: no", id="an exception"),
        pytest.param(record(0, 1, crash=crash("ValueError", "")), "ValueError", id="one without a message"),
        pytest.param(record(0, 1, crash=crash("ValueError", "\n one\ntwo")), "ValueError: one", id="its first line"),
        pytest.param(record(0, 1, crash=crash("ValueError", "x" * 999)), "ValueError: " + "x" * 300, id="a long one"),
        pytest.param(record(0, 5, crash=crash("ValueError", "no")), "ValueError: no (exit code 5)", id="another code"),
        pytest.param(record(0, 1, crash=crash("SystemExit", "no data")), "exit code 1 (no data)", id="sys.exit with a text"),
        pytest.param(record(0, -9, crash=crash("ValueError", "no")), "ValueError: no", id="ended after its exception"),
        pytest.param(
            record(0, -15, crash=crash("ValueError", "no")), "ValueError: no", id="ended after its exception by SIGTERM"
        ),
        pytest.param(record(0, -15, crash=crash("SystemExit", "no data")), "exit code 1 (no data)", id="ended after sys.exit"),
        pytest.param(
            record(0, -15, crash=INTERRUPT), "killed by SIGINT (KeyboardInterrupt)", id="ended after a KeyboardInterrupt"
        ),
        pytest.param(record(0, -11, crash=crash("Segmentation fault")), "killed by SIGSEGV (Segmentation fault)", id="in C"),
        pytest.param(record(0, 0, crash=crash("ValueError", "no")), "exit code 0", id="no failure"),
        pytest.param(
            record(0, 1, crash=crash("RuntimeError", GLOO_LOST_A_PEER)),
            "RuntimeError: Read error [127.0.0.1]:47513: Connection reset by peer.",
            id="gloo",
        ),
    ],
)
def test_an_exit_is_described_in_one_line(ended, words):
    assert ended.ending == words


def test_exit_codes_are_described():
    assert [describe_exit_code(code) for code in (0, 1, 143, -15, -64)] == [
        "exit code 0",
        "exit code 1",
        "exit code 143",
        "killed by SIGTERM",
        f"killed by {signal.Signals(64).name}",
    ]


def read(folder, code, **more):
    wanted = {
        "order": 0,
        "host": "hosta",
        "ended_at": 1.0,
        "step": 4,
        "logs": (folder / "stderr", folder / "stdout"),
        "error_files": (folder / "error.json", folder / "fallback.json"),
        "stacks": folder / "stacks",
    }
    return read_rank_exit(3, code, **(wanted | more))


def test_a_rank_without_files_has_only_its_exit_code(tmp_path):
    assert read(tmp_path, 7) == RankExit(rank=3, code=7, order=0, host="hosta", ended_at=1.0, step=4)


def leave_error(file, text):
    write_crash(ValueError(text), None, file, to_stderr=False, fallback=None)


def test_the_first_error_file_that_can_be_read_counts(tmp_path):
    leave_error(tmp_path / "fallback.json", "fallback")
    assert read(tmp_path, 1).crash.text == "fallback"
    (tmp_path / "error.json").write_bytes(b"\xff{")
    assert read(tmp_path, 1).crash.text == "fallback"
    leave_error(tmp_path / "error.json", "first")
    assert read(tmp_path, 1).crash.text == "first"


def test_a_traceback_in_the_output_counts_without_an_error_file(tmp_path):
    (tmp_path / "stderr").write_text(
        'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    x()\nValueError: printed\n'
    )
    assert read(tmp_path, 1).crash.text == "printed"
    leave_error(tmp_path / "error.json", "written")
    assert read(tmp_path, 1).crash.text == "written"


def test_a_traceback_before_the_rank_was_killed_does_not_count(tmp_path):
    (tmp_path / "stderr").write_text(
        'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    x()\nValueError: printed\n'
    )
    assert read(tmp_path, -signal.SIGKILL).crash is None
    assert read(tmp_path, 0).crash is None


def test_a_crash_in_c_takes_precedence_over_an_exception_before_it(tmp_path):
    leave_error(tmp_path / "error.json", "before")
    (tmp_path / "stacks").write_text(
        'Fatal Python error: Segmentation fault\n\nStack (most recent call first):\n  File "a.py", line 3 in f\n'
    )
    found = read(tmp_path, -signal.SIGSEGV).crash
    assert (found.kind, [str(frame) for frame in found.frames]) == ("Segmentation fault", ["a.py:3 in f"])
    assert read(tmp_path, 1).crash.text == "before"


def test_the_tail_is_that_of_stderr_unless_it_is_empty(tmp_path):
    (tmp_path / "stdout").write_text("out\n")
    (tmp_path / "stderr").touch()
    assert read(tmp_path, 1).tail == ("out",)
    assert read(tmp_path, 1).logs == (str(tmp_path / "stdout"),)
    (tmp_path / "stderr").write_text("err\n")
    assert read(tmp_path, 1).tail == ("err",)
    assert read(tmp_path, 1).logs == (str(tmp_path / "stderr"), str(tmp_path / "stdout"))


def test_a_rank_exit_survives_json(tmp_path):
    leave_error(tmp_path / "error.json", "\udcff é")
    (tmp_path / "stderr").write_bytes(b"\xff\n")
    for ended in (read(tmp_path, 1), read(tmp_path, -9, error_files=())):
        assert RankExit.from_dict(json.loads(json.dumps(ended.as_dict()))) == ended


# Which failure came first.

LOST = crash("RuntimeError", GLOO_LOST_A_PEER)
IN_C = Crash(kind="Segmentation fault", text="", traceback="")
ABORTED = Crash(kind="Aborted", text="", traceback="")


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        pytest.param(GLOO_LOST_A_PEER, True, id="gloo"),
        pytest.param(NCCL_LOST_A_PEER, True, id="NCCL"),
        pytest.param(NCCL_LOST_A_PEER_INSIDE, True, id="NCCL, inside of which it closed"),
        pytest.param(STORE_LOST_A_PEER, True, id="the store"),
        pytest.param("[Errno 32] Broken pipe", True, id="a pipe"),
        pytest.param(
            "[../gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 5000ms for recv operation to complete",
            True,
            id="a timeout",
        ),
        pytest.param("shapes do not match", False, id="its own"),
    ],
)
def test_a_lost_peer_is_recognized_in_the_exception_or_the_output(message, lost):
    assert record(0, crash=crash("RuntimeError", message)).has_lost_a_peer is lost
    assert record(0, tail=["going on", *message.splitlines()]).has_lost_a_peer is lost


# If torch's watchdog thread ends the process, the stack is faulthandler's and the message is in the output.
WATCHDOG = "terminate called after throwing an instance of 'c10::DistBackendError'\n  what():  " + NCCL_LOST_A_PEER


def test_a_lost_peer_is_recognized_in_the_output_of_a_rank_that_the_watchdog_has_aborted():
    assert record(0, -signal.SIGABRT, crash=ABORTED, tail=WATCHDOG.splitlines()).has_lost_a_peer


def test_the_output_before_an_exception_without_a_message_does_not_count():
    assert not record(0, crash=crash("AssertionError"), tail=GLOO_LOST_A_PEER.splitlines()).has_lost_a_peer
    assert not record(0, -15, crash=crash("AssertionError"), tail=GLOO_LOST_A_PEER.splitlines()).has_lost_a_peer


@pytest.mark.parametrize(
    ("code", "exception", "job_code"),
    [(7, None, 7), (1, OWN, 1), (-9, None, 1), (-15, OWN, 1), (-2, None, 130), (-2, INTERRUPT, 130), (-15, INTERRUPT, 130)],
)
def test_the_exit_code_of_a_job_is_that_of_its_rank(code, exception, job_code):
    assert record(0, code, crash=exception).job_code == job_code


@pytest.mark.parametrize(
    ("records", "first"),
    [
        pytest.param([], None, id="nobody"),
        pytest.param([record(0, 0), record(1, 0)], None, id="no failure"),
        pytest.param([record(0, 1, order=2), record(1, 1, order=1), record(2, 0, order=0)], 1, id="the order of the exits"),
        pytest.param([record(0, crash=LOST), record(1, crash=OWN)], 1, id="a peer exits before the culprit"),
        pytest.param(
            [record(0, crash=LOST), record(1, crash=LOST), record(2, crash=OWN), record(3, crash=OWN)], 2, id="several peers do"
        ),
        pytest.param([record(0, crash=LOST), record(1, -11, crash=IN_C)], 1, id="the culprit crashes in C"),
        pytest.param([record(0, crash=LOST), record(1, -2, crash=INTERRUPT, after_s=2)], 1, id="the culprit was interrupted"),
        pytest.param([record(0, crash=LOST), record(1, -15, crash=OWN, after_s=2)], 1, id="the culprit was killed as it ended"),
        pytest.param(
            [record(0, -6, crash=ABORTED, tail=WATCHDOG.splitlines()), record(1, crash=OWN)],
            1,
            id="the watchdog ends a peer before the culprit",
        ),
        pytest.param([record(0, crash=LOST), record(1, -15)], 0, id="the other rank was ended"),
        pytest.param(
            [record(0, crash=LOST), record(1, -9)], 1, id="a peer is noticed at the same moment as one that was killed"
        ),
        pytest.param([record(0, -15), record(1, -9)], 1, id="a rank that was ended is noticed with one that was killed"),
        pytest.param([record(0, -15), record(1, crash=LOST)], 1, id="a rank that was ended is noticed with one that failed"),
        pytest.param([record(0, -15), record(1, -9, after_s=0.1)], 0, id="a rank is ended from outside, and another later"),
        pytest.param([record(0, crash=LOST), record(1, -9, after_s=0.1)], 0, id="the other rank was killed later"),
        pytest.param([record(0, crash=LOST), record(1, crash=LOST)], 0, id="all have lost a peer"),
        pytest.param([record(0, -9), record(1, crash=LOST), record(2, crash=OWN)], 0, id="one that was killed was first"),
        pytest.param([record(0, 3), record(1, crash=OWN)], 0, id="one without an exception was first"),
        pytest.param([record(0, REQUEUE_EXIT_CODE), record(1, crash=OWN)], 1, id="a requeue before another failed"),
        pytest.param([record(0, REQUEUE_EXIT_CODE), record(1, 0)], 0, id="a requeue"),
        pytest.param(
            [record(1, REQUEUE_EXIT_CODE, order=0), record(0, crash=LOST, order=1), record(2, crash=OWN)], 2, id="all of it"
        ),
    ],
)
def test_the_failure_that_came_first_is_found(records, first):
    found = first_failure(records)
    assert (found.rank if found is not None else None) == first
    again = first_failure(list(reversed(records)))
    assert again == found


def test_sys_exit_with_a_text_has_exit_code_1():
    """The exit codes that the table of exits above assumes."""
    done = subprocess.run([sys.executable, "-c", "import sys; sys.exit('text')"], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, f"text{os.linesep}".encode())
