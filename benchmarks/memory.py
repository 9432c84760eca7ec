"""The memory that `rehearse --memory` predicts, beside that of processes with real tensors.

The peer of a prediction is a rehearsal of the same kind without `--memory`, whose tensors are real: the growth of its largest
resident set (`ru_maxrss`) over that of the same script with sizes close to zero. Both in MiB; the peak of tensors is predicted
for both sizes too. Blocks of memory are returned to the system when they are freed (MALLOC_MMAP_THRESHOLD_), as a resident set
otherwise keeps what is free.

With `--large`: seconds of a rehearsal of all kinds of a transformer of 70 billion parameters, tp 8, pp 8 and FSDP2 over 16
lanes, CPU seconds of all its processes, and the most memory of as many processes as run at the same time. No peer.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from report import Row, parser, show

ROOT = Path(__file__).parents[1]
TRANSFORMER = ROOT / "tests" / "launcher" / "rehearse" / "large_transformer.py"
REPLICAS = ROOT / "benchmarks" / "memory_scripts" / "replicas.py"
MIB = 1 << 20
REHEARSE = sys.executable, "-m", "launcher", "rehearse"
STEPS = "--steps", "3"
"""In two steps, DDP's second buckets are not all part of the resident set yet: memory is, once it has been written."""

SMALL = (
    "--layers 4 --width 512 --inner-width 1536 --heads 8 --key-heads 4 --words 24000 --length 512 --micro-batches 3",
    "--layers 4 --width 64 --inner-width 128 --heads 8 --key-heads 4 --words 64 --length 16 --micro-batches 3",
)
TINY_REPLICAS = "--width 8 --layers 4 --batch-size 8"
CASES = (
    ("classifier, ddp", REPLICAS, "{dp: 3}", "", TINY_REPLICAS),
    ("classifier, fsdp2", REPLICAS, "{dp: 3}", "--divide", f"--divide {TINY_REPLICAS}"),
    ("transformer, fsdp2", TRANSFORMER, "{dp: 2, pp: 2}", *SMALL),
    ("transformer, tp and fsdp2", TRANSFORMER, "{dp: 2, tp: 2, pp: 2}", *SMALL),
)
"""Name, script, layout of the module `language`, and arguments of the script: for the model, and for one close to zero."""


def rehearsed(script: Path, layout: str, arguments: Sequence[str], *options: str) -> list[dict[str, Any]]:
    """The kinds of one rehearsal, as in `rehearsal.json`."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "job.yaml")
        config.write_text(
            f"name: memory\nlayout: colocated\nmodules: {{language: {layout}}}\nentry: {{script: {script}}}\n", encoding="utf-8"
        )
        subprocess.run(
            [*REHEARSE, str(config), f"run_dir={folder}/run", *options, "--", *arguments],
            check=True,
            cwd=ROOT,
            capture_output=True,
            env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"},
        )
        found: dict[str, Any] = json.loads(Path(folder, "run", "rehearsal", "rehearsal.json").read_text(encoding="utf-8"))
    return list(found["kinds"])


def predictions() -> Iterator[Row]:
    """For each kind of each case, the growth of the predicted and of the measured peak."""
    for name, script, layout, *both in CASES:
        sizes = [arguments.split() for arguments in both]
        predicted = [rehearsed(script, layout, arguments, *STEPS, "--memory") for arguments in sizes]
        measured = [rehearsed(script, layout, arguments, *STEPS) for arguments in sizes]
        for of_kind in zip(*predicted, *measured, strict=True):
            large, tiny = (kind["memory"]["peak_bytes"] for kind in of_kind[:2])
            real, real_tiny = (kind["peak_bytes"] for kind in of_kind[2:])
            ours, peer = (large - tiny) / MIB, (real - real_tiny) / MIB
            yield Row(f"{name}: {of_kind[0]['kind']}", ours, peer, ours / peer, 1)


def large(jobs: int) -> Iterator[Row]:
    """A rehearsal of all kinds of the large transformer."""
    began = time.monotonic()
    kinds = rehearsed(TRANSFORMER, "{dp: 16, tp: 8, pp: 8}", (), "--memory", "--jobs", str(jobs))
    none, count = float("nan"), len(kinds)
    yield Row("seconds", time.monotonic() - began, none, none, count)
    yield Row("CPU seconds of processes", sum(kind["cpu_seconds"] for kind in kinds), none, none, count)
    at_once = sorted(kind["peak_bytes"] for kind in kinds)[-jobs:]
    yield Row("MiB of this machine", sum(at_once) / MIB, none, none, count)
    yield Row("GiB of a GPU, at most", max(kind["memory"]["peak_bytes"] for kind in kinds) / 1024**3, none, none, count)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--large", action="store_true", help="instead, a transformer of 70 billion parameters")
    options.add_argument("--jobs", type=int, default=2, help="with --large: processes at the same time (default: 2)")
    arguments = options.parse_args()
    show("memory", list(large(arguments.jobs) if arguments.large else predictions()), arguments.json)


if __name__ == "__main__":
    main()
