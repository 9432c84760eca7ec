"""The program of the processes below the reaper: the fork server, and ranks in an interpreter of their own.

It is started by its path. Python puts the folder of the program in front of `sys.path`, and `PYTHONPATH` may have a
package of the user's own named `launcher`; this program loads mimo-launch's two packages from the folder that it is in,
and leaves `sys.path` as it is for the script of a rank.
"""

import os
import sys

_STARTED_WITH = frozenset(sys.modules)


def _load_own_packages() -> None:
    folder = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 (pathlib is imported from sys.path)
    root = os.path.dirname(os.path.dirname(folder))  # noqa: PTH120
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]
    sys.path.insert(0, root)
    import launcher  # noqa: F401
    import mimo_role  # noqa: F401

    sys.path.remove(root)


def _run() -> None:
    command, arguments = sys.argv[1], sys.argv[2:]
    if command == "serve":
        from launcher.worker import rank_server

        command, *arguments = rank_server.serve(int(arguments[0]), *arguments[1:], started_with=_STARTED_WITH)
    if command == "rehearse":
        from launcher.worker import rehearsal

        rehearsal.run(*arguments, started_with=_STARTED_WITH)
        return
    from launcher.worker import entrypoint

    if command == "exec":
        entrypoint.exec_command(*arguments)
    entrypoint.run_python(*arguments, started_with=_STARTED_WITH)


if __name__ == "__main__":
    _load_own_packages()
    _run()
