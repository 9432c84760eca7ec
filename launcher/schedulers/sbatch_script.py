"""The job script for sbatch: first as a value, then as text. Nothing here runs or submits anything."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launcher.errors import ConfigError
from launcher.exit_code import ExitCode
from launcher.schedulers.sbatch_options import LONGEST, OptionTexts, check_options, seconds_of

JOB_ID = "${app_id}"
"""torchx's macro for the id of the job, which is known only once the job has been submitted."""

TORCHX_JOB_ID = "TORCHX_JOB_ID"
"""The variable in which torchx uses this macro."""

_PROGRAM = "mimo-launch"

_FROM_IMAGE = f'/bin/sh -c \'exec "$(command -v {_PROGRAM} || echo "$0")" "$@"\''
"""Starts the image's own installation, if it has one, in place of the one that submitted the job."""


@dataclass(frozen=True, kw_only=True)
class Component:
    """The nodes of one pool: a component of a heterogeneous job, or a whole plain job."""

    pool: str
    nodes: int
    cpus_per_task: str | None
    """CPUs of the one task per node; `None` if other options set them."""
    options: OptionTexts
    """sbatch's options."""
    step_options: OptionTexts = field(default_factory=dict)
    """srun's options."""

    @property
    def is_in_container(self) -> bool:
        """Whether pyxis runs the component's tasks in a container."""
        return not self.step_options.keys().isdisjoint({"container-image", "container-name"})


@dataclass(frozen=True, kw_only=True)
class SbatchJob:
    """A job script as a value."""

    name: str
    title: str
    """A description, in the script's second line."""
    components: tuple[Component, ...]
    command: tuple[str, ...]
    """The command that srun starts once per node."""
    cwd: str
    """The working directory of the command."""
    env: Mapping[str, str] = field(default_factory=dict)


def component(pool: str, nodes: int, procs: int, options: Mapping[str, object], warning_s: float) -> Component:
    """Check a pool's options and add those that mimo-launch needs.

    Args:
        pool: the pool's name.
        nodes: the number of its nodes that the plan uses.
        procs: the most rank processes on one of them.
        options: `pools.NAME.slurm`.
        warning_s: how long before the time limit the ranks get SIGUSR1.

    Raises:
        ConfigError: an option that would break the job.
    """
    checked = check_options(pool, options)
    own = dict(checked.sbatch)
    limit = seconds_of(own.get("time") or "")
    # SLURM may signal up to 60 s early, and 0 is no limit: sbatch(1), --signal and --time.
    if "signal" not in own and limit and limit <= warning_s + 60:
        raise ConfigError(
            f"pools.{pool}.slurm.time={own['time']}: {limit} s, but the ranks are warned runtime.warning_s={warning_s:g} s "
            "before the end, up to 60 s early, so the job would make no progress; increase time or decrease warning_s"
        )
    if "requeue" not in own and "no-requeue" not in own:
        own["requeue"] = None
    own.setdefault("signal", f"USR1@{max(1, round(warning_s))}")
    cpus = own.pop("cpus-per-task", None)
    # `exclusive: user` and the like still share the node.
    has_node = own.get("exclusive", "") is None
    if cpus is None and not has_node and "cpus-per-gpu" not in own:
        cpus = str(procs)
    return Component(pool=pool, nodes=nodes, cpus_per_task=cpus, options=own, step_options=checked.srun)


