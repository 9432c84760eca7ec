"""When the ranks are restarted, and when that would not help."""

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.failures.output_tail import crash_in
from launcher.failures.restart_policy import Attempt, RestartPolicy, why_not_again
from mimo_role.monitoring.heartbeat import Pulse
from tests.launcher.failures.rank_exits import crash, record

OWN = record(2, 1, crash=crash("ValueError", "bad batch"))
OTHER = record(2, 1, crash=crash("OSError", "disk"))
SILENT = record(2, 7)
KILLED = record(2, -signal.SIGKILL)


def attempt(first, last, failure=OWN):
    return Attempt(first_step=first, last_step=last, failure=failure)


def of_kind(*kinds, code=1):
    return [attempt(None, None, record(2, code, crash=crash(kinds[0], "", bases=kinds)))]


IMPORT, UNREADABLE, SET_UP = "an import that fails once", "a syntax error", "the job's setup is the same"


@pytest.mark.parametrize(
    ("attempts", "why"),
    [
        pytest.param([attempt(None, None, record(2, 2))], "exit code 2 reports wrong arguments", id="exit code 2"),
        pytest.param([attempt(0, 9, record(2, 2))], "exit code 2", id="exit code 2 after some steps"),
        pytest.param(of_kind("ImportError"), IMPORT, id="an import"),
        pytest.param(of_kind("ModuleNotFoundError", "ImportError"), IMPORT, id="a module"),
        pytest.param(of_kind("SyntaxError"), UNREADABLE, id="syntax"),
        pytest.param(of_kind("IndentationError", "SyntaxError"), UNREADABLE, id="indentation"),
        pytest.param(of_kind("mimo_role.errors.ContextError", "mimo_role.errors.MimoError"), SET_UP, id="the context"),
        pytest.param(of_kind("mimo_role.errors.EnvironError", "mimo_role.errors.MimoError"), SET_UP, id="the environment"),
        pytest.param(of_kind("mimo_role.errors.TopologyError", "mimo_role.errors.MimoError"), SET_UP, id="the topology"),
        pytest.param(of_kind("mimo_role.errors.AxisError", "mimo_role.errors.MimoError"), SET_UP, id="an axis"),
        pytest.param(of_kind("launcher.errors.LaunchError", "mimo_role.errors.MimoError"), SET_UP, id="the launcher"),
        pytest.param(of_kind("my.OwnImportError", "ImportError", "Exception"), IMPORT, id="a class derived from one"),
        pytest.param(of_kind("ValueError", "Exception"), None, id="an error"),
        pytest.param([attempt(0, 5)], None, id="the first failure"),
        pytest.param([attempt(0, 0)], None, id="the first failure in the first step"),
        pytest.param(
            [attempt(0, 5), attempt(0, 5)],
            "no progress since the last restart: no attempt came further than step 5",
            id="twice at the same step",
        ),
        pytest.param(
            [attempt(0, 5), attempt(0, 3)],
            "no progress since the last restart: no attempt came further than step 5",
            id="the second time earlier",
        ),
        pytest.param(
            [attempt(0, 5), attempt(None, None)],
            "no progress since the last restart: no attempt came further than step 5",
            id="the second time without a step",
        ),
        pytest.param([attempt(0, 5), attempt(0, 6)], None, id="a step further"),
        pytest.param([attempt(0, 9), attempt(5, 9)], None, id="a later first step: something was saved"),
        pytest.param([attempt(0, 9), attempt(5, 7)], None, id="a later first step, though not as far"),
        pytest.param([attempt(0, 9), attempt(5, 9), attempt(5, 9)], "no progress", id="saved once, then no more"),
        pytest.param([attempt(0, 5), attempt(0, 5, OTHER)], None, id="the same step in another way"),
        pytest.param(
            [attempt(0, 5), attempt(0, 5, OTHER), attempt(0, 5)], "no progress", id="the same step in other ways, three times"
        ),
        pytest.param([attempt(0, 5), attempt(0, 5, SILENT)], None, id="the same step with another code"),
        pytest.param([attempt(0, 5, SILENT), attempt(0, 5, SILENT)], "no progress", id="the same code without a message"),
        pytest.param([attempt(0, 5, KILLED), attempt(0, 5, KILLED)], None, id="killed twice at the same step"),
        pytest.param(
            [attempt(0, 5, KILLED), attempt(0, 4, KILLED), attempt(0, 5, KILLED)],
            "no progress",
            id="killed three times without progress",
        ),
        pytest.param(
            [attempt(0, 5), attempt(0, 5, KILLED), attempt(5, 6), attempt(5, 6, KILLED)], None, id="progress in between"
        ),
        pytest.param([attempt(None, None), attempt(None, None), attempt(None, None)], None, id="a script without steps"),
        pytest.param([attempt(None, None), attempt(0, 1)], None, id="steps only later"),
        pytest.param(
            [attempt(0, 5), attempt(0, 5, record(2, 1, crash=crash("ValueError", "another batch")))],
            None,
            id="the same class with another text is another failure",
        ),
    ],
)
def test_ranks_are_restarted_unless_it_would_not_help(attempts, why):
    found = why_not_again(attempts)
    if why is None:
        assert found is None
    else:
        assert found is not None
        assert found.startswith(why)


