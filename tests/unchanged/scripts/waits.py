"""Trains until it is interrupted or ended, and saves then; with the argument `stubborn`, it goes on.

It reports that it is ready by a file with its process id.
"""

import os
import signal
import sys
import threading
from pathlib import Path

rank = os.environ["RANK"]


def save(reason):
    with open(f"saved{rank}", "a") as file:
        print(reason, file=file)


def end(number, _):
    save(signal.Signals(number).name)
    if sys.argv[1:] != ["stubborn"]:
        sys.exit(0)


signal.signal(signal.SIGTERM, end)
print(f"terminal: {sys.stdin.isatty()}, {sys.stdout.isatty()}", flush=True)
Path(f"ready{rank}.tmp").write_text(str(os.getpid()))
Path(f"ready{rank}.tmp").rename(f"ready{rank}")
while True:
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        save("KeyboardInterrupt")
        if sys.argv[1:] != ["stubborn"]:
            break
