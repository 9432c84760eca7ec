"""Start-up of a script that imports much, with `runtime.preload`, against torchrun, alternating, on this machine.

The script imports `torch._dynamo`, and scikit-learn and transformers where they are installed; then it joins
torch.distributed over gloo, does one all-reduce and ends. Cases:

- `N ranks, whole process`: seconds from starting the command to its end;
- `N ranks, first collective`: seconds from starting the command until the last rank has its all-reduce's result.

With `--without` there are also rows for mimo-launch without `preload`.
"""

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import startup
from report import parser, show

MODULES = ["torch._dynamo", *(name for name in ("sklearn.linear_model", "transformers") if find_spec(name.partition(".")[0]))]
SCRIPT = "\n".join(f"import {name}" for name in MODULES) + startup.SCRIPT


def ours(modules: Sequence[str], folder: Path, ranks: int) -> list[str]:
    """The command of mimo-launch, with modules to preload."""
    command = startup.ours(folder, ranks)
    return [*command[:-1], f"runtime.preload=[{','.join(modules)}]", *command[-1:]]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--ranks", type=int, nargs="+", default=[32], help="worlds to start (default: 32)")
    options.add_argument("--runs", type=int, default=5, help="alternating runs of each case (default: 5)")
    options.add_argument("--without", action="store_true", help="measure mimo-launch without preload, too")
    arguments = options.parse_args()
    cases = {"": MODULES, ", without preload": []} if arguments.without else {"": MODULES}
    rows = [
        row
        for ranks in arguments.ranks
        for suffix, modules in cases.items()
        for row in startup.startup_rows(
            f"{ranks} ranks{suffix}", ranks, arguments.runs, command=partial(ours, modules), script=SCRIPT
        )
    ]
    show("preload", rows, arguments.json)


if __name__ == "__main__":
    main()
