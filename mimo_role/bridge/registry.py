"""The bridges of one rank, by name."""

from collections.abc import Callable

import torch

from mimo_role.bridge.batch_ledger import BatchLedger
from mimo_role.bridge.bridge import Bridge
from mimo_role.bridge.nccl_channels import NcclChannels
from mimo_role.errors import AxisError, BridgeError
from mimo_role.resharding.endpoint import Endpoint
from mimo_role.resharding.samples import TokenSplit
from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY
from mimo_role.topology.grid import RankGrid
from mimo_role.topology.topology import Topology


class BridgeRegistry:
    """Makes each bridge at its first use. All bridges of a rank share its ledger and process groups."""

    def __init__(
        self,
        topology: Topology,
        rank: int,
        device: torch.device,
        *,
        channels: NcclChannels,
        ledger: BatchLedger,
        step: Callable[[], int],
    ) -> None:
        """
        Args:
            topology: the world.
            rank: this process's.
            device: where its tensors live.
            channels: the process groups of messages.
            ledger: matches headers and receipts.
            step: returns the script's current training step; -1 if it does not report steps.
        """
        self._topology = topology
        self._rank = rank
        self._device = device
        self._channels = channels
        self._ledger = ledger
        self._step = step
        self._bridges: dict[tuple[str, int | None], Bridge] = {}

    def get(self, module: str, stage: int | None, source: TokenSplit | None, destination: TokenSplit | None) -> Bridge:
        """`RoleContext.bridge`, which documents the arguments."""
        if (module, stage) not in self._bridges:
            self._bridges[module, stage] = self._make(module, stage, source, destination)
        bridge = self._bridges[module, stage]
        for asked, end in ((source, bridge.source), (destination, bridge.destination)):
            if asked is not None and asked != end.split:
                raise BridgeError(f"{bridge} has {end.split} at {end.module} stage {end.stage}; it cannot become {asked}")
        return bridge

    def leave(self) -> None:
        """Wait until all that was sent has been received, and leave the job together with the peers.

        Raises:
            BridgeError: a peer has sent what this rank never received, or has not received what this rank sent.
        """
        self._ledger.leave()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # a receipt is sent when a kernel is queued; now all have run

    def close(self) -> None:
        """Close the ledger, and destroy the process groups."""
        self._ledger.close()
        self._channels.destroy()

    def _make(self, module: str, stage: int | None, source: TokenSplit | None, destination: TokenSplit | None) -> Bridge:
        return Bridge(
            *self._endpoints(module, stage, source, destination),
            self._rank,
            self._device,
            self._number_of(module, stage),
            channels=self._channels.of(module, between_stages=stage is not None),
            ledger=self._ledger,
            step=self._step,
        )

    def _number_of(self, module: str, stage: int | None) -> int:
        """A module has a number for the bridge to the language module, then one for each of its stages but the last."""
        names = list(self._topology.grids)
        before = sum(self._grid(name).axis_size("pp") for name in names[: names.index(module)])
        return before if stage is None else before + 1 + stage

    def _endpoints(
        self, module: str, stage: int | None, source: TokenSplit | None, destination: TokenSplit | None
    ) -> tuple[Endpoint, Endpoint]:
        grid = self._grid(module)
        last = grid.axis_size("pp") - 1
        if stage is not None:
            if not 0 <= stage < last:
                raise BridgeError(f"module {module!r} has {last + 1} stages; no stage follows stage {stage}")
            split = source or destination or TokenSplit()
            return Endpoint(module, grid, stage, split), Endpoint(module, grid, stage + 1, split)
        if module == MIMO_LANGUAGE_MODULE_KEY:
            raise BridgeError("a bridge ends at the language module; name a modality module, or a stage")
        language = Endpoint(MIMO_LANGUAGE_MODULE_KEY, self._grid(MIMO_LANGUAGE_MODULE_KEY), 0, destination or TokenSplit())
        return Endpoint(module, grid, last, source or TokenSplit()), language

    def _grid(self, module: str) -> RankGrid:
        grid = self._topology.grids.get(module)
        if grid is None:
            raise AxisError(f"no module {module!r}; there are {', '.join(self._topology.grids)}")
        return grid
