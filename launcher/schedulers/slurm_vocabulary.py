"""The long options of sbatch and srun: which there are, and which of them mimo-launch sets itself."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

_OF_BOTH = frozenset(
    re.findall(
        r"\S+",
        """
        account acctg-freq bb bbf begin comment constraint container container-id contiguous core-spec
        cores-per-socket cpu-freq cpus-per-gpu deadline delay-boot dependency distribution exclude exclusive extra
        extra-node-info gid gpu-bind gpu-freq gpus gpus-per-node gpus-per-socket gres gres-flags hint hold input
        job-name licenses mail-type mail-user mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus network nice
        no-kill nodefile nodelist oom-kill-step oversubscribe overcommit partition power prefer priority profile
        propagate qos reboot reservation resv-ports segment signal sockets-per-node spread-job stepmgr switches
        thread-spec threads-per-core time time-min tmp tres-bind tres-per-task uid use-min-nodes verbose wckey x11
        """,
    )
)
_OF_SBATCH = frozenset(
    {"batch", "cpus-per-task", "get-user-env", "kill-on-invalid-dep", "no-requeue", "requeue", "wait-all-nodes"}
)
_OF_SRUN = frozenset(
    re.findall(
        r"\S+",
        """
        accel-bind bcast bcast-exclude compress cpu-bind disable-status epilog exact external immediate interactive
        label mpi msg-timeout no-allocate overlap preserve-env prolog pty quiet quit-on-interrupt relative send-libs
        slurmd-debug task-epilog task-prolog threads treewidth unbuffered wait whole
        """,
    )
)
_OF_PYXIS = frozenset(
    re.findall(
        r"\S+",
        """
        container-image container-mounts container-workdir container-name container-save container-env
        container-mount-home no-container-mount-home container-remap-root no-container-remap-root
        container-entrypoint no-container-entrypoint container-entrypoint-log container-writable container-readonly
        """,
    )
)
"""The options that NVIDIA's plugin adds: https://github.com/NVIDIA/pyxis."""

SWITCHES = frozenset(
    re.findall(
        r"\S+",
        """
        contiguous disable-status exact exclusive external hold interactive label no-allocate no-kill no-requeue
        overcommit overlap oversubscribe preserve-env pty quiet quit-on-interrupt reboot requeue spread-job stepmgr
        unbuffered use-min-nodes verbose whole container-mount-home no-container-mount-home container-remap-root
        no-container-remap-root container-entrypoint no-container-entrypoint container-entrypoint-log
        container-writable container-readonly
        """,
    )
)
"""Options without a value, or with other values than yes and no."""

_ONE_TASK = "mimo-launch starts one task per node, which starts the ranks"
_ENV = "variables are set by env in the config"
_SCRIPT = "mimo-launch writes the job script"
_NOT_OF_A_JOB = "it is not an option of a job"

_OURS_OF_BOTH = {
    "nodes": "pools set it",
    "ntasks": _ONE_TASK,
    "ntasks-per-node": _ONE_TASK,
    "ntasks-per-core": _ONE_TASK,
    "ntasks-per-gpu": _ONE_TASK,
    "ntasks-per-socket": _ONE_TASK,
    "gpus-per-task": "the one task of a node starts all its ranks; use gpus-per-node or gres",
    "clusters": "status, logs and cancel use the cluster of this machine",
    "cluster-constraint": "status, logs and cancel use the cluster of this machine",
    "output": "output goes to the run directory",
    "error": "output goes to the run directory",
    "open-mode": "output is appended to, so that a requeue does not overwrite it",
    "chdir": "the job runs in the directory where it was submitted",
    "export": _ENV,
    "export-file": _ENV,
    "help": _NOT_OF_A_JOB,
    "usage": _NOT_OF_A_JOB,
    "version": _NOT_OF_A_JOB,
}


@dataclass(frozen=True, kw_only=True)
class Command:
    """sbatch or srun. Plugins of a site add options that are not known here."""

    name: str
    ours: Mapping[str, str]
    """The options that mimo-launch sets itself, each with the reason."""
    others: frozenset[str]
    """All other options, as of Slurm 24.11."""

    @property
    def options(self) -> frozenset[str]:
        """All options without those of plugins."""
        return self.others | self.ours.keys()

    def completed(self, name: str) -> str:
        """The option that is meant: sbatch and srun accept an abbreviation of which there is one completion."""
        found = [option for option in self.options if option.startswith(name)]
        return found[0] if name not in found and len(found) == 1 else name


SBATCH = Command(
    name="sbatch",
    ours=_OURS_OF_BOTH
    | {
        "array": "a job is one run; submit it several times with different run_dirs",
        "wrap": _SCRIPT,
        "ignore-pbs": _SCRIPT,
        "parsable": "mimo-launch reads sbatch's output",
        "quiet": "mimo-launch reads sbatch's output",
        "wait": "mimo-launch logs JOB --follow waits",
        "test-only": "use --dry-run",
    },
    others=_OF_BOTH | _OF_SBATCH,
)
SRUN = Command(
    name="srun",
    ours=_OURS_OF_BOTH
    | {
        "cpus-per-task": "srun gets that of sbatch; write it under pools.NAME.slurm",
        "het-group": "one step runs on all pools",
        "pack-group": "one step runs on all pools",
        "kill-on-bad-exit": "a task that fails ends the step",
        "multi-prog": _SCRIPT,
        "jobid": _SCRIPT,
        "test-only": _NOT_OF_A_JOB,
    },
    others=_OF_BOTH | _OF_SRUN,
)


def is_of_pyxis(name: str) -> bool:
    """Whether an option is one of pyxis, of any release: `container` and `container-id` are Slurm's own."""
    return re.fullmatch(r"(no-)?container-.+", name) is not None and name not in _OF_BOTH


def is_of_plugin(name: str) -> bool:
    """Whether an option is one of a plugin, as far as it is not a misspelling."""
    return name not in SBATCH.options | SRUN.options and alike(name) is None


def alike(name: str) -> str | None:
    """The option of either command or of pyxis that an unknown one is probably a misspelling of."""
    words = SBATCH.options | SRUN.options | _OF_PYXIS
    found = difflib.get_close_matches(name.lstrip("-").replace("_", "-").lower(), sorted(words - {name}), n=1, cutoff=0.75)
    return found[0] if found and name not in words else None
