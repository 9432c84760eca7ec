"""The main thread's part of a dump of stacks."""

import pytest

from launcher.hangs.probe import _main_thread_of

OTHER_THREAD = """\
Thread 0x00007f865d2146c0 (most recent call first):
  File "/usr/lib/python3.11/pathlib.py", line 1044 in open
  File "/usr/lib/python3.11/threading.py", line 1045 in _bootstrap_inner
"""
MAIN = """\

Current thread 0x00007f867d063b80 (most recent call first):
  File "/home/me/train.py", line 10 in step
"""


@pytest.mark.parametrize(
    ("stacks", "frames"),
    [
        pytest.param(OTHER_THREAD + MAIN, 1, id="after the other threads"),
        pytest.param(MAIN, 1, id="alone"),
        pytest.param(OTHER_THREAD, 0, id="not written yet"),
        pytest.param("", 0, id="nothing written yet"),
    ],
)
def test_the_main_threads_stack_is_the_last_one(stacks, frames):
    assert _main_thread_of(stacks).count("  File ") == frames
