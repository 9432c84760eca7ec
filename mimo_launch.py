"""The program `mimo-launch`, also as `python -m mimo_launch`.

It loads mimo-launch's two packages from the folder of this file. A project may have a package of its own named `launcher`
on `sys.path`, for example by `PYTHONPATH=.`.
"""

import os
import sys


def _load_own_packages() -> None:
    root = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 (pathlib would be the first import from sys.path)
    sys.path.insert(0, root)
    import launcher  # noqa: F401
    import mimo_role  # noqa: F401

    sys.path.remove(root)


def main() -> None:
    """Run the command line, and end the process with its exit code."""
    _load_own_packages()
    from launcher.cli import entry

    entry()


if __name__ == "__main__":
    main()
