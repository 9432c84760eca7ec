"""Ranks that make no progress, or never come."""

import os
import signal

import pytest

from tests.faults.harness import IS_SPAWNED_RANK, LAYOUTS, Fault, Run, suffer, words_of

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(120)]

STEPS = "import torch, torch.distributed as dist, mimo_role\ncontext = mimo_role.current()\ncontext.step(3)\n"
TALKS = "dist.all_reduce(torch.ones(()))\n"

# Each rank is in a collective but for the last one.
ONE_IS_MISSING = STEPS + "dist.barrier()\nif bad:\n    {}\ndist.all_reduce(torch.ones(()))\n"

# Before it has come to a step, while the others go through theirs.
IN_AN_IMPORT = """
if bad:
    Path("endless.py").write_text("import time\\ntime.sleep(1000)")
    import endless
""" + ONE_IS_MISSING.format("pass").replace("dist.barrier()\n", "")

# Rank 1 waits in the world, rank 2 in the group of both.
OTHER_ORDER = (
    STEPS
    + """
pair = context.group("language", "tp") if rank else None
dist.all_reduce(torch.ones(()), group=pair if bad else None)
dist.all_reduce(torch.ones(()), group=None if bad or rank == 0 else pair)
"""
)

OTHER_ORDER_COLOCATED = (
    STEPS
    + """
world, other = None, dist.new_group([0, 1], group_desc="mine")
for group in (world, other) if bad else (other, world):
    dist.all_reduce(torch.ones(()), group=group)
"""
)

LOADER = (
    STEPS
    + """
from torch.utils.data import DataLoader, Dataset
class Slow(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        time.sleep(1000 if bad and index == 2 else 0)
        return index
for _ in DataLoader(Slow(), num_workers=1, multiprocessing_context="fork"):
    dist.all_reduce(torch.ones(()))
"""
)

SCHEDULE_OF_STEPS = (
    STEPS
    + """
for step in range(4, 8):
    context.step(step)
    dist.all_reduce(torch.ones(()))
if bad:
    os.kill(os.getpid(), signal.SIGSTOP)
dist.all_reduce(torch.ones(()))
"""
)


def stop_a_rank(run: Run) -> None:
    os.kill(run.pid(), signal.SIGSTOP)


def stop_a_rank_at_its_start(run: Run) -> None:
    """Before it has imported anything: spawned ranks come one after the other, in the order of their numbers."""
    size = len(run.fault.place.labels)
    run.wait_until(lambda: len(_spawned(run)) == size, "interpreters to start")
    os.kill(_spawned(run)[-1], signal.SIGSTOP)


def _spawned(run: Run) -> list[int]:
    return [pid for pid in run.ranks() if b"program.py\0run" in words_of(pid)]


def hang(layout: str, script: str, *says: str, **more) -> Fault:
    words = ("runtime.stall_timeout_s=1",)
    return Fault(layout=layout, script=script, code=124, outcome="stalled", says=says, words=words, **more)


def _inside(layout: str) -> str:
    place = LAYOUTS[layout]
    others = ", ".join(place.rank(number) for number in range(len(place.labels) - 1))
    return f"of the world (ranks 0-{len(place.labels) - 1}): {others} inside; not entered by {{culprit}}"


