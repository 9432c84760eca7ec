"""The page of a run, as text."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from launcher.errors import LaunchError
from launcher.run_report.page import report_page, write_page
from launcher.run_report.run_record import read_run, with_timelines
from tests.launcher.run_report.made_runs import DONE, LARGE, MEDIUM, SMALL, made_steps, write_run

NASTY = '</pre></script><img src=x onerror=alert(1)> \x1b[31m & "quotes"'
FAILED = DONE | {
    "outcome": "failed",
    "exit_code": 1,
    "headline": f"rank 3 (language.pp1) failed first: ValueError: {NASTY}",
    "message": f"rank 3 (language.pp1) failed first: ValueError: {NASTY}\n  in line 7",
    "attempts": 2,
    "restarts": [f"once: {NASTY}"],
    "hint": "use smaller batches",
    "first": {"rank": 3, "crash": {"traceback": f"Traceback\n{NASTY}"}, "tail": [NASTY]},
    "others": [{"who": "rank 0", "ending": NASTY}],
    "stragglers": [
        {
            "rank": 2,
            "label": "language.pp0",
            "node": NASTY,
            "ratio": 1.5,
            "since_step": 3,
            "until_step": None,
            "share": 0.125,
            "attempt": 1,
        },
        {"damaged": 1},
    ],
    "stragglers_left_out": 12,
}


class Outline(HTMLParser):
    """The elements, ids and texts of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, text):
        self.text += text


def page_of(folder, config=SMALL, **run):
    run_dir, plan = write_run(folder, config, **run)
    return report_page(with_timelines(read_run(run_dir, plan, {"node0": "host-7"}), run_dir))


def data_of(page, kind):
    return [json.loads(text) for text in re.findall(rf'<script type="application/json" class="{kind}">(.*?)</script>', page)]


def test_64_ranks_and_10_000_steps_are_less_than_3_mib(tmp_path):
    page = page_of(tmp_path, MEDIUM, steps=made_steps(10_000), micro_batches=64)
    assert len(page.encode()) < 3 * 2**20
    (timeline,) = data_of(page, "timeline-data")
    assert [row["rank"] for row in timeline["rows"]] == list(range(64))


def test_10_240_ranks_are_less_than_1_mib(tmp_path):
    page = page_of(tmp_path, LARGE, steps=made_steps(100))
    assert len(page.encode()) < 2**20
    (timeline,) = data_of(page, "timeline-data")
    assert len({row["rank"] for row in timeline["rows"]}) == 2 * 18


def test_nothing_of_a_user_becomes_an_element(tmp_path):
    with_nasty, plain = (
        Outline(page_of(tmp_path / name, report=report))
        for name, report in (("nasty", FAILED), ("plain", json.loads(json.dumps(FAILED).replace(json.dumps(NASTY)[1:-1], "x"))))
        if not (tmp_path / name).mkdir()
    )
    assert with_nasty.tags == plain.tags
    assert "img" not in with_nasty.tags
    assert "<img src=x onerror=alert(1)> \\x1b[31m" in with_nasty.text


def test_the_page_loads_nothing_and_allows_its_own_script_and_style_only(tmp_path):
    page = page_of(tmp_path)
    outline = Outline(page)
    links = [value for name, value in outline.attributes if name in ("href", "src", "action", "xlink:href")]
    assert links
    assert all(link.startswith("#") for link in links)
    assert not [name for name, _ in outline.attributes if name == "style" or name.startswith("on")]
    (policy,) = [value for _, value in outline.attributes if value and value.startswith("default-src 'none'")]
    for tag in ("style", "script"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_a_failed_run_has_its_message_hint_traceback_restarts_and_stragglers(tmp_path):
    page = page_of(tmp_path, report=FAILED)
    text = Outline(page).text
    for part in (
        "in line 7",
        "use smaller batches",
        "Traceback",
        "once: ",
        "1.5 times",
        "12.5%",
        "12 further stragglers",
        "host-7",
    ):
        assert part in text
    assert [title for title in ("Failure", "Restarts", "Stragglers") if f'-title">{title}</h2>' not in page] == []
    assert [len(data["rows"]) for data in data_of(page, "timeline-data")] == [4, 4]


def test_an_empty_run_has_a_reason_in_each_section_that_is_empty(tmp_path):
    page = page_of(tmp_path, report=None, recorded=())
    assert page.count('class="missing"') == 4
    text = Outline(page).text
    assert "There is no metrics.jsonl" in text
    assert "No rank has recorded a span" in text
    assert "no report" in text


@pytest.mark.parametrize(
    "report",
    [{}, {"outcome": 3, "first": 7, "others": [1], "stragglers": [5], "stragglers_left_out": "x", "headline": 1, "began": "x"}],
)
def test_a_report_of_another_form_is_shown_as_far_as_it_can_be(tmp_path, report):
    assert "<h1>" in page_of(tmp_path, report=report)


def test_the_timeline_is_of_the_last_complete_step_or_of_the_one_that_was_asked_for(tmp_path):
    run_dir, plan = write_run(tmp_path)
    record = read_run(run_dir, plan, {})
    assert [each.step for each in with_timelines(record, run_dir).timelines] == [4]
    assert [each.step for each in with_timelines(record, run_dir, 5).timelines] == [5]
    with pytest.raises(LaunchError, match="--step 99: no span of this step is recorded; there are steps 3 to 5"):
        with_timelines(record, run_dir, 99)


def test_a_failed_run_shows_the_step_in_which_it_failed_too(tmp_path):
    run_dir, plan = write_run(tmp_path, report=FAILED)
    assert [each.step for each in with_timelines(read_run(run_dir, plan, {}), run_dir).timelines] == [4, 5]


def test_a_page_that_cannot_be_written_is_an_error_with_the_way_out(tmp_path):
    run_dir, plan = write_run(tmp_path)
    with pytest.raises(LaunchError, match="--out FILE"):
        write_page(read_run(run_dir, plan, {}), tmp_path / "no" / "folder.html")
