"""Megatron-Core's timers as spans of a recording: forwards and backwards of its schedules, and reductions of gradients.

Source of the interface: megatron/core/timers.py of Megatron-Core 0.19 (2026), which `ModelParallelConfig.timers` may have.
"""

from typing import Any

from mimo_role.megatron.micro_batch_count import MicroBatchCount
from mimo_role.monitoring.recorder import Recorder
from mimo_role.monitoring.records import Kind

_FORWARD, _BACKWARD = "forward-compute", "backward-compute"


class SpanTimers:
    """Called as `config.timers(name, log_level=2).start()` and `.stop()`. Nothing is synchronized, whatever is asked for."""

    def __init__(self, recorder: Recorder, stage: str, count: MicroBatchCount) -> None:
        """
        Args:
            recorder: this rank's.
            stage: what runs forwards and backwards, such as `language.1`.
            count: of the schedule.
        """
        self._recorder = recorder
        self._stage = stage
        self._count = count
        self._timers: dict[str, _SpanTimer] = {}

    def __call__(self, name: str, *_: object, **__: object) -> "_SpanTimer":
        """The timer with this name; a level is not used."""
        if name not in self._timers:
            self._timers[name] = _SpanTimer(self, name)
        return self._timers[name]

    def __deepcopy__(self, _: object) -> "SpanTimers":
        """Itself: configs are copied, the recording is one."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """`None`: configs are written into checkpoints."""
        return type(None), ()

    def span(self, name: str) -> Any:
        """The span for what a timer measures."""
        if name == _FORWARD:
            return self._recorder.span(Kind.FORWARD, self._stage, self._count.forward, 1)
        if name == _BACKWARD:
            return self._recorder.span(Kind.BACKWARD, self._stage, self._count.backward, 1)
        return self._recorder.span(Kind.SPAN, name)


class _SpanTimer:
    def __init__(self, timers: SpanTimers, name: str) -> None:
        self._timers = timers
        self._name = name
        self._span: Any = None

    def start(self, *_: object, **__: object) -> None:
        """Begin. One that was not stopped, since an exception has ended what it measured, ends first."""
        self.stop()
        self._span = self._timers.span(self._name)
        self._span.__enter__()

    def stop(self, *_: object, **__: object) -> None:
        """End."""
        if self._span is not None:
            span, self._span = self._span, None
            span.__exit__(None, None, None)


def give_timers(config: Any, recorder: Recorder, stage: str, count: MicroBatchCount) -> None:
    """Set `config.timers` if it has none and something is recorded; the arguments are those of `SpanTimers`."""
    if recorder.is_on and getattr(config, "timers", None) is None:
        config.timers = SpanTimers(recorder, stage, count)
