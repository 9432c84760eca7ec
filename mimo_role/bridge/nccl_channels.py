"""Process groups used by bridges under NCCL."""

from collections.abc import Iterable, Mapping
from datetime import timedelta

import torch
import torch.distributed as dist

from mimo_role.bridge.message_tags import BATCHES
from mimo_role.bridge.messages import Channels
from mimo_role.groups.creation import CreatedGroup, backend_options, create_group, free, uses_nccl, world_group
from mimo_role.groups.names import CountedGroup, named, next_series
from mimo_role.groups.options import GroupOptions, lean
from mimo_role.resharding.connections import Pair
from mimo_role.resharding.message_groups import MessageGroup, Traffic, message_groups, rounds_of
from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY
from mimo_role.topology.topology import Topology


class NcclChannels:
    """Groups for activations, for gradients, and for messages among replicas. Under gloo there are none.

    There is a pair for the bridges between a module's stages, a pair for the bridge to the language module, and one for the
    replicas of each lane.

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
        self._groups: dict[tuple[str, Traffic], dist.ProcessGroup] = {}
        self._created: list[CreatedGroup] = []
        if not uses_nccl() or topology.world_size == 1:
            return
        series = next_series(world_group())
        for number, round_ in enumerate(rounds_of(message_groups(topology))):
            own = next((group for group in round_ if rank in group.ranks), None)
            with named(series, number):
                self._make(round_, own, rank, device, timeout, options or {})
            if own is not None:
                _connect(self._groups[own.module, own.traffic], own.pairs_of(topology, rank), rank, device)

    def _make(
        self,
        round_: Iterable[MessageGroup],
        own: MessageGroup | None,
        rank: int,
        device: torch.device,
        timeout: timedelta,
        options: Mapping[str, GroupOptions],
    ) -> None:
        """Create one round's groups. Collective over the world."""
        settings = GroupOptions() if own is None else options.get(own.module, GroupOptions())
        group = create_group(
            [row for group in round_ for row in group.rows],
            None if own is None else own.row_of(rank),
            timeout=timeout if settings.timeout_s is None else timedelta(seconds=settings.timeout_s),
            pg_options=backend_options(lean(settings)),
            group_desc="" if own is None else own.name,
            device=device,
        )
        self._created.append(group)
        if own is not None and not isinstance(group, CountedGroup):
            self._groups[own.module, own.traffic] = group

    def of(self, module: str, *, between_stages: bool) -> Channels:
        """The groups for the bridges between a module's stages, or for the one from it to the language module."""
        if between_stages:
            traffics, receivers = (Traffic.STAGES_FORWARD, Traffic.STAGES_BACK), (module, module)
        else:
            traffics, receivers = (Traffic.FORWARD, Traffic.BACK), (MIMO_LANGUAGE_MODULE_KEY, module)
        return Channels(
            *(self._groups.get((module, traffic)) for traffic in traffics),
            *(self._groups.get((receiver, Traffic.REPLICAS)) for receiver in receivers),
        )

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


def _connect(group: dist.ProcessGroup, pairs: set[Pair], rank: int, device: torch.device) -> None:
    """Send a number from the first rank of each pair to the second."""
    operations = []
    for sender, receiver in sorted(pairs, key=lambda pair: (min(pair), max(pair), pair)):
        number = torch.zeros(1, device=device)
        verb, peer = (dist.isend, receiver) if sender == rank else (dist.irecv, sender)
        operations.append(dist.P2POp(verb, number, peer, group))
    for work in dist.batch_isend_irecv(operations) if operations else ():
        work.wait()
