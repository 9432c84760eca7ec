import json
import subprocess

import pytest

CONFIG = """\
name: small
layout: non_colocated
modules:
  vision: {dp: 2}
  language: {pp: 2, tp: 2}
entry: {script: script.py}
"""


@pytest.fixture
def rehearse(job):
    """Rehearse a script; returns the process that has ended, with what it has written as `found`."""
    job.config = CONFIG

    def run(script, *words, timeout_s=150):
        job.write(script)
        done = subprocess.run(
            [*job.program, "rehearse", job.name, "--jobs", "2", *words],
            cwd=job.folder,
            env=job.whole_environ(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        path = job.folder / "runs" / "small" / "rehearsal" / "rehearsal.json"
        done.found = json.loads(path.read_text()) if path.is_file() else None
        return done

    return run
