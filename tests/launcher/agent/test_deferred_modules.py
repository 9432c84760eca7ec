"""The part of torch that the agent leaves out. Private to torch: a test fails when torch no longer imports it in that way."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

STATE = """
def executed():
    return "register_meta" in vars(sys.modules[UNUSED])
"""


def printed(code):
    program = f"import sys; from launcher.agent.deferred_modules import UNUSED, without_unused_modules\n{STATE}\n{code}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_torch_is_imported_without_it():
    code = "with without_unused_modules():\n    import launcher.agent.elastic_agent\nprint(executed(), len(sys.meta_path))"
    plain = "import torch; print(executed(), len(sys.meta_path))"
    (deferred, finders), (imported, before) = printed(code), printed(plain)
    assert (deferred, imported) == ("False", "True")
    assert finders == before


@pytest.mark.parametrize(
    "use",
    [
        "torch._meta_registrations.register_meta",
        "sys.modules[UNUSED].register_meta",
        "__import__('torch._meta_registrations', fromlist=['register_meta']).register_meta",
    ],
    ids=["an attribute of torch", "the module", "an import"],
)
def test_it_is_loaded_where_it_is_used(use):
    code = f"with without_unused_modules():\n    import torch\nprint(executed(), callable({use}), executed())"
    assert printed(code) == ["False", "True", "True"]


def test_names_that_it_does_not_have_are_attribute_errors():
    code = (
        "with without_unused_modules():\n    import torch\n"
        "module = sys.modules[UNUSED]\n"
        "print(hasattr(module, '__wrapped__'), executed(), hasattr(module, 'no_such'), executed())"
    )
    assert printed(code) == ["False", "False", "False", "True"]
