"""The job as a torchx component, by file: `torchx run -s SCHEDULER PATH/component.py:job --config vlm.yaml --image IMAGE`.

It is no entry point: registering one would hide torchx's own components from the user's whole environment (torchx 0.7).
"""

from pathlib import Path

from torchx.specs import AppDef


def job(*overrides: str, config: str, image: str = "") -> AppDef:
    """A training job whose modules each have their own grid of ranks.

    Args:
        overrides: changes to the config, such as modules.language.tp=2
        config: the job's YAML file
        image: the container image; its working folder stands for the current one
    """
    from launcher.config.loader import load
    from launcher.plan.planner import make_plan
    from launcher.schedulers.app_def import pools_in_order, self_contained

    loaded, _ = load(Path(config), list(overrides))
    plan = make_plan(loaded, Path(config), (), list(overrides))
    return self_contained(plan, pools_in_order(plan, loaded.pools or {}), image, Path.cwd())
