"""Live views of made-up runs."""

from dataclasses import replace

from launcher.live.view import LiveView, ModuleView, SlowestRank
from launcher.stragglers.straggler import Straggler


def module(name="language", ranks=2, **more):
    """A module of which all is known."""
    known = ModuleView(
        ranks=ranks,
        steps_per_s=3.1,
        samples_per_s=99.2,
        tokens_per_s=12_400.0,
        compute=0.71,
        collectives=0.05,
        bridge_wait=0.12,
        bubble=0.08,
        peak_gib=23.14,
        slowest=SlowestRank(rank=3, label=f"{name}.dp1.tp0", node="node0 (alpha)", compute_s=0.212),
    )
    return replace(known, **more)


def straggler(rank=3, **more):
    """One that computes 1.4 times as long as its peers."""
    return Straggler(rank=rank, label=f"language.dp{rank}", node="alpha", ratio=1.4, since_step=312, share=0.1, **more)


def live_view(**more):
    """A run of two modules at step 412 of 2,000."""
    known = LiveView(
        run="digits",
        attempt=0,
        time=1720.0,
        began=1000.0,
        interval_s=1.0,
        world_size=6,
        recording=6,
        step=412,
        total_steps=2000,
        step_s=0.3225,
        eta_s=512.1,
        scalars={"lr": 3e-4, "loss": 2.3141},
        modules={"vision": module("vision", 4, tokens_per_s=None), "language": module()},
    )
    return replace(known, **more)
