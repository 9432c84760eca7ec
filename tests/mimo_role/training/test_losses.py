import math

import pytest
import torch

import mimo_role
from mimo_role import Topology
from mimo_role.testing import run_ranks

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(120)]

WORLD = Topology.from_modules({"vision": {}, "language": {"tp": 2, "cp": 2, "dp": 2}})
HELD = {(0, 0): [3, 1], (0, 1): [2, 0], (1, 0): [0, 0], (1, 1): [5, 4]}
"""Tokens of each micro-batch by (dp, cp); one place has none."""


def losses_of(place):
    """The loss of each token, by micro-batch."""
    generator = torch.Generator().manual_seed(10 * place[0] + place[1])
    return [torch.randn(count, generator=generator, dtype=torch.float64) for count in HELD[place]]


def means():
    ctx = mimo_role.current()
    nothing = float(ctx.mean_loss([], 0))
    if not ctx.role.has_language_module:
        return float(ctx.mean_loss([])), float(ctx.mean_loss([])), nothing, None
    coords = ctx.coords("language")
    place = (coords["dp"], coords["cp"])
    sums = [losses.requires_grad_().sum() for losses in losses_of(place)]
    count = ctx.token_count(torch.tensor(sum(HELD[place])))
    return (
        float(ctx.mean_loss([total / count for total in sums])),
        float(ctx.mean_loss(sums, sum(HELD[place]))),
        nothing,
        int(count),
    )


def test_mean_loss_is_the_mean_over_all_tokens_on_every_rank():
    found = run_ranks(means, WORLD)

    expected = float(torch.cat([losses for place in HELD for losses in losses_of(place)]).mean())
    assert [count for *_, count in found] == [None, *[15] * 8]
    for divided, given, nothing, _ in found:
        assert (divided, given) == found[0][:2]
        assert divided == pytest.approx(expected, rel=1e-14)
        assert given == pytest.approx(expected, rel=1e-14)
        assert math.isnan(nothing)
