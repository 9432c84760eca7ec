"""A rehearsal of examples/digits_vlm at 10,240 ranks in two pools, on this machine.

The peer is a real run of the smallest world with both modules, one rank each, of the same script and number of steps. Cases:

- `whole`: seconds of the command, for all kinds; the peer's for its two ranks;
- `one kind`: seconds from the start of a kind's process to its end, the median of all kinds; the peer's: half of its run;
- `CPU of one kind`: CPU seconds of a kind's process. No peer;
- `beside the script`: seconds of a kind's process before and after the script. No peer.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from report import Row, parser, show

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "examples" / "digits_vlm" / "pipeline.yaml")
LARGE = [
    "modules.vision.dp=1024",
    "modules.language.dp=1152",
    "modules.language.tp=4",
    "pools={encoders: {nodes: 128, procs_per_node: 8}, text: {nodes: 1152, procs_per_node: 8}}",
    "modules.vision.pool=encoders",
    "modules.language.pool=text",
]
SMALL = ["modules.vision.dp=1", "modules.language.pp=1"]
PRELOAD = "runtime.preload=[sklearn.datasets]"


def seconds_of(command: str, *words: str) -> float:
    """Run one command of mimo-launch to its end, and return how long it took."""
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "launcher", command, CONFIG, PRELOAD, *words], check=True, cwd=ROOT, capture_output=True
    )
    return time.monotonic() - began


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--jobs", type=int, default=2, help="processes at the same time (default: 2)")
    options.add_argument("--steps", type=int, default=2, help="steps of each (default: 2)")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        jobs = ["--jobs", str(arguments.jobs), "--steps", str(arguments.steps)]
        script = ["--", "--batch-size", "1280", "--micro-batches", "1"]
        whole = seconds_of("rehearse", *LARGE, f"run_dir={folder}", *jobs, *script)
        kinds = json.loads(Path(folder, "rehearsal", "rehearsal.json").read_text(encoding="utf-8"))["kinds"]
    with tempfile.TemporaryDirectory() as folder:
        real = seconds_of("run", *SMALL, f"run_dir={folder}", *script, "--steps", str(arguments.steps))
    one, cpu, beside = (median(kind[name] for kind in kinds) for name in ("seconds", "cpu_seconds", "overhead_seconds"))
    none = float("nan")
    rows = [
        Row(f"whole, {len(kinds)} kinds", whole, real, whole / real, 1),
        Row("one kind", one, real / 2, one / (real / 2), len(kinds)),
        Row("CPU of one kind", cpu, none, none, len(kinds)),
        Row("beside the script", beside, none, none, len(kinds)),
    ]
    show("rehearse", rows, arguments.json)
    peak = max(kind["peak_bytes"] for kind in kinds)
    if not arguments.json:
        print(f"largest peak of a process: {peak / (1 << 20):.0f} MiB")


if __name__ == "__main__":
    main()
