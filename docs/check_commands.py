"""Checks the documents against the code: commands, configs, links, file names, and the list of layers.

    python docs/check_commands.py

In ```sh blocks, `mimo-launch init`, `plan` and `--help` are run, `run` and `rehearse` are planned with the same
arguments, `submit` is a dry run, and `make` targets and scripts for sbatch must exist; other commands must be on a list of
ones that need no check. Commands about a job are run by tests/cluster, which has one. ```yaml blocks that begin with
`name:` are loaded. Links, and Python files and documents named in `code`, must exist. docs/structure.md must list the
layers that tests/test_architecture.py checks, and docs/reference/config.md every key of the schema.
"""

import ast
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from launcher.config import schema

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("examples/*/README.md")),
]
GENERATED = [ROOT / "docs" / "reference" / "cli.md"]
UNCHECKED_PROGRAMS = {"git", "cd", "source", ".", "cat", "tail", "ls", "pip"}
MIMO_LAUNCH = [sys.executable, "-m", "launcher"]
REPOSITORY_FILE = re.compile(r"`(\w+(?:/\w+)*/[\w.-]+\.(?:py|md))`")
BASES = (ROOT, ROOT / "launcher", ROOT / "mimo_role")


def main() -> int:
    problems = [f"{path.relative_to(ROOT)}: {problem}" for path in DOCUMENTS for problem in check(path)]
    problems += [*check_layers(), *check_keys()]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def check(document: Path) -> Iterator[str]:
    text = document.read_text(encoding="utf-8")
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield from check_block(block)
    for block in re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if block.startswith("name:") and (problem := check_config(block)):
            yield f"{block.splitlines()[0]} ...: {problem}"
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        path = Path(os.path.normpath(document.parent / target))
        if not path.exists() and path not in GENERATED:
            yield f"{target}: the link leads nowhere"
    for name in REPOSITORY_FILE.findall(text):
        if not any((base / name).is_file() for base in BASES):
            yield f"{name}: no such file"


def check_block(block: str) -> Iterator[str]:
    """Check the commands of a block one after the other, those after `init` and `cd` in the folder that it has written."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = ROOT
        for line in block.replace("\\\n", " ").splitlines():
            command = re.sub(r"^\w+=\$\((.*)\)$", r"\1", line)
            words = shlex.split(command, comments=True)
            if not words:
                continue
            if words[:2] == ["mimo-launch", "init"]:
                problem = failure_of([*MIMO_LAUNCH, *words[1:]], Path(scratch))
            elif words[0] == "cd" and Path(scratch, words[1]).is_dir():
                folder, problem = Path(scratch, words[1]), None
            else:
                problem = check_command(words, folder)
            if problem is not None:
                yield f"{line.strip()}: {problem}"


def check_command(words: list[str], folder: Path) -> str | None:
    while re.fullmatch(r"\w+=\S*", words[0]):
        words = words[1:]
    program = Path(words[0]).name
    if program == "mimo-launch":
        return failure_of(planned(words[1:]), folder)
    if program == "make":
        return failure_of(["make", "-n", *words[1:]], ROOT)
    if program == "sbatch":
        return None if (ROOT / words[-1]).is_file() else "no such file"
    if program == "python" and words[1].endswith(".py"):
        return None if (ROOT / words[1]).is_file() else "no such file"
    return None if program in UNCHECKED_PROGRAMS else "not a command that this check knows"


def planned(arguments: list[str]) -> list[str]:
    command, *rest = arguments
    if command == "run":
        # A plan does not depend on which node this is.
        options = [index for index, word in enumerate(rest) if word in ("--node-rank", "--rdzv-endpoint")]
        rest = [word for index, word in enumerate(rest) if index not in options and index - 1 not in options]
        command = "plan"
    elif command == "rehearse":
        options = [index for index, word in enumerate(rest) if word in ("--jobs", "--steps", "--timeout-s")]
        rest = [word for index, word in enumerate(rest) if index not in options and index - 1 not in options]
        rest, command = [word for word in rest if word not in ("--shrink", "--traffic", "--memory", "--real-tensors")], "plan"
    elif command == "submit" and "--dry-run" not in rest:
        rest = [*rest, "--dry-run"]
    elif command in ("status", "top", "logs", "trace", "report", "advise", "cancel"):
        rest = [*rest, "--help"]
    return [*MIMO_LAUNCH, command, *rest]


def check_config(text: str) -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "job.yaml")
        path.write_text(text, encoding="utf-8")
        for script in re.findall(r"script: ([\w.]+)", text):
            Path(folder, script).touch()
        return failure_of([*MIMO_LAUNCH, "plan", str(path)], ROOT)


def failure_of(command: list[str], folder: Path) -> str | None:
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60, check=False)
    return None if done.returncode == 0 else f"exit code {done.returncode}: {done.stderr.strip()}"


def check_layers() -> Iterator[str]:
    """Compare docs/structure.md with the list that the architecture tests check."""
    tree = ast.parse((ROOT / "tests" / "test_architecture.py").read_text(encoding="utf-8"))
    layers = next(
        ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign) and _name(node) == "LAYERS"
    )
    text = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    for package, listed in layers.items():
        rows = [f"    {number:<2}  {layer.strip()}\n" for number, layer in enumerate(listed.split("|"), 1)]
        if f"{package}:\n{''.join(rows)}" not in text:
            yield f"docs/structure.md: layers of {package}: expected\n{''.join(rows)}"


def _name(node: ast.Assign) -> str:
    return node.targets[0].id if isinstance(node.targets[0], ast.Name) else ""


def check_keys() -> Iterator[str]:
    """Find keys of the schema that the reference does not mention."""
    text = (ROOT / "docs" / "reference" / "config.md").read_text(encoding="utf-8")
    for name in ("JobConfig", "ModuleConfig", "PoolConfig", "ResourcesConfig", "EntryConfig", "RuntimeConfig"):
        for field in fields(getattr(schema, name)):
            if f"`{field.name}`" not in text:
                yield f"docs/reference/config.md: no key `{field.name}` of {name}"


if __name__ == "__main__":
    sys.exit(main())
