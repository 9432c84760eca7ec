"""What torch will import in each rank because of what the script does, found in the script's source before it runs.

torch imports its compiler when a process makes its first optimizer or wraps its first model: 800 modules, half as long as the
import of torch itself. The process from which ranks are forked can do that once. For a script that only communicates it would
be lost time; so would be the import of DTensor, which the compiler brings.
"""

import ast
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from launcher.host.preload_list import ModuleToPreload
from launcher.plan.launch_plan import Entry, LaunchPlan

_COMPILER = "torch._dynamo"
_DTENSOR = "torch.distributed.tensor"

_COMPILER_BY_NAME = {
    "optim",
    "DistributedDataParallel",
    "DDP",
    "FullyShardedDataParallel",
    "FSDP",
    "fully_shard",
    "torch.compile",
}
_COMPILER_BY_IMPORT = (
    "torch.optim",
    "torch.utils.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.optim",
    "torch.distributed.pipelining",
    "torch.nn.parallel",
    "accelerate",
    "deepspeed",
    "lightning",
    "megatron",
    "pytorch_lightning",
    "torchtitan",
    "transformers",
)
_WITHOUT_DTENSOR = {*sys.stdlib_module_names, "torch", "numpy"} - {"importlib", "runpy"}
_DTENSOR_BY_NAME = {"DTensor", "distribute_tensor", "distributed.tensor", "dist.tensor", "__import__", "exec"}
_DTENSOR_BY_IMPORT = ("torch.distributed.tensor", "torch.distributed.checkpoint", "torch.distributed._tensor")

_OF_COMPILER = ("AOT", "CUTLASS", "INDUCTOR", "PT2_", "TORCHDYNAMO", "TORCHINDUCTOR", "TORCH_COMPILE", "TORCH_DYNAMO")
_FOR_FOLDERS = {"CI", "CXX", "HOME", "LOGNAME", "TEMP", "TMP", "TMPDIR", "USER", "USERNAME"}
"""Variables that the compiler reads when it is imported: one that the script sets has its effect only if that is later."""

_MOST_FILES = 200


def modules_to_preload(plan: LaunchPlan) -> tuple[ModuleToPreload, ...]:
    """The modules that the server imports for all ranks: those of torch that the script brings, and `runtime.preload`."""
    listed = [ModuleToPreload.listed(at, name) for at, name in enumerate(plan.runtime.preload)]
    return (*map(ModuleToPreload.automatic, _modules_of_torch(plan)), *listed)


def _modules_of_torch(plan: LaunchPlan) -> tuple[str, ...]:
    """Those that the user has not listed. A list with `torch` itself leaves out all others."""
    if not {"torch", _COMPILER}.isdisjoint(plan.runtime.preload):
        return ()
    source = _Source()
    is_known = source.read(plan.entry)
    variables = source.variables.union(*plan.module_env.values())
    if source.has(_COMPILER_BY_NAME, _COMPILER_BY_IMPORT):
        return (_DTENSOR,) if any(map(_is_of_compiler, variables)) else (_COMPILER,)
    is_without = is_known and source.packages <= _WITHOUT_DTENSOR and not source.has(_DTENSOR_BY_NAME, _DTENSOR_BY_IMPORT)
    return () if is_without else (_DTENSOR,)


def _is_of_compiler(variable: str) -> bool:
    return variable.startswith(_OF_COMPILER) or variable in _FOR_FOLDERS


@dataclass
class _Source:
    """A script and the modules beside it that it imports."""

    names: set[str] = field(default_factory=set)
    """Names and attributes, and pairs of both such as `torch.compile`."""
    imports: set[str] = field(default_factory=set)
    """The full names of modules, and of what is imported from them."""
    packages: set[str] = field(default_factory=set)
    """The first parts of the names of modules that are not beside the script."""
    variables: set[str] = field(default_factory=set)
    """Keys that are set or removed somewhere, which environment variables would be."""
    _files: set[Path] = field(default_factory=set)

    def has(self, names: Collection[str], imports: tuple[str, ...]) -> bool:
        """Whether one of the names is used, or one of the modules or something in them imported."""
        return not self.names.isdisjoint(names) or any(
            f"{name}.".startswith(f"{each}.") for each in imports for name in self.imports
        )

    def read(self, entry: Entry) -> bool:
        """Read what an entry runs. Returns whether all of it could be read."""
        if entry.script is not None:
            return self._read(Path(entry.script), Path(entry.script).parent)
        folder, parts = Path.cwd(), (entry.module or "").split(".")
        found = [*_files_of(folder, parts), *_files_of(folder, [*parts, "__main__"])]
        return bool(found) and self._read_all(found, folder)

    def _read_all(self, files: list[Path], folder: Path) -> bool:
        is_complete = True
        for file in files:
            is_complete &= self._read(file, folder)
        return is_complete

    def _read(self, file: Path, folder: Path) -> bool:
        if file in self._files:
            return True
        if len(self._files) == _MOST_FILES:
            return False
        self._files.add(file)
        try:
            tree = ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError, RecursionError):
            return False
        is_complete = True
        for node in ast.walk(tree):
            self._note(node)
            for parts, base in _imported(node, file, folder):
                self.imports.add(".".join(parts))
                beside = _files_of(base, parts)
                if not beside and base == folder:
                    self.packages.add(parts[0])
                is_complete &= self._read_all(beside, folder)
        return is_complete

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
        elif isinstance(node, ast.Call):
            self._note_keys([*node.args[:1], *(key for each in node.args if isinstance(each, ast.Dict) for key in each.keys)])
            self.variables.update(each.arg for each in node.keywords if each.arg is not None)

    def _note_keys(self, nodes: Collection[ast.expr | None]) -> None:
        values = [node.value for node in nodes if isinstance(node, ast.Constant)]
        self.variables.update(value for value in values if isinstance(value, str))


def _imported(node: ast.AST, file: Path, folder: Path) -> Iterator[tuple[list[str], Path]]:
    """The modules that a statement imports or may import, each with the folder from which its name counts."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name.split("."), folder
    elif isinstance(node, ast.ImportFrom):
        base = folder if node.level == 0 else file.parents[node.level - 1] if node.level <= len(file.parents) else file.parent
        parts = node.module.split(".") if node.module else []
        if parts:
            yield parts, base
        for alias in node.names:
            yield [*parts, alias.name], base


def _files_of(folder: Path, parts: list[str]) -> list[Path]:
    """The files of a module below a folder, those of the packages around it first; none if it is not there."""
    found: list[Path] = []
    for count in range(1, len(parts) + 1):
        place = folder.joinpath(*parts[:count])
        candidates = [place.with_name(f"{place.name}.py"), place / "__init__.py"]
        file = next((each for each in candidates if each.is_file()), None)
        if file is None and not place.is_dir():
            return found if count > 1 else []
        if file is not None:
            found.append(file)
    return found
