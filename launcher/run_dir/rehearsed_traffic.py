"""What a rehearsal of the same job has found out about the traffic that a plan's warnings are about."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.formatting import bytes_shown
from launcher.plan.launch_plan import LaunchPlan
from launcher.plan.placement_warnings import PlanWarning
from launcher.run_dir.layout import RunDirLayout

_BOUNDARIES = {"across_nodes": "nodes", "across_pools": "pools"}
"""By the ends of warnings' codes, what the traffic crosses."""


def with_rehearsed_traffic(plan: LaunchPlan) -> LaunchPlan:
    """The plan, its warnings with the bytes of a step where the run directory has a rehearsal of the same plan.

    Args:
        plan: of the job. Files that cannot be read, or are of another plan or of a rehearsal that failed, are ignored.
    """
    if not any(warning.about for warning in plan.warnings):
        return plan
    traffic = _traffic_of(plan)
    return plan if not traffic else replace(plan, warnings=tuple(_with_bytes(each, traffic) for each in plan.warnings))


def _traffic_of(plan: LaunchPlan) -> Mapping[str, Any]:
    """By group or bridge, the bytes that all ranks send in a step; empty if they are not known."""
    file = RunDirLayout(Path(plan.run_dir)).rehearsal.rehearsal_file
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        is_whole = found["plan"] == plan.digest and not found["failures"]
        traffic = found["step_traffic"]
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    is_of_groups = isinstance(traffic, dict) and all(isinstance(sent, dict) for sent in traffic.values())
    return traffic if is_whole and is_of_groups else {}


def _with_bytes(warning: PlanWarning, traffic: Mapping[str, Any]) -> PlanWarning:
    ending = next((ending for ending in _BOUNDARIES if warning.code.endswith(ending)), None)
    if ending is None or not warning.about:
        return warning
    found = [sent.get(f"{ending}_bytes") for group, sent in traffic.items() if _is_about(warning.about, group)]
    crossing = sum(size for size in found if isinstance(size, int))
    if not crossing:
        return warning
    note = f"{bytes_shown(crossing)} per step cross {_BOUNDARIES[ending]}, by the rehearsal in the run directory"
    return replace(warning, message=f"{warning.message}; {note}")


def _is_about(about: str, group: str) -> bool:
    """Whether a group is the one that a warning is about, a group of that module, or the messages of that bridge."""
    return group == about or group.startswith((f"{about}.", f"{about}, ", f"{about} tensor "))
