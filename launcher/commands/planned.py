"""The config and the plan that a command line names."""

import argparse
from dataclasses import replace

from launcher.config.loader import load
from launcher.config.schema import JobConfig
from launcher.config.yaml_reader import source_of
from launcher.errors import ConfigError
from launcher.plan.launch_plan import LaunchPlan
from launcher.plan.planner import make_plan
from launcher.run_dir.rehearsed_traffic import with_rehearsed_traffic
from launcher.schedulers.sbatch_options import check_options, review


def planned(arguments: argparse.Namespace) -> tuple[LaunchPlan, str, JobConfig]:
    """The plan of CONFIG and its overrides, with all warnings; the config's text, and the config.

    Raises:
        ConfigError: the config is invalid.
        PlanError: the job fits no nodes.
    """
    config, config_text = load(arguments.config, arguments.overrides)
    options = {}
    for name, pool in (config.pools or {}).items():
        try:
            options[name] = check_options(name, pool.slurm)
        except ConfigError as error:
            key = str(error).partition(":")[0].partition("=")[0]
            raise ConfigError(f"{source_of(arguments.config, key, arguments.overrides)}: {error}") from None
    plan = make_plan(config, arguments.config, arguments.script_args, arguments.overrides)
    used = dict.fromkeys(node.pool for node in plan.nodes if node.pool in options)
    found = review({name: options[name] for name in used})
    plan = with_rehearsed_traffic(replace(plan, warnings=(*plan.warnings, *found)))
    return plan, config_text, config
