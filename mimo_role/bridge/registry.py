"""The bridges of one rank, by name."""

from collections.abc import Callable

import torch

from mimo_role.bridge.batch_ledger import BatchLedger
from mimo_role.bridge.bridge import Bridge
from mimo_role.bridge.nccl_channels import NcclChannels
from mimo_role.errors import AxisError, BridgeError
from mimo_role.resharding.endpoint import Endpoint
from mimo_role.resharding.samples import TokenSplit
from mimo_role.topology.grid import RankGrid
from mimo_role.topology.stage_links import StageId, StageLink, last_stage, stage_links
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
        self._links = {link: number for number, link in enumerate(stage_links(topology))}
        self._bridges: dict[tuple[StageLink, int], Bridge] = {}

    def get(self, link: StageLink, tensor: int, source: TokenSplit | None, destination: TokenSplit | None) -> Bridge:
        """The bridge of a link for one of the tensors that cross it at once.

        Args:
            link: a link of the topology.
            tensor: its number among those tensors.
            source: the split of the tokens on the sending side; `None` for that of the existing bridge, or the default.
            destination: the same for the receiving side.

        Raises:
            BridgeError: the bridge was made with other splits.
        """
        if (link, tensor) not in self._bridges:
            self._bridges[link, tensor] = self._make(link, tensor, source, destination)
        bridge = self._bridges[link, tensor]
        for asked, end in ((source, bridge.source), (destination, bridge.destination)):
            if asked is not None and asked != end.split:
                raise BridgeError(f"{bridge} has {end.split} at {end.module} stage {end.stage}; it cannot become {asked}")
        return bridge

    def link_of(self, module: str, stage: int | None, to: str | None, to_stage: int) -> StageLink:
        """The link that the arguments of `RoleContext.bridge` name.

        Raises:
            AxisError: there is no such module.
            BridgeError: there is no such link.
        """
        grid = self._grid(module)
        if stage is not None and (to is not None or to_stage):
            raise BridgeError(f"stage={stage} names the bridge to the next stage of {module!r}; pass no to and to_stage")
        if stage is not None:
            stages = grid.axis_size("pp")
            if not 0 <= stage < stages - 1:
                raise BridgeError(f"module {module!r} has {stages} stages; no stage follows stage {stage}")
            return StageLink(StageId(module, stage), StageId(module, stage + 1))
        target = self._target(module, to)
        stages = self._grid(target).axis_size("pp")
        if not 0 <= to_stage < stages:
            raise BridgeError(f"to_stage={to_stage}: module {target!r} has {stages} stages, from 0")
        return StageLink(last_stage(self._topology, module), StageId(target, to_stage))

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

    def _target(self, module: str, to: str | None) -> str:
        """The module at which a bridge from a module's last stage ends."""
        targets = self._topology.module_graph.feeds[module]
        if not targets:
            raise BridgeError(
                f"no bridge begins at the last stage of {module!r}, whose output no module takes; name another "
                "module (modules.NAME.after has what NAME takes), or a stage"
            )
        if to is None and len(targets) > 1:
            raise BridgeError(f"{module!r} feeds {', '.join(targets)}; name one of them with to=")
        if to is not None and to not in targets:
            self._grid(to)
            raise BridgeError(f"{module!r} feeds {', '.join(targets)}, not {to!r}; modules.{to}.after names what {to!r} takes")
        return targets[0] if to is None else to

    def _make(self, link: StageLink, tensor: int, source: TokenSplit | None, destination: TokenSplit | None) -> Bridge:
        if link.is_within_module:
            source = destination = source or destination
        begin, end = (
            Endpoint(at.module, self._grid(at.module), at.stage, split or TokenSplit())
            for at, split in zip(link, (source, destination), strict=True)
        )
        return Bridge(
            begin,
            end,
            self._rank,
            self._device,
            self._links[link] + tensor * len(self._links),
            channels=self._channels.of(link),
            ledger=self._ledger,
            step=self._step,
        )

    def _grid(self, module: str) -> RankGrid:
        grid = self._topology.grids.get(module)
        if grid is None:
            raise AxisError(f"no module {module!r}; there are {', '.join(self._topology.grids)}")
        return grid