HANGS = [
    *(
        pytest.param(
            hang(
                layout,
                ONE_IS_MISSING.format("time.sleep(1000)"),
                "no progress in step 3 for 1 s: {culprit} held up the others",
                "all_reduce number ",
                _inside(layout),
                "script.py:",
            ),
            id=f"a collective that a rank does not enter, {layout}",
        )
        for layout in ("non_colocated", "colocated", "spawn")
    ),
    pytest.param(
        hang("non_colocated", ONE_IS_MISSING.format("while True: pass"), "{culprit} held up the others", "script.py:"),
        id="an endless loop in Python",
    ),
    pytest.param(
        hang(
            "colocated",
            ONE_IS_MISSING.format("__import__('re').match('(a+)+$', 'a' * 64 + 'b')"),
            "{culprit} held up the others",
            "script.py:",
        ),
        id="a call in C that holds the interpreter",
    ),
    pytest.param(
        hang(
            "non_colocated",
            OTHER_ORDER,
            "they wait for each other: some ranks call collectives in a different order",
            "not entered by rank 1 (language.tp0)",
            "not entered by rank 2 (language.tp1)",
            names="no progress in step 3",
        ),
        id="collectives in another order, the world and a group",
    ),
    pytest.param(
        hang(
            "colocated",
            OTHER_ORDER_COLOCATED,
            "they wait for each other: some ranks call collectives in a different order",
            "of the world (ranks 0-1)",
            "of mine (ranks 0-1)",
            names="no progress in step 3",
        ),
        id="collectives in another order, two groups",
    ),
    pytest.param(
        hang("non_colocated", LOADER, "{culprit} held up the others", "script.py:", "dataloader.py"),
        id="a data-loader worker that gives nothing",
    ),
    pytest.param(
        hang("colocated", SCHEDULE_OF_STEPS, "no progress in step 7", "{culprit}, process ", " is stopped; kill -CONT "),
        id="a rank that stops itself",
    ),
    *(
        pytest.param(
            hang(
                layout,
                IN_AN_IMPORT,
                "no progress in step 3 for 1 s: {culprit} held up the others",
                _inside(layout),
                "endless.py:2 in <module>",
                "import endless",
            ),
            id=f"an import, {layout}",
        )
        for layout in ("non_colocated", "pipeline", "spawn")
    ),
    pytest.param(
        hang("pipeline", STEPS + "talk()", "{culprit}, process ", " is stopped; kill -CONT ", strike=stop_a_rank),
        id="SIGSTOP to a rank, pipeline",
    ),
    pytest.param(
        hang(
            "non_colocated",
            STEPS + "time.sleep(1000)",
            "no progress in step 3 for 1 s",
            "rank 0 (vision), rank 1 (language.tp0), rank 2 (language.tp1) are at",
            names="no progress in step 3",
        ),
        id="all ranks sleep",
    ),
]

ARRIVALS = [
    pytest.param(
        Fault(
            layout="spawn",
            code=124,
            outcome="stalled",
            names="r2 language.tp1 on node0 (",
            has_prelude=False,
            script="",
            words=("runtime.timeout_s=5",),
            strike=stop_a_rank_at_its_start,
            says=("did not come to join within 5 s, runtime.timeout_s", "of 2 are here"),
        ),
        id="a rank that is stopped at its start",
    ),
]


@pytest.mark.parametrize("fault", [*HANGS, *ARRIVALS])
def test_a_hang_ends_and_says_who_holds_up_whom(job, fault):
    suffer(job, fault)


def test_ranks_that_never_start(job):
    """An interpreter that does not come to its first line: something in the environment, such as a home that hangs."""
    (job.folder / "sitecustomize.py").write_text(f"import sys, time\nif {IS_SPAWNED_RANK}:\n    time.sleep(1000)\n")
    job.environ["PYTHONPATH"] = f"{job.folder}:{job.whole_environ()['PYTHONPATH']}"
    says = ("r0 vision on node0", "r1 language.tp0 on node0", "r2 language.tp1 on node0", "language: 0 of 2 are here")
    suffer(
        job,
        Fault(
            layout="spawn",
            code=124,
            outcome="stalled",
            names="did not come to join within 3 s",
            says=says,
            script="",
            has_prelude=False,
            words=("runtime.timeout_s=3",),
        ),
    )


# The script creates the world, with a limit that is not runtime.timeout_s: what blocks in joining has no end of its own,
# as the creation of a communicator of NCCL. The bad rank starts `init()` late, or stops in it.
JOINING = """
import datetime
import torch.distributed as dist
import mimo_role
dist.init_process_group("gloo", timeout=datetime.timedelta(hours=1))
dist.barrier()
if bad:
    {}
mimo_role.init()
talk()
"""
STOPS_IN_INIT = """import mimo_role.lifecycle
    mimo_role.lifecycle.check_same_topology = lambda *_: os.kill(os.getpid(), signal.SIGSTOP)"""


def joining(action: str, *says: str) -> Fault:
    return Fault(
        script=JOINING.format(action),
        code=124,
        outcome="stalled",
        names="longer than runtime.timeout_s: {culprit} held up the others",
        words=("runtime.timeout_s=2", "runtime.join=script"),
        says=("joining has taken ", *says),
    )


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(
            joining(
                "time.sleep(1000)",
                "joining: rank 0 (vision), rank 1 (language.tp0); not joining: {culprit}",
                "time.sleep(1000)",
                "stacks of all ranks",
            ),
            id="a rank that does not come",
        ),
        pytest.param(
            joining(STOPS_IN_INIT, "{culprit}; not joining: no rank", "{culprit}, process ", " is stopped; kill -CONT "),
            id="a rank that stops while it joins",
        ),
    ],
)
def test_ranks_that_have_been_joining_for_too_long_end_the_job(job, fault):
    suffer(job, fault)
