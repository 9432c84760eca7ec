"""Outcomes and abort reasons: kinds, exit codes, and their JSON forms."""

import json
import signal

import pytest

from launcher.errors import LaunchError
from launcher.exit_code import ExitCode
from launcher.outcome import AbortReason, Outcome, Terminated


def reason(code, message="why\nmore", rank=None):
    return AbortReason(node=1, message=message, code=code, rank=rank, details={"waits": [1]})


@pytest.mark.parametrize(
    ("code", "rank", "kind"),
    [
        (ExitCode.FAILURE, None, "failed"),
        (ExitCode.USER_ERROR, None, "refused"),
        (ExitCode.USER_ERROR, 3, "failed"),
        (ExitCode.STALLED, None, "stalled"),
        (ExitCode.REQUEUE, None, "requeued"),
        (ExitCode.INTERRUPTED, None, "ended"),
        (128 + signal.SIGTERM, None, "ended"),
    ],
)
def test_the_kind_of_an_abort_follows_from_its_exit_code(code, rank, kind):
    assert Outcome.aborted(reason(code, rank=rank)).kind == kind
    assert Outcome.aborted_elsewhere(reason(code, rank=rank)).kind == kind


def test_the_node_that_aborts_prints_the_whole_message_and_the_others_the_headline():
    here = reason(ExitCode.STALLED)
    elsewhere = AbortReason.from_dict(json.loads(json.dumps(here.as_dict())))
    assert Outcome.aborted(here).message == "why\nmore"
    assert Outcome.aborted(here).details == {"waits": [1]}
    assert Outcome.aborted_elsewhere(elsewhere).message == "ended: why"
    assert elsewhere == AbortReason(node=1, message="why", code=ExitCode.STALLED)


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (KeyboardInterrupt(), "interrupted on node1 (beta)", 130),
        (Terminated(), "ended by SIGTERM on node1 (beta)", 143),
        (LaunchError("no place"), "node1 (beta): no place", 2),
        (OSError("no space"), "node1 (beta): no space", 1),
        (ValueError(), "node1 (beta): ValueError", 1),
    ],
)
def test_an_exception_is_the_reason_for_the_other_nodes(error, message, code):
    assert AbortReason.of_exception(error, 1, "node1 (beta)") == AbortReason(node=1, message=message, code=code)


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM"), (signal.SIGHUP, 129, "ended by SIGHUP")],
)
def test_a_signal_gives_its_exit_code(number, code, message):
    outcome = Outcome.signalled(number)
    assert (outcome.exit_code, outcome.message, outcome.kind, outcome.by_signal) == (code, message, "ended", number)


def test_an_outcome_survives_json_but_for_the_details():
    outcome = Outcome(kind="failed", exit_code=7, message="first\nmore", attempts=2, restarts=["once"], details={"hint": None})
    value = json.loads(json.dumps(outcome.as_dict()))
    assert value == {
        "outcome": "failed",
        "exit_code": 7,
        "headline": "first",
        "attempts": 2,
        "restarts": ["once"],
        "message": "first\nmore",
        "stragglers": [],
        "stragglers_left_out": 0,
        "hint": None,
    }
    assert Outcome.from_dict(value) == Outcome(kind="failed", exit_code=7, message="first", attempts=2, restarts=("once",))
    assert Outcome.from_dict(Outcome.done().as_dict()) == Outcome.done()
