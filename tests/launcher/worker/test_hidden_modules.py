"""Modules that look as if they had not been imported yet: what threads see that import them at once."""

import importlib
import sys
import threading

import pytest

from launcher.worker.hidden_modules import HiddenModules

STATEMENTS = [
    "import hiddenpkg",
    "import hiddenpkg.child",
    "import hiddenpkg.child as name",
    "from hiddenpkg import child",
    "from hiddenpkg.child import VALUE",
    "import importlib; importlib.import_module('hiddenpkg.child')",
]


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A package and two modules of it, imported."""
    package = tmp_path / "hiddenpkg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for name in ("child", "sibling"):
        (package / f"{name}.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    names = ["hiddenpkg", "hiddenpkg.child", "hiddenpkg.sibling"]
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        sys.modules.pop(name, None)


def in_threads(*functions):
    threads = [threading.Thread(target=function, daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("first", STATEMENTS)
@pytest.mark.parametrize("second", STATEMENTS)
def test_other_threads_wait_for_what_is_called_at_the_import(modules, first, second):
    happened, is_called, is_importing = [], threading.Event(), threading.Event()

    def on_import():
        is_called.set()
        assert is_importing.wait(timeout=30)
        threading.Event().wait(timeout=0.05)  # long enough that the other thread is in its import
        happened.append("called")

    def import_second():
        assert is_called.wait(timeout=30)
        is_importing.set()
        exec(second, {})
        happened.append("second")

    HiddenModules(modules, on_import).let_find()
    in_threads(lambda: exec(first, {}), import_second)
    assert happened == ["called", "second"]
    assert all(sys.modules[name] is module for name, module in modules.items())
    assert all(type(module.__spec__.loader).__name__ == "SourceFileLoader" for module in modules.values())


@pytest.mark.parametrize("imported", ["hiddenpkg.child", "hiddenpkg.sibling"])
def test_what_is_called_may_import_the_modules_that_others_import(modules, imported):
    is_called, is_importing = threading.Event(), threading.Event()

    def on_import():
        is_called.set()
        assert is_importing.wait(timeout=30)
        threading.Event().wait(timeout=0.05)
        exec(f"import {imported}", {})

    def import_child():
        assert is_called.wait(timeout=30)
        is_importing.set()
        importlib.import_module("hiddenpkg.child")

    HiddenModules(modules, on_import).let_find()
    in_threads(lambda: importlib.import_module("hiddenpkg"), import_child)
    assert all(sys.modules[name] is module for name, module in modules.items())
