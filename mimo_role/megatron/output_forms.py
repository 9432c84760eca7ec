"""How the tensors of Megatron-Core's schedule cross a bridge: as which samples and tokens, and in which order of dimensions."""

from abc import ABC, abstractmethod

import torch

from mimo_role.bridge.activation_spec import ActivationSpec
from mimo_role.bridge.bridge import Bridge
from mimo_role.errors import BridgeError
from mimo_role.megatron.cp_parts import CpParts
from mimo_role.megatron.token_counts import token_counts
from mimo_role.resharding.endpoint import Endpoint, Place
from mimo_role.resharding.samples import Samples


class OutputForm:
    """The order of dimensions on either side of a bridge: samples are first on a bridge, the sequence is in the schedule."""

    def packed(self, tensor: torch.Tensor, spec: ActivationSpec) -> torch.Tensor:
        """An output, or the gradient of what was received, as the bridge transfers it."""
        return tensor.transpose(0, 1) if spec.is_dense else tensor

    def unpacked(self, tensor: torch.Tensor, spec: ActivationSpec) -> torch.Tensor:
        """What the bridge has transferred, as the schedule takes it."""
        return tensor.transpose(0, 1).contiguous() if spec.is_dense else tensor


class SendingForm(OutputForm, ABC):
    """What a stage hands over in a micro-batch."""

    @abstractmethod
    def spec_of(self, output: torch.Tensor) -> ActivationSpec:
        """The spec of an output.

        Raises:
            BridgeError: it has no such form.
        """


class ReceivingForm(OutputForm):
    """What a stage gets in a micro-batch. It learns the spec from the sender."""

    def __init__(self, samples: int) -> None:
        """`samples`: of a micro-batch, over all lanes."""
        self.samples = Samples(samples)


class StageForm(SendingForm):
    """Between stages of a module: each rank's tensor goes to its counterpart at the next stage, whatever its dimensions are.

    For the bridge it is a share of one sample of the lane, which all its ranks divide in the order of cp and tp.
    """

    def __init__(self, source: Endpoint) -> None:
        """`source` is the sending end, whose split is sequence-parallel."""
        self._lanes = source.lanes
        self._shares = source.cp * source.tp

    def spec_of(self, output: torch.Tensor) -> ActivationSpec:
        """The spec of `[rows, *]`."""
        samples = Samples(self._lanes, output.shape[0] * self._shares)
        return ActivationSpec(samples=samples, token_shape=tuple(output.shape[1:]), dtype=output.dtype)


class SentForm(SendingForm):
    """Between modules, on the sending side: `[tokens, hidden]`, samples behind each other, or `[sequence, batch, hidden]`."""

    def __init__(self, bridge: Bridge, place: Place, samples: int, tokens: int | None) -> None:
        """
        Args:
            bridge: leads to the other module.
            place: this rank's at its source.
            samples: of a micro-batch, over all lanes.
            tokens: of each sample, if that is fixed.
        """
        source, lanes = bridge.source, bridge.destination.lanes
        self._samples = Samples(samples)
        self._bridge = bridge
        self._tokens = tokens
        self._parts = source.cp * (source.tp if source.split.sequence_parallel else 1)
        """The ranks that divide the tokens of a sample."""
        self._own = self._samples.of_lane(place.lane, source.lanes, source=True)
        self._targets = {self._samples.lane_of(sample, lanes, source=False) for sample in self._own}
        """The lanes to which this one sends."""

    def spec_of(self, output: torch.Tensor) -> ActivationSpec:
        """The spec of a micro-batch, of which the token counts of other lanes' samples are 0."""
        if output.dim() == 3:
            samples = Samples(self._samples.count, output.shape[0] * self._parts)
            return ActivationSpec(samples=samples, token_shape=(output.shape[2],), dtype=output.dtype, is_dense=True)
        if output.dim() != 2:
            raise BridgeError(
                f"{self._bridge}: rank {self._bridge.rank} returned {list(output.shape)}; return [tokens, hidden] or "
                "[sequence, batch, hidden]"
            )
        counts = [0] * self._samples.count
        for sample, count in zip(self._own, self._counts(output), strict=True):
            counts[sample] = count
        return ActivationSpec(
            samples=Samples(self._samples.count, tuple(counts)), token_shape=(output.shape[1],), dtype=output.dtype
        )

    def _counts(self, output: torch.Tensor) -> list[int]:
        """The tokens of each sample of this lane, as far as the transfer depends on them."""
        given, rows = token_counts(output), output.shape[0]
        if given is None and rows == 0:
            given = [0] * len(self._own)
        elif given is None and self._tokens is not None:
            given = [self._tokens] * len(self._own)
        elif given is None and self._parts == 1 and len(self._targets) == 1:
            given = [rows, *[0] * (len(self._own) - 1)]  # all go to one lane, one behind the other
        if given is None:
            raise BridgeError(
                f"{self._bridge}: the {rows} rows of rank {self._bridge.rank} are {len(self._own)} samples, of which each may "
                "have another number of tokens; pass tokens= if it is fixed, or call "
                "mimo_role.megatron.set_token_counts(output, counts)"
            )
        if len(given) != len(self._own):
            raise BridgeError(
                f"{self._bridge}: rank {self._bridge.rank} has token counts of {len(given)} samples, but its lane has "
                f"{len(self._own)} of the {self._samples.count} samples of a micro-batch"
            )
        return given


class WholeForm(ReceivingForm):
    """Between modules, on a receiving side with several cp ranks: whole on each of them."""

    def __init__(self, samples: int, cp_parts: CpParts) -> None:
        """
        Args:
            samples: of a micro-batch, over all lanes.
            cp_parts: collects what the cp ranks of a lane receive.
        """
        super().__init__(samples)
        self._cp_parts = cp_parts

    def packed(self, tensor: torch.Tensor, spec: ActivationSpec) -> torch.Tensor:
        """The gradients of this rank's part, summed over cp, samples first. Collective over cp."""
        return self._cp_parts.own_sum(super().packed(tensor, spec), spec)

    def unpacked(self, tensor: torch.Tensor, spec: ActivationSpec) -> torch.Tensor:
        """All tokens, the sequence first. Collective over cp."""
        return super().unpacked(self._cp_parts.whole(tensor, spec), spec)
