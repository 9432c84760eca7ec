"""What torch will import in each rank because of what the script does, found in the script's source before it runs.

torch imports its compiler when a process makes its first optimizer or wraps its first model: 800 modules, half as long as the
import of torch itself. The process from which ranks are forked can do that once. For a script that is known only to
communicate it would be lost time.
"""

import ast
import os
import sys
import warnings
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.host.preload_list import ModuleToPreload
from launcher.plan.launch_plan import Entry, LaunchPlan

_COMPILER = "torch._dynamo"

_TRAINS_BY_NAME = {
    "optim",
    "DistributedDataParallel",
    "DDP",
    "FullyShardedDataParallel",
    "FSDP",
    "fully_shard",
    "torch.compile",
    "DTensor",
    "distribute_tensor",
    "distributed.tensor",
    "dist.tensor",
    "__import__",
    "import_module",
    "run_path",
    "run_module",
    "exec",
}
"""With the last of them the script may import anything."""

_TRAINS_BY_IMPORT = (
    "torch.optim",
    "torch.utils.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint",
    "torch.distributed.optim",
    "torch.distributed.pipelining",
    "torch.distributed.tensor",
    "torch.nn.parallel",
)
_KNOWN_PACKAGES = {*sys.stdlib_module_names, "torch", "numpy"}
"""A script with others may train through them."""

_OF_COMPILER = (
    *("AOT", "CUTEDSL", "CUTLASS", "DUMP_AOTI", "ENABLE_", "FAKE_ALLOW", "INDUCTOR", "LOG_", "MPMATH", "PARTITIONER", "PT2_"),
    *("SYMPY", "TORCHDYNAMO", "TORCHINDUCTOR", "TORCH_CACHING", "TORCH_COMPILE", "TORCH_DYNAMO", "TORCH_FAKE", "TORCH_STRICT"),
    "UNSAFE_SKIP",
)
_OF_OTHERS_TOO = {"CI", "CXX", "HOME", "LNAME", "LOGNAME", "TEMP", "TMP", "TMPDIR", "USER", "USERNAME"}
"""Variables that the compiler reads when it is imported: one that the script sets has its effect only if that is later."""

_MOST_BYTES = 500_000
"""What is read of the modules beside the script. To parse as much takes 0.3 s, while the fork server imports torch."""


def modules_to_preload(plan: LaunchPlan) -> tuple[ModuleToPreload, ...]:
    """The modules that the server imports for all ranks: those of torch that the script brings, and `runtime.preload`."""
    listed = [ModuleToPreload.listed(at, name) for at, name in enumerate(plan.runtime.preload) if name != "torch"]
    return (*map(ModuleToPreload.automatic, _modules_of_torch(plan)), *listed)


def _modules_of_torch(plan: LaunchPlan) -> tuple[str, ...]:
    """Those that the user has not listed. A list with `torch` itself leaves out all others."""
    if not {"torch", _COMPILER}.isdisjoint(plan.runtime.preload):
        return ()
    source = _Source()
    if source.read(plan.entry) and source.packages <= _KNOWN_PACKAGES and not source.has(_TRAINS_BY_NAME, _TRAINS_BY_IMPORT):
        return ()
    variables = source.keys.union(*plan.module_env.values())
    return () if any(map(_is_of_compiler, variables)) else (_COMPILER,)


def _is_of_compiler(variable: str) -> bool:
    return variable.startswith(_OF_COMPILER) or variable in _OF_OTHERS_TOO


