"""Runs the faults of examples/faults under torchrun and under mimo-launch, and writes both outputs to docs/side-by-side.md.

    python docs/side_by_side.py

The outputs are real; only paths are shortened, and the host is called `host`.
"""

import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "faults" / "train.py"
CONFIG = ROOT / "examples" / "faults" / "job.yaml"
DOCUMENT = ROOT / "docs" / "side-by-side.md"
MARK = "<!-- The rest is written by docs/side_by_side.py. -->"
FAULTS = {
    "exception": ("An exception on one rank", []),
    "crash": ("A crash in compiled code", []),
    "kill": ("A rank that is killed", []),
    "hang": ("A rank that hangs", []),
    "import": ("A package that is not installed, with restarts allowed", ["2"]),
}


def torchrun(fault: str, restarts: list[str]) -> list[str]:
    more = [f"--max-restarts={number}" for number in restarts]
    program = str(Path(sys.executable).with_name("torchrun"))
    return [program, "--standalone", "--nproc-per-node=4", *more, str(SCRIPT), fault]


def mimo_launch(fault: str, restarts: list[str]) -> list[str]:
    more = [f"runtime.max_restarts={number}" for number in restarts]
    return [str(Path(sys.executable).with_name("mimo-launch")), "run", str(CONFIG), *more, "--", fault]


def output_of(command: list[str], folder: Path) -> str:
    """The command, what it wrote, its exit code, and how long it took."""
    began = time.monotonic()
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    seconds = time.monotonic() - began
    lines = [
        f"$ {' '.join([Path(command[0]).name, *command[1:]])}",
        done.stdout.rstrip(),
        f"(exit code {done.returncode}, {seconds:.1f} s)",
    ]
    return shortened("\n".join(lines), folder)


def shortened(text: str, folder: Path) -> str:
    """Without the paths and the name of this machine."""
    for path, short in ((folder, "./"), (ROOT, "")):
        text = text.replace(f"{path}/", short)
    text = re.sub(r"[^\s\"]*/site-packages/", "site-packages/", text)
    text = re.sub(r"[^\s\"]*/lib/python3\.(\d+)/", r"python3.\1/", text)
    return re.sub(rf"\b{re.escape(socket.gethostname())}\b", "host", text)


def section(fault: str, title: str, restarts: list[str]) -> str:
    parts = [f"## {title}"]
    for launcher, command in (("mimo-launch", mimo_launch), ("torchrun", torchrun)):
        with tempfile.TemporaryDirectory() as name:
            output = output_of(command(fault, restarts), Path(name))
        lines = output.count("\n") + 1
        opened = " open" if launcher == "mimo-launch" else ""
        parts.append(
            f'<details markdown="1"{opened}><summary>{launcher}: {lines} lines</summary>\n\n```\n{output}\n```\n\n</details>'
        )
    return "\n\n".join(parts)


def main() -> None:
    kept = DOCUMENT.read_text(encoding="utf-8").partition(MARK)[0]
    sections = [section(fault, title, restarts) for fault, (title, restarts) in FAULTS.items()]
    DOCUMENT.write_text(f"{kept}{MARK}\n\n{chr(10).join(f'{text}{chr(10)}' for text in sections)}", encoding="utf-8")


if __name__ == "__main__":
    main()
