"""What the two sides of a bridge must agree on before a batch is transferred."""

import math
import struct
import zlib
from collections.abc import Iterable
from dataclasses import replace

from mimo_role.bridge.activation_spec import (
    SPEC_NUMBERS,
    ActivationSpec,
    describe_form,
    have_equal_form,
    pack_spec,
    unpack_spec,
)
from mimo_role.bridge.batch_ledger import BatchLedger
from mimo_role.resharding.endpoint import Endpoint, Side
from mimo_role.resharding.handshake_peers import handshake_peers
from mimo_role.resharding.samples import Samples

_DESCRIPTION = struct.Struct(f"<{SPEC_NUMBERS + 2}q")
"""A spec, a checksum of splits and lanes, and one of token counts."""


class Description:
    """What the two sides of a bridge must agree on in one batch, as bytes that a header carries."""

    def __init__(self, source: Side, destination: Side, spec: ActivationSpec) -> None:
        """
        Args:
            source, destination: both ends with the batch's samples.
            spec: the batch's.
        """
        self._source = source
        self._destination = destination
        self._samples = spec.samples
        self._header = pack_spec(spec)
        lanes = spec.samples.source_lanes, spec.samples.destination_lanes
        self._agreed = _checksum([source.endpoint.split, destination.endpoint.split, lanes])

    def between(self, source_rank: int, destination_rank: int) -> bytes:
        """The description of what is transferred from one rank to the other, or back."""
        tokens = self._tokens(source_rank, destination_rank)
        return _DESCRIPTION.pack(*self._header, self._agreed, _checksum(tokens.values()))

    def difference(self, source_rank: int, destination_rank: int, theirs: bytes) -> tuple[str, str] | None:
        """What this rank expects and what the other one has described, for messages; `None` if they agree.

        Args:
            source_rank, destination_rank: the two ranks.
            theirs: the other's description.
        """
        *header, agreed, checksum = _DESCRIPTION.unpack(theirs)
        mine = self._header
        if not have_equal_form(header, mine):
            counts = f" of a batch of {mine[1]}", f" of a batch of {header[1]}"
            expected, found = (
                describe_form(numbers) + (count if header[1] != mine[1] else "")
                for numbers, count in zip((mine, header), counts, strict=True)
            )
            return expected, found
        if agreed != self._agreed:
            return "token splits, source_lanes and destination_lanes that are the same on all ranks", "others"
        tokens = self._tokens(source_rank, destination_rank)
        if checksum != _checksum(tokens.values()):
            counted = ", ".join(f"{count} in sample {sample}" for sample, count in list(tokens.items())[:8])
            return f"token counts of {counted}{', ...' if len(tokens) > 8 else ''}", "others"
        return None

    def _tokens(self, source_rank: int, destination_rank: int) -> dict[int, int]:
        """By sample, the token counts of what is transferred from one rank's lane to the other's."""
        at_source = self._source.endpoint.place_of(source_rank)
        at_destination = self._destination.endpoint.place_of(destination_rank)
        if at_source is None or at_destination is None:  # replicas of one lane
            return {}
        common = (
            sample
            for sample in self._source.of_lane(at_source.lane)
            if self._destination.lane_of(sample) == at_destination.lane
        )
        return {sample: self._samples.tokens_of(sample) for sample in common}


def first_batch_peers(source: Endpoint, destination: Endpoint, rank: int) -> tuple[list[int], list[int]]:
    """The peers to and from which a header of a bridge's first batch is sent, with or without data.

    Each destination rank gets one from every source lane with which it has common samples in any batch that is split evenly.
    """
    samples = Samples(math.lcm(source.lanes, destination.lanes))
    receivers, senders = handshake_peers(rank, Side(source, samples, True), Side(destination, samples, False))
    return [peer for peer, _ in receivers if peer != rank], [peer for peer, _ in senders if peer != rank]


def exchange(
    source: Side,
    destination: Side,
    rank: int,
    spec: ActivationSpec | None,
    bridge: int,
    number: int,
    ledger: BatchLedger,
    place: str,
) -> ActivationSpec:
    """Send destination ranks the description of their samples, in one frame from each source lane.

    Args:
        source, destination: both ends with the samples, as far as the rank knows them.
        rank: this process's.
        spec: on a sender, what it sends.
        bridge, number: numbers of the bridge and of this exchange.
        ledger: sends the frames and waits for them.
        place: the bridge and this rank, for messages.

    Raises:
        BridgeError: a source lane did not answer within the timeout, or source lanes disagree.
    """
    receivers, senders = handshake_peers(rank, source, destination)
    described: dict[int, list[int]] = {}
    for peer, common in receivers:
        assert spec is not None
        values = pack_spec(spec) + [spec.samples.tokens_of(sample) for sample in common]
        if peer == rank:
            described[rank] = values
        else:
            ledger.send_spec(peer, bridge, number, values)
    if spec is not None and not senders:
        return spec
    tokens, headers = [0] * destination.samples.count, []
    if spec is not None and (place_of_rank := source.endpoint.place_of(rank)) is not None:
        for sample in source.of_lane(place_of_rank.lane):
            tokens[sample] = spec.samples.tokens_of(sample)
    others = [peer for peer, _ in senders if peer != rank]
    described |= zip(others, ledger.wait_for_specs(others, bridge, number, place), strict=True)
    for peer, common in senders:
        values = described[peer]
        found = len(values) - SPEC_NUMBERS
        if found != len(common):
            raise ledger.fail(
                f"{place} expects {len(common)} samples from rank {peer}, which describes {found}; "
                "all ranks call exchange_spec() with the same number of samples and the same lanes"
            )
        headers.append((peer, values[:SPEC_NUMBERS]))
        for sample, count in zip(common, values[SPEC_NUMBERS:], strict=True):
            tokens[sample] = count
    (first, header), *rest = headers
    for peer, other in rest:
        if not have_equal_form(other, header):
            expected, found_form = describe_form(header), describe_form(other)
            raise ledger.fail(f"{place}: rank {first} sends {expected}, but rank {peer} sends {found_form}")
    return unpack_spec(header, replace(destination.samples, tokens=tuple(tokens)))


def _checksum(values: Iterable[object]) -> int:
    return zlib.crc32(repr(list(values)).encode())
