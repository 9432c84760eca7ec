from dataclasses import replace

import pytest

from launcher.live.files import LiveFiles
from launcher.live.tensorboard import TensorBoardEvents
from launcher.run_dir.layout import RunDirLayout
from launcher.steps.metrics import ModuleStep, StepMetrics

pytest.importorskip("torch")
event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def step(number):
    return StepMetrics(step=number, attempt=0, time=1.0, seconds=0.5)


def events(folder):
    """By tag, the values by step that TensorBoard shows."""
    found = event_accumulator.EventAccumulator(str(folder)).Reload()
    return {tag: {each.step: each.value for each in found.Scalars(tag)} for tag in found.Tags()["scalars"]}


@pytest.fixture
def layout(tmp_path):
    return RunDirLayout(tmp_path)


def test_tensorboard_shows_each_step_as_the_last_attempt_did_it(layout):
    files = LiveFiles(layout, tensorboard=True)
    module = ModuleStep(compute_s=0.25, bridge_wait_s=0.125, tokens=8.0)
    for attempt, numbers in ((0, (1, 2, 3)), (1, (3, 4))):
        for number in numbers:
            scalars = {"loss": number + attempt / 2}
            files.append([replace(step(number), attempt=attempt, scalars=scalars, modules={"language": module})])
        files.end_attempt()
    found = events(layout.tensorboard_dir)
    assert found["loss"] == {1: 1.0, 2: 2.0, 3: 3.5, 4: 4.5}
    assert found["language/tokens_per_s"] == dict.fromkeys((1, 2, 3, 4), 16.0)
    assert {tag: values[4] for tag, values in found.items()} == {
        "loss": 4.5,
        "step/seconds": 0.5,
        "language/compute_s": 0.25,
        "language/collectives_s": 0.0,
        "language/bridge_wait_s": 0.125,
        "language/bubble_s": 0.0,
        "language/tokens_per_s": 16.0,
    }


def test_events_that_cannot_be_written_are_logged_once_and_the_metrics_are_written(layout, caplog):
    layout.tensorboard_dir.parent.write_text("no folder")
    files = LiveFiles(layout, tensorboard=True)
    for number in (1, 2):
        files.append([step(number)])
    files.end_attempt()
    assert len(layout.metrics_file.read_text().splitlines()) == 2
    (record,) = caplog.records
    assert str(layout.tensorboard_dir) in record.message
    assert "no events are written any more" in record.message


class Signalled(Exception):  # noqa: N818 (as torchelastic's SignalException)
    """What a signal's handler raises in the main thread, wherever that is."""


def test_a_signal_passes_while_events_are_written(layout, monkeypatch):
    def be_signalled(*_):
        raise Signalled

    monkeypatch.setattr(TensorBoardEvents, "append", be_signalled)
    with pytest.raises(Signalled):
        LiveFiles(layout, tensorboard=True).append([step(1)])
