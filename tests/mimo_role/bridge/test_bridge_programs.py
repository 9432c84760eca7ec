"""Random programs of bridge calls: each equals one process to the bit, or ends on every rank with an error; none hangs.

None waits in `mimo_role.shutdown()` until its limit either, which is longer here.

More of them: `BRIDGE_PROGRAMS=2000`; others: `BRIDGE_PROGRAMS_SEED=10000`.
"""

import os
import sys

import pytest

from mimo_role.testing import run_ranks
from tests.mimo_role.bridge.bridge_programs import LEAVE_LIMIT_S, oracle, program_of, run_programs

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(900)]

SEED = int(os.environ.get("BRIDGE_PROGRAMS_SEED", "0"))
COUNT = int(os.environ.get("BRIDGE_PROGRAMS", "300"))
ONCE_WRONG = (482, 902)
"""In these, a rank waited for a message that its peer had dropped."""
RANKS = 6


def test_a_random_program_equals_one_process_or_fails_on_every_rank():
    seeds = [*(ONCE_WRONG if "BRIDGE_PROGRAMS" not in os.environ else ()), *range(SEED, SEED + COUNT)]
    ranks = run_ranks(run_programs, RANKS, seeds, timeout_s=850)
    equal, failed, longest = 0, 0, (0.0, SEED)
    for at, seed in enumerate(seeds):
        program = program_of(seed)
        outcomes = [own[at] for own in ranks[: program.topology.world_size]]
        errors = [error for _, error, _ in outcomes]
        shown = f"program {seed} (BRIDGE_PROGRAMS_SEED={seed} BRIDGE_PROGRAMS=1): {program}\n{outcomes}"
        longest = max(longest, *((seconds, seed) for *_, seconds in outcomes))
        if any(errors):
            assert not program.is_regular, shown
            assert all(errors), shown
            assert all("bridge" in error and "batch" in error for error in errors), shown
            assert not any("timed out" in error for error in errors), shown
            failed += 1
        else:
            expected = oracle(program)
            assert expected is not None, shown
            assert [sorted(map(repr, numbers)) for numbers, *_ in outcomes] == [sorted(map(repr, own)) for own in expected], (
                shown
            )
            equal += 1
    counts = f"{equal} equal one process, {failed} failed"
    print(f"seeds {SEED}-{seeds[-1]}: {counts}; at most {longest[0]:.1f} s (seed {longest[1]})", file=sys.stderr)
    assert longest[0] < LEAVE_LIMIT_S, f"seed {longest[1]}: a rank that left waited for its peers without need"
    assert equal > COUNT // 4
    assert failed > COUNT // 8 or COUNT < 100