def script_of(job: SbatchJob) -> str:
    """The script as text.

    Its output goes to `slurm-JOBID.out` in the directory where sbatch is called.
    """
    lines = ["#!/bin/bash", f"# {_one_line(job.title)}", "# shellcheck disable=SC2016  # quoted text is data"]
    for index, part in enumerate(job.components):
        if index:
            lines.append("#SBATCH hetjob")
        lines += [f"#SBATCH {line}" for line in _directives(job.name, part, first=index == 0)]
    lines += ["", *_exports(job.env)]
    lines += [
        f"cd {shlex.quote(job.cwd)} || exit {ExitCode.USER_ERROR.value}",
        f"run=({shlex.join(job.command)})",
        "code=0",
        _srun(job),
        "# SLURM requeues a preempted job that still runs at the end of its grace time, but not one that ended before.",
        f'if [ "$code" -ne 0 ] && [ "$code" -ne {ExitCode.REQUEUE.value} ] &&',
        '  [[ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --Format=PreemptTime 2>/dev/null)" == [0-9]* ]]; then',
        f"  code={ExitCode.REQUEUE.value}",
        "fi",
        f'if [ "$code" -eq {ExitCode.REQUEUE.value} ]; then',
        "  trap '' TERM",
        '  scontrol requeue "$SLURM_JOB_ID" ||',
        '    echo "mimo-launch: cannot requeue job $SLURM_JOB_ID from $HOSTNAME; submit it again to continue" >&2',
        "fi",
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def quote_directive(value: str) -> str:
    """A value in an #SBATCH line: in double quotes, where sbatch reads `\\` as an escape and all else literally.

    Not documented in sbatch(1); tested with Slurm 22.05.
    """
    if re.fullmatch(r"[A-Za-z0-9_.,:/@%+=\[\]-]+", value, re.ASCII):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _directives(name: str, part: Component, *, first: bool) -> list[str]:
    label = _one_line(name)[:LONGEST]
    lines = [f"--job-name={quote_directive(label)}"] if "job-name" not in part.options else []
    if first:
        lines += ["--output=slurm-%j.out", "--open-mode=append"]
    lines += [f"--nodes={part.nodes}", "--ntasks-per-node=1"]
    if part.cpus_per_task is not None:
        lines.append(f"--cpus-per-task={quote_directive(part.cpus_per_task)}")
    lines += [f"--{name}" if value is None else f"--{name}={quote_directive(value)}" for name, value in part.options.items()]
    return lines


def _exports(env: Mapping[str, str]) -> list[str]:
    """The job's variables. Names that a shell cannot export reach the ranks through the plan."""
    lines = []
    for name, value in env.items():
        if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name, re.ASCII):
            quoted = _with_job_id(value) if name == TORCHX_JOB_ID else shlex.quote(value)
            lines.append(f"export {name}={quoted}")
    return [*lines, ""] if lines else []


def _with_job_id(value: str) -> str:
    return '"$SLURM_JOB_ID"'.join(shlex.quote(part) if part else "" for part in value.split(JOB_ID))


def _srun(job: SbatchJob) -> str:
    """One step over all components."""
    groups = []
    for index, part in enumerate(job.components):
        words = [f"--het-group={index}"] if len(job.components) > 1 else []
        words += [_srun_word(name, value) for name, value in _step_options(part, job.cwd).items()]
        words += [_FROM_IMAGE] if part.is_in_container and Path(job.command[0]).name == _PROGRAM else []
        groups.append(" ".join([*words, '"${run[@]}"']))
    joined = " : \\\n  ".join(groups)
    return f"srun --kill-on-bad-exit=1 {joined} || code=$?"


def _step_options(part: Component, cwd: str) -> dict[str, str | None]:
    """srun's options, with the CPUs: since Slurm 22.05, srun does not inherit them from sbatch."""
    own: dict[str, str | None] = {"nodes": str(part.nodes), "ntasks": str(part.nodes)}
    if part.cpus_per_task is not None:
        own["cpus-per-task"] = part.cpus_per_task
    # The task's ranks share all CPUs of the task.
    own["cpu-bind"] = "none"
    if part.is_in_container:
        own["container-workdir"] = cwd
    return own | dict(part.step_options)


def _srun_word(name: str, value: str | None) -> str:
    return f"--{name}" if value is None else f"--{name}={shlex.quote(value)}"


def _one_line(text: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f\u0085\u2028\u2029]+", " ", text)
