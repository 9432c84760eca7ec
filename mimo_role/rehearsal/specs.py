"""What senders describe of their batches (`Bridge.exchange_spec`), for the receivers that are rehearsed later."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mimo_role.bridge.activation_spec import ActivationSpec, pack_spec
from mimo_role.rehearsal.ledger import RehearsalLedger
from mimo_role.resharding.endpoint import Side
from mimo_role.resharding.handshake_peers import handshake_peers

_REMEMBERED = 4096

Exchange = tuple[int, int]
"""The numbers of a bridge and of one exchange over it."""


@dataclass(frozen=True)
class SentSpec:
    """What one rank has described in one exchange."""

    rank: int
    header: list[int]
    """As `activation_spec.pack_spec` makes it."""
    tokens: Mapping[int, int]
    """Of each sample of the rank's lane."""

    def tokens_of(self, samples: Sequence[int]) -> list[int]:
        """The tokens of samples of any lane: those of another lane have as many as the samples of this one, in their order."""
        own = list(self.tokens.values()) or [0]
        return [self.tokens.get(sample, own[number % len(own)]) for number, sample in enumerate(samples)]


class Specs:
    """The descriptions of this rank, and those of the ranks that were rehearsed earlier."""

    def __init__(self, seen: Iterable[Mapping[Exchange, SentSpec]]) -> None:
        """`seen`: what each of the earlier ranks has described."""
        self.sent: dict[Exchange, SentSpec] = {}
        """What this rank has described in its first exchanges."""
        self._seen: dict[Exchange, list[SentSpec]] = {}
        for of_rank in seen:
            for exchange, spec in of_rank.items():
                self._seen.setdefault(exchange, []).append(spec)

    def around(self, exchange: Callable[..., ActivationSpec]) -> Callable[..., ActivationSpec]:
        """What replaces `handshake.exchange`: before it, the descriptions of all senders arrive."""

        def exchange_with_known(
            source: Side,
            destination: Side,
            rank: int,
            spec: ActivationSpec | None,
            bridge: int,
            number: int,
            ledger: RehearsalLedger,
            place: str,
        ) -> ActivationSpec:
            own = None if spec is None else _described(source, rank, spec)
            if own is not None and len(self.sent) < _REMEMBERED:
                self.sent[bridge, number] = own
            for peer, samples in handshake_peers(rank, source, destination)[1]:
                if peer != rank:
                    known = self._of(peer, (bridge, number), own)
                    if known is None:
                        raise ledger.fail(
                            f"{place} waits for the spec of a batch from rank {peer}: exchange_spec() number {number} has been "
                            "called in no rehearsal of a rank that sends over this bridge"
                        )
                    ledger.spec_arrives(peer, bridge, number, known.header + known.tokens_of(samples))
            return exchange(source, destination, rank, spec, bridge, number, ledger, place)

        return exchange_with_known

    def _of(self, peer: int, exchange: Exchange, own: SentSpec | None) -> SentSpec | None:
        """The description of a peer, if it was rehearsed; otherwise that of another sender, with samples if there is one."""
        known = self._seen.get(exchange, [] if own is None else [own])
        return max(known, key=lambda spec: (spec.rank == peer, len(spec.tokens) > 0), default=None)


def _described(source: Side, rank: int, spec: ActivationSpec) -> SentSpec | None:
    place = source.endpoint.place_of(rank)
    if place is None:
        return None
    tokens = {sample: spec.samples.tokens_of(sample) for sample in source.of_lane(place.lane)}
    return SentSpec(rank, pack_spec(spec), tokens)
