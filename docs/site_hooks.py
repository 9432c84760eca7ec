"""What MkDocs adds to the pages in docs/: the command line reference, the examples, and the files at the repository's root.

Pages link to files of the repository by relative paths, which work in an editor and on a code host. In the site, docs/ is the
root, so links are rewritten to where the site has the file.
"""

import os
import posixpath
import re
import subprocess
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ROOT_FILES = ("CONTRIBUTING.md", "CHANGELOG.md", "LICENSE")
COMMANDS = re.compile(r"^    (\w+)  ", re.MULTILINE)
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)((?:#[^)]*)?)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    files.append(File.generated(config, "reference/cli.md", content=command_line()))
    examples = [path for path in (ROOT / "examples").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    tests = ROOT / "tests" / "test_architecture.py"
    for path in (*(ROOT / name for name in ROOT_FILES), *examples, tests):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix == ".md":
            files.append(File.generated(config, name, content=path.read_text(encoding="utf-8")))
        else:
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def command_line() -> str:
    """The page about the command line: what `--help` prints, for mimo-launch and for each of its commands."""
    overview = help_of()
    parts = ["# Command line", "Every command's `--help`, as of this version.", f"```text\n{overview}```"]
    for command in COMMANDS.findall(overview):
        parts += [f"## mimo-launch {command}", f"```text\n{help_of(command)}```"]
    parts.append(
        "`run` accepts a `plan.json` of an earlier run in place of a config. Exit codes: [Exit codes](exit-codes.md). Keys and "
        "overrides: [Config](config.md)."
    )
    return "\n\n".join(parts) + "\n"


def help_of(*command: str) -> str:
    environ = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "88"}
    words = [sys.executable, "-m", "launcher", *command, "--help"]
    return subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True, check=True, timeout=60).stdout


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    here = page.file.src_uri
    in_repository = here if here.startswith("examples/") or here in ROOT_FILES else f"docs/{here}"

    def rewritten(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(in_repository), link[1]))
        if (ROOT / target).is_dir():
            target += "/README.md"
        in_site = "index.md" if target == "README.md" else target.removeprefix("docs/")
        return f"]({posixpath.relpath(in_site, posixpath.dirname(here) or '.')}{link[2]})"

    return LINK.sub(rewritten, markdown)
