"""Writing the exception that ends a rank, and reading it back."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.failures.crash import Crash, Frame, is_users, read_crash, write_crash

LINE_LIMIT = 100


class OwnError(ValueError):
    pass


class TextlessError(Exception):
    def __str__(self):
        raise ZeroDivisionError


class NumberedError(Exception):
    def __str__(self):
        return 7  # noqa: PLE0307 (as users do)


def caught(raiser):
    try:
        raiser()
    except BaseException as error:
        return error
    raise AssertionError


def written(error, folder, **more):
    """The exception as it is read back from the file."""
    file = folder / "error.json"
    write_crash(error, error.__traceback__, file, to_stderr=False, **({"fallback": None} | more))
    return read_crash(file.read_text(encoding="utf-8"))


def chained():
    try:
        {}["tokens"]
    except KeyError as error:
        raise OwnError("no tokens") from error


def deep(count=500):
    return deep(count - 1) if count else 1 / 0


def raise_with(*arguments, kind=RuntimeError):
    def raiser():
        raise kind(*arguments)

    return raiser


@pytest.mark.parametrize(
    ("raiser", "kind", "text"),
    [
        pytest.param(raise_with("out of cheese"), "RuntimeError", "out of cheese", id="a message"),
        pytest.param(raise_with(), "RuntimeError", "", id="no message"),
        pytest.param(raise_with("a\nb\n"), "RuntimeError", "a\nb\n", id="several lines"),
        pytest.param(raise_with("🏖️ é \x00 \x1b[31m"), "RuntimeError", "🏖️ é \x00 \x1b[31m", id="odd characters"),
        pytest.param(raise_with("\udcff"), "RuntimeError", "\udcff", id="what is not UTF-8"),
        pytest.param(raise_with("tokens", kind=KeyError), "KeyError", "'tokens'", id="a key"),
        pytest.param(
            raise_with(2, "No such file", "a.pt", kind=OSError),
            "FileNotFoundError",
            "[Errno 2] No such file: 'a.pt'",
            id="a file",
        ),
        pytest.param(raise_with("text", kind=SystemExit), "SystemExit", "text", id="sys.exit with a text"),
        pytest.param(raise_with(kind=KeyboardInterrupt), "KeyboardInterrupt", "", id="Ctrl-C"),
        pytest.param(
            raise_with(kind=TextlessError),
            f"{__name__}.TextlessError",
            "(str() of it failed: ZeroDivisionError)",
            id="__str__ raises",
        ),
        pytest.param(
            raise_with(kind=NumberedError),
            f"{__name__}.NumberedError",
            "(str() of it failed: TypeError)",
            id="__str__ returns no text",
        ),
        pytest.param(chained, f"{__name__}.OwnError", "no tokens", id="with a cause"),
    ],
)
def test_an_exception_is_read_back_as_it_was_written(raiser, kind, text, tmp_path):
    crash = written(caught(raiser), tmp_path)
    assert (crash.kind, crash.text, crash.kinds[0]) == (kind, text, kind)
    assert crash.kinds[-1] == "BaseException"
    assert crash.frames[0].function == "caught"
    assert crash.written is None


@given(st.text())
def test_any_message_is_read_back(tmp_path_factory, text):
    assert written(caught(raise_with(text)), tmp_path_factory.mktemp("crash")).text == text


def test_the_cause_of_an_exception_is_in_its_traceback(tmp_path):
    crash = written(caught(chained), tmp_path)
    assert "KeyError: 'tokens'" in crash.traceback
    assert "direct cause" in crash.traceback
    assert crash.kinds[:2] == (f"{__name__}.OwnError", "ValueError")


def test_a_frame_has_its_place_its_source_and_its_owner(tmp_path):
    frame = written(caught(chained), tmp_path).frames[-1]
    assert (frame.file, frame.function, frame.source) == (__file__, "chained", 'raise OwnError("no tokens") from error')
    assert frame.is_users
    assert str(frame) == f"{__file__}:{frame.line} in chained"


def test_a_huge_message_is_shortened_in_the_middle(tmp_path):
    crash = written(caught(raise_with("begin" + "x" * 10_000_000 + "end")), tmp_path)
    assert len(crash.text) < 5_000
    assert crash.text.startswith("begin")
    assert crash.text.endswith("end")
    assert "characters left out" in crash.text
    assert (tmp_path / "error.json").stat().st_size < 100_000


def test_a_deep_recursion_keeps_both_ends_of_its_traceback(tmp_path):
    crash = written(caught(deep), tmp_path)
    assert (crash.frames[0].function, crash.frames[-1].function) == ("caught", "deep")
    assert len(crash.frames) <= LINE_LIMIT
    assert (tmp_path / "error.json").stat().st_size < 100_000


def test_the_fallback_is_used_where_the_file_cannot_be_written(tmp_path):
    fallback = tmp_path / "fallback.json"
    error = caught(raise_with("lost"))
    write_crash(error, error.__traceback__, tmp_path / "no folder" / "error.json", to_stderr=False, fallback=fallback)
    assert read_crash(fallback.read_text()).text == "lost"


def test_the_fallback_is_not_used_where_the_file_can_be_written(tmp_path):
    written(caught(raise_with("kept")), tmp_path, fallback=tmp_path / "fallback.json")
    assert [path.name for path in tmp_path.iterdir()] == ["error.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_leaves_no_partial_file(tmp_path, monkeypatch):
    (tmp_path / "error.json.tmp").symlink_to("/dev/full")
    error = caught(raise_with("full"))
    write_crash(error, None, tmp_path / "error.json", to_stderr=False, fallback=tmp_path / "fallback.json")
    assert [path.name for path in tmp_path.iterdir()] == ["fallback.json"]


def test_where_nothing_can_be_written_nothing_is_raised(tmp_path):
    write_crash(caught(chained), None, tmp_path / "no" / "a", to_stderr=False, fallback=tmp_path / "no" / "b")
    assert list(tmp_path.iterdir()) == []


PRINTS = """
import os, sys
from pathlib import Path
from launcher.failures.crash import write_crash
sys.stderr.write("before\\n")
sys.stderr.flush()
{}
try:
    raise ValueError("\\udcff é")