@pytest.mark.parametrize(
    ("printed", "why"),
    [
        pytest.param(
            "Traceback (most recent call last):\n"
            '  File "a.py", line 1, in f\n    import b\n'
            "ModuleNotFoundError: No module named 'b'\n",
            IMPORT,
            id="a module that is not there",
        ),
        pytest.param("  File \"a.py\", line 1\n    (1\n    ^\nSyntaxError: '(' was never closed\n", UNREADABLE, id="syntax"),
        pytest.param(
            '  File "a.py", line 2\n    x = 2\n    ^\nIndentationError: expected an indented block\n',
            UNREADABLE,
            id="indentation",
        ),
    ],
)
def test_a_command_is_judged_by_what_it_has_printed(tmp_path, printed, why):
    (tmp_path / "stderr").write_text(printed)
    found = why_not_again([attempt(None, None, record(2, 1, crash=crash_in(tmp_path / "stderr")))])
    assert found is not None
    assert found.startswith(why)


FAILURES = st.sampled_from([OWN, OTHER, SILENT, KILLED])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9), FAILURES), min_size=1, max_size=12))
def test_a_job_that_comes_further_each_time_is_never_given_up(starts):
    attempts, furthest = [], 0
    for back, ahead, failure in starts:
        attempts.append(attempt(max(0, furthest - back), furthest + ahead, failure))
        furthest += ahead
        assert why_not_again(attempts) is None


@given(st.lists(FAILURES, min_size=3, max_size=12))
def test_a_job_that_comes_no_further_is_given_up_at_the_third_attempt(failures):
    assert why_not_again([attempt(0, 4, failure) for failure in failures]) is not None


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), FAILURES), min_size=1, max_size=8))
def test_the_first_failure_never_ends_a_job_that_may_go_on(starts):
    attempts = [attempt(first, first + more, failure) for first, more, failure in starts]
    assert why_not_again(attempts[:1]) is None


def test_the_steps_of_an_attempt_are_those_that_its_ranks_report():
    pulses = [None, Pulse(3, None, None), Pulse(9, 4, 7), Pulse(8, 5, 6)]
    assert Attempt.of(pulses, OWN) == attempt(4, 7)
    assert Attempt.of([None], OWN) == attempt(None, None)


def test_the_budget_is_counted_in_attempts_of_the_job():
    policy = RestartPolicy(2)
    assert [policy.left(number) for number in range(4)] == [2, 1, 0, 0]


def test_a_policy_keeps_its_restarts_and_why_it_refuses_another():
    policy = RestartPolicy(9)
    assert policy.allows([attempt(0, 5)])
    assert (policy.restarted, policy.refusal) == ([OWN], None)
    assert not policy.allows([attempt(0, 5), attempt(0, 5)])
    assert policy.restarted == [OWN]
    assert policy.refusal is not None
