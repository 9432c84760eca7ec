"""Has a breakpoint on rank 0; rank 1 waits, as in a collective."""

import os
import threading

if os.environ["RANK"] == "1":
    threading.Event().wait()
breakpoint()
