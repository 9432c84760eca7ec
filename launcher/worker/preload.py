"""What the fork server imports, once for all ranks. Importing it prepares the process that does: import it nowhere else.

It never touches CUDA: a forked child could not use it afterwards.
"""

import gc
import os
import signal

gc.disable()  # importing torch makes much that is kept, and collecting it is a fifth of the time

import torch.distributed.elastic.multiprocessing  # noqa: E402

import launcher.worker.entrypoint  # noqa: E402
import mimo_role.context  # noqa: E402

__all__ = ["launcher", "mimo_role", "torch"]

# A Ctrl-C in the terminal reaches its foreground process group; ranks are told to stop by mimo-launch instead.
os.setpgid(0, 0)

# A scheduler that warns or ends a job signals every process of it; the exit codes of the ranks go through this one.
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)

# Memory that is never collected is never written to, and stays shared with the children.
gc.freeze()
gc.enable()
