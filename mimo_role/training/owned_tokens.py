"""The tokens of a sample that a rank owns under context and sequence parallelism."""

import torch

from mimo_role.resharding.endpoint import Endpoint, Side
from mimo_role.resharding.samples import Samples, TokenSplit
from mimo_role.topology.topology import Topology


def owned_tokens(topology: Topology, module: str, rank: int, length: int, split: TokenSplit) -> torch.Tensor:
    """The positions in the sample, ascending, on the CPU: int64 [tokens of this rank].

    Args:
        topology: the world.
        module: one of the rank's modules.
        rank: any rank.
        length: tokens of the sample, or of a sequence into which several are packed.
        split: how the module's ranks divide them.

    Raises:
        BridgeError: `length` is not a number of tokens.
    """
    grid = topology.grids[module]
    endpoint = Endpoint(module, grid, grid.coords(rank)["pp"], split)
    place = endpoint.place_of(rank)
    assert place is not None
    runs = Side(endpoint, Samples(1, length), is_source=False).tokens(0, place)
    return torch.cat([torch.arange(0), *(torch.arange(run.start, run.stop) for run in runs)])
