"""A plan of a job whose ranks are debugged."""

from dataclasses import replace

from launcher.errors import LaunchError
from launcher.formatting import parse_ranges
from launcher.plan.launch_plan import LaunchPlan

_NO_LIMIT_S = 7 * 24 * 3600.0
"""A limit for collectives that no one reaches at a breakpoint; torch has no word for none."""
_WITHOUT_WATCHDOG = {"TORCH_NCCL_ENABLE_MONITORING": "0"}


def with_debuggers(plan: LaunchPlan, ranks: str | None, port: int | None, *, has_terminal: bool) -> LaunchPlan:
    """The plan with ranks that may use the terminal or listen for a debugger. Nothing ends ranks that wait for them.

    The only rank of a job may use the terminal in any case.

    Args:
        plan: the job's.
        ranks: the argument of `--debug`: `3`, or `0,4-5`. Default with a port: rank 0.
        port: the argument of `--debug-port`. Further ranks get the next ones.
        has_terminal: whether mimo-launch reads from a terminal.

    Raises:
        LaunchError: not a list of ranks of the job; or there is no terminal.
    """
    world_size = plan.topology.world_size
    if ranks is None and port is None:
        return replace(plan, debug=(0,) if world_size == 1 else ())
    if port is None and not has_terminal:
        raise LaunchError(
            "--debug: standard input is not a terminal; start the job at one, or add --debug-port 5678 for debugpy"
        )
    try:
        chosen = tuple(sorted(set(parse_ranges(ranks)))) if ranks is not None else (0,)
    except ValueError:
        raise LaunchError(f"--debug {ranks}: not a list of ranks; write 3, or 0,4-5") from None
    if outside := [rank for rank in chosen if rank >= world_size]:
        raise LaunchError(f"--debug {outside[0]}: no such rank; there are ranks 0-{world_size - 1}")
    if port is not None and not 0 < port <= 65536 - len(chosen):
        raise LaunchError(f"--debug-port {port}: not a port from 1 to {65536 - len(chosen)}")
    runtime = replace(plan.runtime, timeout_s=_NO_LIMIT_S, stall_timeout_s=0.0, stall_timeout_is_default=False)
    return replace(plan, debug=chosen, debug_port=port, runtime=runtime, env={**_WITHOUT_WATCHDOG, **plan.env})
