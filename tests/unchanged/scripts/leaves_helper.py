"""Leaves a process behind, in a session of its own, and a line without an end."""

import os
import subprocess

helper = subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
print(helper.pid)
print("unfinished", end="")
os._exit(0)
