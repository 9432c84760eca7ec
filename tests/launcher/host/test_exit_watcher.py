"""The order in which processes exit."""

import os
import subprocess
import sys

from launcher.host.exit_watcher import ExitWatcher


def test_exits_are_reported_in_their_order():
    children = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(3)]
    order = ExitWatcher({key: child.pid for key, child in zip("abc", children, strict=True)})
    for already, child in enumerate((children[1], children[2], children[0])):
        child.communicate(b"\n", timeout=20)
        while len(order.so_far()) <= already:
            os.sched_yield()
    assert order.ended() == ["b", "c", "a"]


def test_a_process_that_has_exited_already_counts_as_the_first():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    alive = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    order = ExitWatcher({"alive": alive.pid, "gone": gone.pid})
    alive.communicate(b"\n")
    assert order.ended() == ["gone", "alive"]