except ValueError as error:
    write_crash(error, error.__traceback__, Path("error.json"), to_stderr=True, fallback=None)
sys.stderr.write("after\\n")
"""


def printed_by(script, folder):
    with (folder / "stderr").open("wb") as file:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "PYTHONIOENCODING": "ascii"}
        subprocess.run([sys.executable, "-c", script], stderr=file, cwd=folder, env=environment, timeout=60, check=False)
    return (folder / "stderr").read_bytes(), read_crash((folder / "error.json").read_text())


def test_the_position_of_the_traceback_in_stderr_is_recorded(tmp_path):
    stderr, crash = printed_by(PRINTS.format(""), tmp_path)
    begin, end = crash.written
    assert stderr[:begin] == b"before\n"
    assert stderr[end:] == b"after\n"
    assert stderr[begin:end].startswith(b"Traceback (most recent call last):\n")
    assert stderr[begin:end].endswith(b"\nValueError: \\udcff \xc3\xa9\n")


@pytest.mark.parametrize("closing", ["os.close(2)", "sys.stderr.close(); os.closerange(2, 3)"])
def test_the_exception_of_a_script_that_has_closed_its_stderr_is_written(tmp_path, closing):
    _, crash = printed_by(PRINTS.format(closing), tmp_path)
    assert crash.kind == "ValueError"
    assert crash.written is None


RECORDED = """
from torch.distributed.elastic.multiprocessing.errors import record
@record
def main():
    raise KeyError("tokens: none")
