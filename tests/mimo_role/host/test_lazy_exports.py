import ast
import sys
from importlib import import_module
from pathlib import Path

import pytest

import mimo_role

ROOT = Path(mimo_role.__file__).parent
PACKAGES = [".".join(stub.parent.relative_to(ROOT.parent).parts) for stub in sorted(ROOT.rglob("__init__.pyi"))]


def imports_of_stub(package):
    tree = ast.parse(Path(import_module(package).__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    return {alias.asname: node.module for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}


NEEDS = {"mimo_role.megatron": "megatron.core"}
"""Packages in which importing a name imports something that need not be installed, and may warn."""


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.filterwarnings("ignore")
def test_a_package_exports_the_names_of_its_stub(package):
    pytest.importorskip("torch")
    if package in NEEDS:
        pytest.importorskip(NEEDS[package])
    loaded, modules = import_module(package), imports_of_stub(package)
    assert dir(loaded) == sorted(loaded.__all__) == sorted(modules)
    for name, module in modules.items():
        assert getattr(loaded, name) is getattr(sys.modules[module], name)


@pytest.mark.parametrize("package", PACKAGES)
def test_an_unknown_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = import_module(package).nothing
