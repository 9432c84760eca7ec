"""Imported by the fork server, once for all ranks. It changes the importing process: import it nowhere else.

It does not initialize CUDA, which a forked child could not use afterwards.
"""

import gc
import os
import signal

gc.disable()  # importing torch allocates many objects that stay; collecting them takes a fifth of the time

import torch.distributed.elastic.multiprocessing  # noqa: E402

import launcher.worker.entrypoint  # noqa: E402
import mimo_role.lifecycle  # noqa: E402

__all__ = ["launcher", "mimo_role", "torch"]

# Ctrl-C in a terminal signals its foreground process group; mimo-launch alone ends the ranks.
os.setpgid(0, 0)

# A scheduler signals every process of a job to warn or end it; this one must stay to report the ranks' exit codes.
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)

# The collector does not write to frozen objects, so their memory stays shared with the children.
gc.freeze()
gc.enable()
