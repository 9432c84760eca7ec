"""Plans of jobs whose ranks are debugged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.config.loader import load
from launcher.errors import LaunchError
from launcher.formatting import ranges
from launcher.plan.debugging import with_debuggers
from launcher.plan.launch_plan import LaunchPlan
from launcher.plan.planner import make_plan

CONFIG = """\
name: job
layout: colocated
modules: {{language: {{dp: {ranks}}}}}
entry: {{command: [sh]}}
env: {{TORCH_NCCL_ENABLE_MONITORING: "1", OWN: x}}
runtime: {{timeout_s: 60, max_restarts: 3}}
"""


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """A plan by its number of ranks."""
    file = tmp_path_factory.mktemp("config") / "job.yaml"

    def plan_of(ranks):
        file.write_text(CONFIG.format(ranks=ranks))
        return make_plan(load(file, [])[0], file, ())

    return {ranks: plan_of(ranks) for ranks in (1, 6)}


def test_without_options_only_the_single_rank_of_a_job_may_be_debugged(plans):
    for has_terminal in (True, False):
        assert with_debuggers(plans[6], None, None, has_terminal=has_terminal) == plans[6]
        alone = with_debuggers(plans[1], None, None, has_terminal=has_terminal)
        assert (alone.debug, alone.debug_port, alone.runtime) == ((0,), None, plans[1].runtime)


@given(chosen=st.sets(st.integers(0, 5), min_size=1))
def test_ranks_are_chosen_by_ranges(plans, chosen):
    assert with_debuggers(plans[6], ranges(chosen), None, has_terminal=True).debug == tuple(sorted(chosen))


@pytest.mark.parametrize(
    ("ranks", "chosen"),
    [("3", (3,)), ("0,4-5", (0, 4, 5)), ("4-5,0,4", (0, 4, 5)), (" 1 , 2", (1, 2))],
)
def test_ranks_may_be_written_in_any_order(plans, ranks, chosen):
    assert with_debuggers(plans[6], ranks, None, has_terminal=True).debug == chosen


def test_a_port_without_ranks_is_for_rank_0_and_needs_no_terminal(plans):
    plan = with_debuggers(plans[6], None, 5678, has_terminal=False)
    assert (plan.debug, plan.debug_port) == ((0,), 5678)


def test_nothing_ends_ranks_that_wait_for_a_user(plans):
    plan = with_debuggers(plans[6], "1", None, has_terminal=True)
    assert plan.runtime.timeout_s > 24 * 3600
    assert plan.runtime.stall_timeout_s == 0
    assert plan.env == {"TORCH_NCCL_ENABLE_MONITORING": "1", "OWN": "x"}  # the config has precedence


def test_a_plan_with_debuggers_is_the_same_after_its_file(plans):
    plan = with_debuggers(plans[6], "1,3", 5678, has_terminal=False)
    assert LaunchPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("ranks", ["", "x", "1-", "-1", "3-1", "1.5", "0,,1", "all", "1;2", "٣", "0x1", "1e0"])
def test_what_is_not_a_list_of_ranks_is_refused(plans, ranks):
    with pytest.raises(LaunchError, match=r"^--debug .*: not a list of ranks; write 3, or 0,4-5$"):
        with_debuggers(plans[6], ranks, None, has_terminal=True)


@pytest.mark.parametrize("ranks", ["6", "0,6", "4-7"])
def test_a_rank_that_the_job_does_not_have_is_refused(plans, ranks):
    with pytest.raises(LaunchError, match=r"^--debug \d+: no such rank; there are ranks 0-5$"):
        with_debuggers(plans[6], ranks, None, has_terminal=True)


@given(port=st.integers(), ranks=st.integers(1, 6))
def test_a_port_has_room_for_the_ports_of_all_ranks(plans, port, ranks):
    chosen = f"0-{ranks - 1}"
    if port >= 1 and port + ranks - 1 <= 65535:
        assert with_debuggers(plans[6], chosen, port, has_terminal=False).debug_port == port
    else:
        with pytest.raises(LaunchError, match=rf"^--debug-port {port}: not a port from 1 to {65536 - ranks}$"):
            with_debuggers(plans[6], chosen, port, has_terminal=False)


def test_pdb_without_a_terminal_is_refused_with_the_alternative(plans):
    with pytest.raises(LaunchError, match=r"^--debug: standard input is not a terminal; .*--debug-port"):
        with_debuggers(plans[6], "1", None, has_terminal=False)
