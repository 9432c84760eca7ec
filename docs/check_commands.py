"""Checks that the documents' commands and configs work as they stand.

    python docs/check_commands.py README.md docs/*.md

In ```sh blocks, `mimo-launch plan` and `--help` are run, `mimo-launch run` is planned with the same arguments, `submit` is a
dry run, and `make` targets and scripts for sbatch must exist; other commands must be on a list of ones that need no check.
Commands about a job are run by tests/cluster, which has one. ```yaml blocks that begin with `name:` are
loaded. Links to files must lead somewhere.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEFT_ALONE = {"git", "cd", "source", ".", "cat", "tail", "ls", "pip"}
MIMO_LAUNCH = [sys.executable, "-m", "launcher"]


def main() -> int:
    problems = [problem for name in sys.argv[1:] for problem in check(Path(name))]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def check(document: Path):
    text = document.read_text(encoding="utf-8")
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.sub(r"^\w+=\$\((.*)\)$", r"\1", line)
            if (words := shlex.split(command, comments=True)) and (problem := check_command(words)):
                yield f"{document}: {line.strip()}: {problem}"
    for block in re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if block.startswith("name:") and (problem := check_config(block)):
            yield f"{document}: {block.splitlines()[0]} ...: {problem}"
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        if not (document.parent / target).exists():
            yield f"{document}: {target}: leads nowhere"


def check_command(words: list[str]) -> str | None:
    while re.fullmatch(r"\w+=\S*", words[0]):
        words = words[1:]
    program = Path(words[0]).name
    if program == "mimo-launch":
        return failure_of(planned(words[1:]))
    if program == "make":
        return failure_of(["make", "-n", *words[1:]])
    if program == "sbatch":
        return None if (ROOT / words[-1]).is_file() else "no such file"
    if program == "python" and words[1].endswith(".py"):
        return None if (ROOT / words[1]).is_file() else "no such file"
    return None if program in LEFT_ALONE else "not a command that this check knows"


def planned(arguments: list[str]) -> list[str]:
    command, *rest = arguments
    if command == "run":
        # Where a node stands is nothing to plan.
        options = [index for index, word in enumerate(rest) if word in ("--node-rank", "--rdzv-endpoint")]
        rest = [word for index, word in enumerate(rest) if index not in options and index - 1 not in options]
        command = "plan"
    elif command == "submit" and "--dry-run" not in rest:
        rest = [*rest, "--dry-run"]
    elif command in ("status", "logs", "cancel"):
        rest = [*rest, "--help"]
    return [*MIMO_LAUNCH, command, *rest]


def check_config(text: str) -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "job.yaml")
        path.write_text(text)
        Path(folder, "train.py").touch()
        return failure_of([*MIMO_LAUNCH, "plan", str(path)])


def failure_of(command: list[str]) -> str | None:
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)
    return None if done.returncode == 0 else f"exit code {done.returncode}: {done.stderr.strip()}"


if __name__ == "__main__":
    sys.exit(main())
