"""Process groups used by bridges under NCCL."""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from mimo_role.bridge.message_tags import BATCHES
from mimo_role.bridge.messages import Channels
from mimo_role.groups.creation import (
    CreatedGroup,
    backend_options,
    create_group,
    free,
    new_group_of,
    uses_nccl,
    world_group,
)
from mimo_role.groups.names import CountedGroup, named, next_series
from mimo_role.groups.options import GroupOptions, lean
from mimo_role.resharding.connections import Pair, bridge_pairs
from mimo_role.resharding.message_groups import MessageGroup, Traffic, message_groups, ranks_of, rounds_of
from mimo_role.topology.stage_links import StageLink
from mimo_role.topology.topology import Topology


class NcclChannels:
    """Groups for activations, for gradients, and for messages among replicas. Under gloo there are none.

    There is a pair for the bridges between a module's stages, a pair for the bridges from a module to another, and one for the
    replicas of each lane. A bridge to a later stage gets a pair when it is made.

    NCCL runs a communicator's batches one after the other, and messages between two ranks in the order of posting. Over one
    communicator, activations would wait for gradients that wait for them, messages among replicas for the next batch, and
    messages of two bridges would be confused. Two ranks connect at their first message, for which each waits until the other
    has posted it. So all pairs that exchange messages when samples are split evenly connect here, in an order that all ranks
    share; other lanes connect at their first message. Gloo's messages have tags, so the world's group serves for all.
    """

    def __init__(
        self,
        topology: Topology,
        rank: int,
        device: torch.device,
        *,
        timeout: timedelta,
        options: Mapping[str, GroupOptions] | None = None,
    ) -> None:
        """Create and connect the groups. Collective over the world.

        Args:
            topology: the world.
            rank: this process's.
            device: where its tensors live.
            timeout: for each message.
            options: those of a module's groups, by its name; `lean` limits the CUDA blocks of the bridges' groups.
        """
        self._topology = topology
        self._rank = rank
        self._device = device
        self._timeout = timeout
        self._options = options or {}
        self._groups: dict[tuple[str, str, Traffic], dist.ProcessGroup] = {}
        self._later: dict[tuple[StageLink, Traffic], dist.ProcessGroup | None] = {}
        self._created: list[CreatedGroup] = []
        if not uses_nccl() or topology.world_size == 1:
            return
        series = next_series(world_group())
        for number, round_ in enumerate(rounds_of(message_groups(topology))):
            own = next((group for group in round_ if rank in group.ranks), None)
            with named(series, number):
                self._make(round_, own)
            if own is not None:
                _connect(self._groups[own.module, own.to, own.traffic], own.pairs_of(topology, rank), rank, device)

    def _make(
        self,
        round_: Iterable[MessageGroup],
        own: MessageGroup | None,
    ) -> None:
        """Create one round's groups. Collective over the world."""
        group = create_group(
            [row for group in round_ for row in group.rows],
            None if own is None else own.row_of(self._rank),
            group_desc="" if own is None else own.name,
            device=self._device,
            **self._settings(None if own is None else own.module),
        )
        self._created.append(group)
        if own is not None and not isinstance(group, CountedGroup):
            self._groups[own.module, own.to, own.traffic] = group

    def of(self, link: StageLink) -> Channels:
        """The groups for the bridges of a link. Collective over its ranks, the first time, if it leads to a later stage."""
        module, to = link.source.module, link.target.module
        if link.is_within_module:
            groups = [self._groups.get((module, to, traffic)) for traffic in (Traffic.STAGES_FORWARD, Traffic.STAGES_BACK)]
        elif link.target.stage == 0:
            groups = [self._groups.get((module, to, traffic)) for traffic in (Traffic.FORWARD, Traffic.BACK)]
        else:
            groups = [self._later_group(link, traffic) for traffic in (Traffic.FORWARD, Traffic.BACK)]
        return Channels(*groups, *(self._groups.get((name, name, Traffic.REPLICAS)) for name in (to, module)))

    def _later_group(self, link: StageLink, traffic: Traffic) -> dist.ProcessGroup | None:
        """The group for one direction of a link to a later stage, on its ranks."""
        if not self._groups:
            return None
        if (link, traffic) not in self._later:
            group = new_group_of(
                ranks_of(self._topology, link), group_desc=f"{link} {traffic.value}", **self._settings(link.source.module)
            )
            self._later[link, traffic] = group
            if group is not None:
                self._created.append(group)
                pairs = bridge_pairs(self._topology, [link], self._rank, back=traffic is Traffic.BACK)
                _connect(group, pairs, self._rank, self._device)
        return self._later[link, traffic]

    def _settings(self, module: str | None) -> dict[str, Any]:
        """What groups of a module's bridges are created with; `None` for those of other ranks."""
        options = GroupOptions() if module is None else self._options.get(module, GroupOptions())
        timeout = self._timeout if options.timeout_s is None else timedelta(seconds=options.timeout_s)
        return {"timeout": timeout, "pg_options": backend_options(lean(options))}

    @property
    def tags(self) -> int:
        """How many batches of a bridge in a row have different tags; 1 under NCCL, which has none."""
        return 1 if self._groups else BATCHES

    def destroy(self) -> None:
        """Destroy the groups, once."""
        for group in self._created:
            free(group)
        self._created.clear()
        self._groups.clear()
        self._later.clear()


def _connect(group: dist.ProcessGroup, pairs: set[Pair], rank: int, device: torch.device) -> None:
    """Send a number from the first rank of each pair to the second."""
    operations = []
    for sender, receiver in sorted(pairs, key=lambda pair: (min(pair), max(pair), pair)):
        number = torch.zeros(1, device=device)
        verb, peer = (dist.isend, receiver) if sender == rank else (dist.irecv, sender)
        operations.append(dist.P2POp(verb, number, peer, group))
    for work in dist.batch_isend_irecv(operations) if operations else ():
        work.wait()
