"""What is on the screen, in terminals of all sizes."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.segment import Segment

from launcher.top.moment import Moment, State
from launcher.top.page import page_of
from launcher.top.screen import View
from tests.launcher.live.views import live_view, module, straggler


def page(view, width=80, state=State.RUNNING, note="running"):
    console = Console(file=io.StringIO(), width=width, legacy_windows=False)
    return page_of(Moment(state=state, note=note, view=view), console)


def text_of(line):
    return "".join(segment.text for segment in line).rstrip()


def shown(view, width=80, **more):
    found = page(view, width, **more)
    return [*map(text_of, (*found.head, *found.body))]


def modules(count):
    return {f"encoder{index}": module(f"encoder{index}") for index in range(count - 1)} | {"language": module()}


def test_at_80_columns_everything_is_shown_in_tables_below_each_other():
    assert shown(live_view(attempt=1, stragglers=(straggler(),))) == [
        "digits | attempt 1 | 6 ranks | 12 min | running",
        "step 412 of 2,000 (21 %) | 322 ms per step | ETA 8 min",
        "loss 2.314   lr 0.0003",
        "straggler: rank 3 (language.dp3, alpha) computes 1.40x its peers' median since",
        "step 312; 10 % of each step of the whole job",
        "",
        "module    ranks  steps/s  samples/s  tokens/s  peak memory",
        "vision        4      3.1       99.2         -     23.1 GiB",
        "language      2      3.1       99.2     12.4k     23.1 GiB",
        "",
        "module    time of a step   █ compute  ▓ collectives  ▒ bridge  ░ bubble  · other",
        "vision    ███████████▓▒▒░       71 %            5 %      12 %       8 %      4 %",
        "language  ███████████▓▒▒░       71 %            5 %      12 %       8 %      4 %",
        "",
        "module    slowest rank",
        "vision    3 (vision.dp1.tp0) on node0 (alpha), computes 212 ms",
        "language  3 (language.dp1.tp0) on node0 (alpha), computes 212 ms",
    ]


def test_in_a_wide_terminal_a_module_has_one_line():
    lines = shown(live_view(), 250)
    assert len([line for line in lines if line.startswith("vision")]) == 1
    assert all(text in lines[-1] for text in ("language", "12.4k", "23.1 GiB", "█", "71 %", "computes 212 ms"))


@settings(deadline=None)
@given(st.integers(10, 250), st.integers(1, 20), st.integers(0, 6))
def test_no_line_is_wider_than_the_terminal(width, count, stragglers):
    view = live_view(modules=modules(count), stragglers=tuple(map(straggler, range(stragglers))))
    found = page(view, width)
    assert max(Segment.get_line_length(line) for line in (*found.head, *found.body)) <= width


def test_columns_of_which_nothing_is_known_are_left_out():
    bare = module(samples_per_s=None, tokens_per_s=None, compute=None, peak_gib=None, slowest=None)
    assert shown(live_view(modules={"language": bare}))[-2:] == ["module    ranks  steps/s", "language      2      3.1"]


def test_shares_that_no_module_has_are_left_out():
    lines = shown(live_view(modules={"language": module(collectives=0.0, bubble=0.0)}))
    title = next(line for line in lines if "compute" in line)
    assert title.split("time of a step")[1].split() == ["█", "compute", "▒", "bridge", "·", "other"]


def test_ranks_without_a_record_are_counted():
    assert shown(live_view(recording=4))[0] == "digits | 6 ranks | 2 without a record | 12 min | running"


def test_of_many_stragglers_three_are_described():
    lines = shown(live_view(stragglers=tuple(map(straggler, range(5)))), 200)
    assert [line[:17] for line in lines[3:6]] == [f"straggler: rank {rank}" for rank in range(3)]
    assert lines[6] == "and 2 more stragglers: ranks 3, 4"


def test_a_run_that_is_over_has_no_time_left():
    lines = shown(live_view(), state=State.OVER, note="over, failed: rank 1 (vision) ended with exit code 3")
    assert lines[:2] == [
        "digits | 6 ranks | 12 min | over, failed: rank 1 (vision) ended with exit code 3",
        "step 412 of 2,000 (21 %) | 322 ms per step",
    ]


def test_without_a_view_there_is_the_state_alone():
    assert shown(None, state=State.WAITING, note="starting") == ["starting"]


def test_names_cannot_act_on_the_terminal():
    view = live_view(run="a\x1b[2J", scalars={"b\x1b[1A": 1.0}, modules={"language": module("c\x1b[1A")})
    assert "\x1b" not in "".join(shown(view))


@pytest.mark.parametrize("height", [1, 2, 5, 12, 24, 70])
def test_every_line_can_be_scrolled_to(height):
    found, view = page(live_view(modules=modules(20))), View()
    seen = set()
    for _ in range(len(found.head) + len(found.body)):
        lines = view.lines(found, height)
        assert len(lines) == height
        seen |= {text_of(line) for line in lines}
        view.turn("down", found, height)
    if height > 1:
        assert {text_of(line) for line in (*found.head, *found.body)} <= seen


def test_pages_are_turned_to_both_ends():
    found, view = page(live_view(modules=modules(20))), View()
    top = view.lines(found, 24)
    for key, is_top in (("page down", False), ("page up", True), ("end", False), ("home", True), ("up", True)):
        view.turn(key, found, 24)
        assert (view.lines(found, 24) == top) is is_top
    view.turn("end", found, 24)
    assert text_of(view.lines(found, 24)[-2]) == text_of(found.body[-1])


def test_a_page_that_fits_does_not_scroll():
    found, view = page(live_view()), View()
    before = view.lines(found, 24)
    view.turn("down", found, 24)
    assert view.lines(found, 24) == before
    assert text_of(before[-1]) == "q: quit"
