"""Prints the facts about its process that differ between launchers, or are known to matter to scripts, as one line of JSON."""

import sys

IMPORTED_BEFORE = frozenset(sys.modules)

import gc
import json
import os
import signal
import threading
from pathlib import Path


def command_line_of(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")


def loaded(*packages):
    return [name for name in packages if name in IMPORTED_BEFORE]


def asks_for_huge_pages():
    """Whether memory of malloc has been marked so: `hg` in /proc/PID/smaps."""
    _, _, heap = Path("/proc/self/smaps").read_text().partition("[heap]\n")
    return " hg" in heap.partition("VmFlags:")[2].partition("\n")[0]


facts = {
    "variables": dict(os.environ),
    "argv": sys.argv,
    "original argv": sys.orig_argv[1:],
    "main": [__name__, __file__, __package__, repr(__spec__), sys.modules["__main__"].__dict__ is globals()],
    "path": sys.path,
    "folder": os.getcwd(),
    "first line of stdin": sys.stdin.readline() if os.environ["RANK"] == "0" else None,
    "leads its process group and session": [os.getpgrp() == os.getpid(), os.getsid(0) == os.getpid()],
    "command line": command_line_of("self")[1:-1],
    "parent": command_line_of(os.getppid())[1:-1],
    "imported": loaded("torch", "numpy", "mimo_role", "launcher", "torch.distributed"),
    "import hooks": [type(hook).__name__ for hook in sys.meta_path],
    "threads": [thread.name for thread in threading.enumerate()],
    "ignored signals": sorted(number.name for number in signal.Signals if signal.getsignal(number) == signal.SIG_IGN),
    "hash": hash("a text"),
    "frozen objects": gc.get_freeze_count() > 10_000,  # an interpreter freezes some hundreds
    "asks for huge pages": asks_for_huge_pages(),
    "write through": [sys.stdout.write_through, sys.stderr.write_through],
}

import torch

facts |= {"threads of torch": torch.get_num_threads(), "drawn": torch.rand(()).item()}
print(json.dumps(facts))
