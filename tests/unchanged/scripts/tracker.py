"""What experiment trackers do: a service process, a thread that sends in the background, hooks for exceptions and for the end,
a system monitor in a forked child."""

import atexit
import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path

import torch
import torch.distributed as dist

SERVICE = """
import json, sys
from pathlib import Path
events = [json.loads(line) for line in sys.stdin]
Path(sys.argv[1]).write_text("".join(json.dumps(event) + chr(10) for event in events))
"""


class Run:
    """Sends what is logged to a service, until the process ends."""

    def __init__(self, name):
        self._service = subprocess.Popen(
            [sys.executable, "-c", SERVICE, f"{name}.events"], stdin=subprocess.PIPE, text=True, start_new_session=True
        )
        self._queue, self._owner, self._code = queue.Queue(), os.getpid(), 0
        self._thread = threading.Thread(target=self._send, name="sender", daemon=True)
        self._thread.start()
        self._hook, sys.excepthook = sys.excepthook, self._on_exception
        atexit.register(self._on_exit)

    def log(self, **values):
        self._queue.put(values)

    def _send(self):
        while (event := self._queue.get()) is not None:
            self._service.stdin.write(json.dumps(event) + "\n")

    def _on_exception(self, kind, error, frames):
        self._code = 1
        self.log(crashed=kind.__name__, message=str(error), line=frames.tb_frame.f_code.co_name)
        self._hook(kind, error, frames)

    def _on_exit(self):
        if os.getpid() != self._owner:
            return
        self.log(exit=self._code)
        self._queue.put(None)
        self._thread.join()
        self._service.stdin.close()
        print(f"tracker: the service ended with {self._service.wait()}, the run with {self._code}")


def sample_in_child(name):
    """Fork a child that takes one sample, and leaves as a script does."""
    child = os.fork()
    if child == 0:
        Path(f"{name}.sample").write_text(f"load {len(os.getloadavg())}\n")
        sys.exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main():
    rank = int(os.environ["RANK"])
    run = Run(f"tracker{rank}")
    print(f"rank {rank}: the child ended with {sample_in_child(f'tracker{rank}')}", flush=True)
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    for step in range(3):
        loss = torch.full((), float(rank + step))
        dist.all_reduce(loss)
        run.log(step=step, loss=loss.item())
    if sys.argv[1:] == ["fail"] and rank == 1:
        raise RuntimeError("the loss is not finite")
    if sys.argv[1:] == ["fail"]:
        threading.Event().wait()
    print(f"rank {rank}: the script ends", flush=True)


if __name__ == "__main__":
    main()
