"""A copy of the code for a queued job, so that edits made while it waits do not reach it."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from launcher.errors import LaunchError
from launcher.run_dir.layout import RunDirLayout

MOST_BYTES = 256 << 20
_LEFT_OUT = {".git", "__pycache__", ".venv", "venv", "node_modules", ".mypy_cache", ".pytest_cache", ".ruff_cache"}


def take(cwd: Path, script: str | None, target: Path) -> dict[Path, Path]:
    """Copy the source tree that contains the working directory, and that of the script if it is another one.

    Of a git work tree, the tracked files are copied, those of submodules too, and the new ones that git does not ignore, with
    all changes. Any other directory is copied without caches, virtual environments and run directories.

    Args:
        cwd: the working directory, in which the job would run.
        script: the entry's script, if it is one.
        target: a directory that does not exist yet.

    Returns:
        The copy of each tree.

    Raises:
        LaunchError: a tree too large to be code.
    """
    folders = [cwd, *([Path(script).parent] if script is not None else [])]
    copies: dict[Path, Path] = {}
    for folder in (folder.resolve() for folder in folders):
        if not any(folder.is_relative_to(tree) for tree in copies):
            tree = _work_tree(folder) or folder
            copies[tree] = target / str(len(copies))
            _copy(tree, copies[tree])
    return copies


def _work_tree(folder: Path) -> Path | None:
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--show-toplevel"],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    return Path(found.stdout.removesuffix("\n")).resolve() if found.returncode == 0 else None


def _copy(tree: Path, target: Path) -> None:
    total = 0
    for path in _files(tree):
        total += path.lstat().st_size
        if total > MOST_BYTES:
            raise LaunchError(
                f"--snapshot: {tree} has more than {MOST_BYTES >> 20} MiB of files; run from the directory of the code, "
                "list what is not code in .gitignore, or leave --snapshot out"
            )
        copy = target / path.relative_to(tree)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy, follow_symlinks=False)
    target.mkdir(parents=True, exist_ok=True)


def _files(tree: Path) -> Iterator[Path]:
    listed = _listed_by_git(tree)
    if listed is not None:
        yield from (path for name in listed if (path := tree / name).is_symlink() or path.is_file())
        return
    yield from _files_below(tree)


def _files_below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            if path.name not in _LEFT_OUT and not _is_run_dir(path):
                yield from _files_below(path)
        elif path.is_symlink() or path.is_file():
            yield path


def _is_run_dir(path: Path) -> bool:
    layout = RunDirLayout(path)
    return layout.run_id_file.exists() or layout.has_submissions()


def _listed_by_git(tree: Path) -> list[str] | None:
    if not (tree / ".git").exists():
        return None
    # git lists new files beside those of submodules in no single call.
    return _listed(tree, "--cached", "--recurse-submodules") + _listed(tree, "--others", "--exclude-standard")


def _listed(tree: Path, *options: str) -> list[str]:
    command = ["git", "-C", str(tree), "ls-files", "-z", *options]
    listed = subprocess.run(command, capture_output=True, check=False)
    if listed.returncode != 0:
        raise LaunchError(f"--snapshot: git cannot list {tree}: {listed.stderr.decode(errors='replace').strip()}")
    return [name.decode(errors="surrogateescape") for name in listed.stdout.split(b"\0") if name]
