import pytest

from launcher.config.loader import load
from launcher.plan.planner import make_plan


@pytest.fixture
def plan_of(tmp_path):
    """Makes the plan of some modules, in YAML."""

    def plan_of(modules, layout="non_colocated", more=""):
        (tmp_path / "train.py").touch()
        config = f"name: job\nlayout: {layout}\nmodules: {modules}\nentry: {{script: train.py}}\n{more}"
        (tmp_path / "job.yaml").write_text(config)
        return make_plan(load(tmp_path / "job.yaml", [])[0], tmp_path / "job.yaml", ())

    return plan_of