@dataclass
class _Source:
    """A script and the modules beside it that it imports, the nearest first."""

    names: set[str] = field(default_factory=set)
    """Names and attributes, and pairs of both such as `torch.compile`."""
    imports: set[str] = field(default_factory=set)
    """The full names of modules, and of what is imported from them."""
    packages: set[str] = field(default_factory=set)
    """The first parts of the names of modules that are not beside the script."""
    keys: set[str] = field(default_factory=set)
    """Texts that are used as a key, which environment variables that the script sets would be."""

    def has(self, names: Collection[str], imports: tuple[str, ...]) -> bool:
        """Whether one of the names is used, or one of the modules or something in them imported."""
        starts = tuple(f"{each}." for each in imports)
        return not self.names.isdisjoint(names) or any(f"{name}.".startswith(starts) for name in self.imports)

    def read(self, entry: Entry) -> bool:
        """Read what an entry runs. Returns whether all of it could be read."""
        try:
            return self._read_all(entry)
        except Exception:  # whatever it is, the rank that runs it reports it
            return False

    def _read_all(self, entry: Entry) -> bool:
        if entry.script is not None:
            folder, first = os.path.dirname(entry.script), [entry.script]  # noqa: PTH120
        else:
            folder, parts = os.getcwd(), (entry.module or "").split(".")  # noqa: PTH109
            first = [*_files_of(folder, parts), *_files_of(folder, [*parts, "__main__"])]
        waiting, seen, left = deque(first), set(first), _MOST_BYTES
        while waiting:
            file = waiting.popleft()
            left -= os.stat(file).st_size  # noqa: PTH116
            if left < 0:
                return False
            new = [each for each in self._read_file(file, folder) if each not in seen]
            waiting.extend(new)
            seen.update(new)
        return bool(first)

    def _read_file(self, file: str, folder: str) -> list[str]:
        """Note what is in a file, and return the files of the modules beside it that it imports."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the rank that runs it prints them
            tree = ast.parse(Path(file).read_bytes())
        found = []
        for node in ast.walk(tree):
            self._note(node)
            for parts, base in _imported(node, file, folder):
                self.imports.add(".".join(parts))
                beside = _files_of(base, parts)
                found += beside
                if not beside and base == folder:
                    self.packages.add(parts[0])
        return found

    def _note(self, node: ast.AST) -> None:
        if isinstance(node, ast.Name):
            self.names.add(node.id)
        elif isinstance(node, ast.Attribute):
            self.names.add(node.attr)
            base = node.value
            if isinstance(base, ast.Name | ast.Attribute):
                self.names.add(f"{base.id if isinstance(base, ast.Name) else base.attr}.{node.attr}")
        elif isinstance(node, ast.alias):
            self.names.update(node.name.split("."))
        elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            self._note_keys([node.slice])
        elif isinstance(node, ast.Dict):
            self._note_keys(node.keys)
        elif isinstance(node, ast.Call):
            self._note_keys(node.args[:1])
            self.keys.update(each.arg for each in node.keywords if each.arg is not None)

    def _note_keys(self, nodes: Sequence[ast.expr | None]) -> None:
        values = [node.value for node in nodes if isinstance(node, ast.Constant)]
        self.keys.update(value for value in values if isinstance(value, str))


def _imported(node: ast.AST, file: str, folder: str) -> Iterator[tuple[list[str], str]]:
    """The modules that a statement imports or may import, each with the folder from which its name counts."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name.split("."), folder
    elif isinstance(node, ast.ImportFrom):
        base = folder
        for level in range(node.level):
            base = os.path.dirname(file if level == 0 else base)  # noqa: PTH120
        parts = node.module.split(".") if node.module else []
        if parts:
            yield parts, base
        for alias in node.names:
            yield [*parts, alias.name], base


def _files_of(folder: str, parts: Sequence[str]) -> list[str]:
    """The files of a module below a folder, those of the packages around it first; none if it is not there."""
    found: list[str] = []
    for part in parts:
        folder = os.path.join(folder, part)  # noqa: PTH118
        candidates = (f"{folder}.py", os.path.join(folder, "__init__.py"))  # noqa: PTH118
        file = next((each for each in candidates if os.path.isfile(each)), None)  # noqa: PTH113
        if file is not None:
            found.append(file)
        elif not os.path.isdir(folder):  # noqa: PTH112
            break
    return found
