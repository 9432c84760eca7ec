"""The files of a first job, copied from a template."""

from pathlib import Path

from launcher.config.json_schema import SCHEMA_FILE
from launcher.errors import UsageError
from launcher.formatting import did_you_mean

_TEMPLATES = Path(__file__).parent / "templates"

_SCHEMA_IN_TEMPLATE = "$schema=../../config/job.schema.json"
"""Where a template's config refers to the schema; editors complete and check configs by it."""


def templates() -> list[str]:
    """The names of the templates."""
    return sorted(path.name for path in _TEMPLATES.iterdir() if path.is_dir())


def write_project(folder: Path, template: str) -> list[str]:
    """Write the files of a template into a folder, which is created if needed.

    Returns:
        The names of the files.

    Raises:
        UsageError: there is no such template, one of the files exists already (then none is written), or the folder
            cannot be written to.
    """
    if template not in templates():
        hint = did_you_mean(template, templates()) or f"there are {', '.join(templates())}"
        raise UsageError(f"--template {template}: no such template; {hint}")
    sources = sorted(path for path in (_TEMPLATES / template).iterdir() if path.is_file())
    names = [path.name for path in sources]
    if existing := [name for name in names if (folder / name).exists()]:
        verb = "exists" if len(existing) == 1 else "exist"
        raise UsageError(f"{folder}: {' and '.join(existing)} {verb} already; nothing is written. Give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for source in sources:
            text = source.read_text(encoding="utf-8").replace(_SCHEMA_IN_TEMPLATE, f"$schema={SCHEMA_FILE.as_uri()}")
            (folder / source.name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written to: {error.strerror}") from None
    return names
