"""Training programs that fail, under torchrun and under mimo-launch: what rank 1 prints, the exit code, and the message."""

from dataclasses import dataclass, replace

import pytest

from tests.unchanged.launches import Program, by_mimo_launch, by_torchrun

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(450)]


@dataclass(frozen=True)
class Failure:
    """A program of which rank 1 fails."""

    program: Program
    code: int
    """Of mimo-launch: the rank's own. torchrun's is always 1."""
    message: str
    """In what mimo-launch prints at the end."""
    shows: str = ""
    """In what the rank prints."""


TRACKER = Program("tracker.py", ("fail",))
TRACKER_MESSAGE = "failed first: RuntimeError: the loss is not finite"


def ends(how, code, message, shows="joined"):
    return Failure(Program("plain_exits.py", (how,)), code, message, shows)


FAILURES = {
    "exception": ends("raise", 1, "failed first: DataError: no data set 'train'", "KeyError: 'train'"),
    "exception under @record": ends("record", 1, "failed first: DataError: no data set 'train'", "KeyError: 'train'"),
    "exception and a hook": Failure(TRACKER, 1, TRACKER_MESSAGE, "the run with 1"),
    "exit code": ends("code", 3, "failed first: exit code 3"),
    "text": ends("text", 1, "failed first: exit code 1 (the data is gone)", "the data is gone\n"),
    "KeyboardInterrupt": ends("interrupt", 130, "failed first: killed by SIGINT (KeyboardInterrupt)", "KeyboardInterrupt\n"),
    "Typer's hook": Failure(Program("cli_app.py", ("check",)), 1, "FileNotFoundError: no data here", "no data here"),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_a_program_fails_as_under_torchrun(failure, tmp_path):
    if failure.program.entry == "cli_app.py":
        pytest.importorskip("typer")
    expected = by_torchrun(failure.program, tmp_path / "a")
    found = by_mimo_launch(failure.program, tmp_path / "b")
    assert failure.shows in expected.ranks[1].stdout + expected.ranks[1].stderr
    assert plain(found.ranks[1]) == plain(expected.ranks[1])
    assert expected.code == 1
    assert found.code == failure.code
    assert failure.message in found.stderr


def plain(output):
    """Without the rank that torch puts before each line of a traceback. Python's own tracebacks have none under mimo-launch."""
    return replace(output, stderr=output.stderr.replace("[rank1]: ", ""))
