"""What torch's own APIs give over a rehearsed world: the same as on gloo ranks that have the same."""

import pytest

from mimo_role.testing import run_ranks
from tests.mimo_role.rehearsal.torch_programs import (
    PROGRAMS,
    SIZE,
    UNSUPPORTED,
    outcomes_in_a_rehearsal,
    outcomes_on_real_ranks,
)

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """On each rank, what a rehearsal gives and what real ranks give."""
    real = run_ranks(outcomes_on_real_ranks, SIZE, timeout_s=140)
    folder = tmp_path_factory.mktemp("board")
    return list(zip(run_ranks(outcomes_in_a_rehearsal, SIZE, folder, PROGRAMS, SIZE, timeout_s=140), real, strict=True))


@pytest.mark.parametrize("name", [program.__name__ for program in PROGRAMS])
def test_a_program_gives_what_equal_gloo_ranks_give(both, name):
    if both[0][1][name] == UNSUPPORTED:
        pytest.skip("gloo of this torch lacks it")
    for rehearsed, real in both:
        assert rehearsed[name] == real[name]