main()
"""


def test_a_file_of_torchelastics_record_is_read(tmp_path):
    pytest.importorskip("torch")
    file = tmp_path / "error.json"
    environment = os.environ | {"TORCHELASTIC_ERROR_FILE": str(file)}
    subprocess.run([sys.executable, "-c", RECORDED], capture_output=True, env=environment, timeout=60, check=False)
    crash = read_crash(file.read_text())
    assert (crash.kind, crash.text, crash.kinds, crash.written) == ("KeyError", "'tokens: none'", ("KeyError",), None)
    assert crash.traceback.startswith("Traceback (most recent call last)")


def test_torchelastic_reads_the_file(tmp_path):
    pytest.importorskip("torch")
    from torch.distributed.elastic.multiprocessing.api import ProcessFailure

    written(caught(raise_with("out of cheese")), tmp_path)
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=1, error_file=str(tmp_path / "error.json"))
    assert failure.message["message"] == "RuntimeError: out of cheese"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        pytest.param('{"message": "OSError: gone"}', "OSError", id="a bare message"),
        pytest.param('{"message": {"message": "OSError: gone"}}', "OSError", id="without a traceback"),
        pytest.param('{"message": {"message": "OSError: gone", "extraInfo": null}}', "OSError", id="with none"),
    ],
)
def test_other_formats_of_torchelastic_are_read(text, kind):
    assert (read_crash(text).kind, read_crash(text).text) == (kind, "gone")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "3",
        "[]",
        "{}",
        '{"crash": null}',
        '{"crash": {}}',
        '{"crash": 3}',
        '{"crash": []}',
        '{"message": {}}',
        '{"message": null}',
        '{"message": 3}',
        '{"crash": {"frames": [1], "written": null, "kinds": []}}',
    ],
)
def test_a_file_without_an_exception_is_none(text):
    assert read_crash(text) is None


KEYS = st.sampled_from(["message", "crash", "frames", "kinds", "written", "extraInfo"])
ANYTHING = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=4),
)


@given(ANYTHING)
def test_any_content_of_an_error_file_is_read_without_an_exception(value):
    crash = read_crash(json.dumps(value))
    assert crash is None or crash.kind is not None


def test_a_crash_survives_json():
    crash = Crash(
        kind="OSError", text="a", traceback="b", frames=(Frame("f", 1, "g", "h", True),), kinds=("OSError",), written=(3, 9)
    )
    assert Crash.from_dict(json.loads(json.dumps(asdict(crash)))) == crash


@pytest.mark.parametrize(
    ("file", "whose"),
    [
        pytest.param("/home/me/train.py", True, id="a script"),
        pytest.param("/home/me/lib/model.py", True, id="a folder named lib"),
        pytest.param("train.py", True, id="a relative path"),
        pytest.param("/env/lib/python3.12/site-packages/torch/nn/modules/module.py", False, id="a package"),
        pytest.param("/usr/lib/python3/dist-packages/yaml/__init__.py", False, id="a package of Debian"),
        pytest.param("/opt/python/lib/python3.10/runpy.py", False, id="another Python's library"),
        pytest.param(json.__file__, False, id="this Python's library"),
        pytest.param("<frozen runpy>", False, id="frozen"),
        pytest.param("<string>", False, id="no file"),
        pytest.param(str(Path(__file__).parents[3] / "launcher" / "worker" / "entrypoint.py"), False, id="the launcher"),
        pytest.param(str(Path(__file__).parents[3] / "mimo_role" / "context.py"), False, id="the runtime"),
    ],
)
def test_files_of_the_user_are_recognized(file, whose):
    assert is_users(file) is whose


def test_the_cause_of_an_exception_is_kept(tmp_path):
    assert written(caught(chained), tmp_path).causes == ("caused by KeyError: 'tokens'",)


def test_a_syntax_error_has_a_frame_with_file_and_line(tmp_path):
    found = written(caught(lambda: compile("def f(:\n", "/home/me/train.py", "exec")), tmp_path).frames[-1]
    assert (found.file, found.line, found.source) == ("/home/me/train.py", 1, "def f(:")
