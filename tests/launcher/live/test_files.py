import logging

import pytest

from launcher.live.files import LiveFiles
from launcher.live.view import LiveView
from launcher.run_dir.layout import RunDirLayout
from launcher.steps.metrics import StepMetrics, read_metrics

VIEW = LiveView(run="one", attempt=0, time=1.0, began=0.0, interval_s=1.0, world_size=1, recording=0)


def step(number):
    return StepMetrics(step=number, attempt=0, time=1.0, seconds=0.5)


@pytest.fixture
def layout(tmp_path):
    return RunDirLayout(tmp_path)


def test_metrics_are_appended_and_the_view_is_replaced(layout):
    files = LiveFiles(layout)
    files.append([step(1), step(2)])
    files.append([])
    files.append([step(3)])
    files.write(VIEW)
    files.write(VIEW)
    assert read_metrics(layout.metrics_file.read_text().splitlines()) == [step(1), step(2), step(3)]
    assert LiveView.from_json(layout.live_file.read_text()) == VIEW


def test_what_cannot_be_written_is_logged_once(tmp_path, caplog):
    files = LiveFiles(RunDirLayout(tmp_path / "removed"))
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            files.append([step(number)])
            files.write(VIEW)
    assert [record.message.partition(";")[0] for record in caplog.records] == [
        f"{tmp_path}/removed/metrics.jsonl: No such file or directory"
    ]
    assert not (tmp_path / "removed").exists()


def test_lines_after_one_that_was_cut_are_whole(layout, monkeypatch):
    files = LiveFiles(layout)
    files.append([step(1)])
    with monkeypatch.context() as patch:
        patch.setattr(LiveFiles, "_log", lambda *_: None)
        layout.metrics_file.rename(layout.metrics_file.with_suffix(".away"))
        layout.metrics_file.mkdir()
        files.append([step(2)])
    layout.metrics_file.rmdir()
    layout.metrics_file.write_text(f"{step(1).to_json()}\n{step(2).to_json()[:30]}")
    files.append([step(3)])
    assert read_metrics(layout.metrics_file.read_text().splitlines()) == [step(1), step(3)]
