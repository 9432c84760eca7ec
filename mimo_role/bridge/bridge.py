"""Activations and gradients between two stages: single steps for a schedule, or one call through autograd."""

import torch

from mimo_role.bridge.activation_spec import ActivationSpec
from mimo_role.bridge.autograd import Passage, cross_together
from mimo_role.bridge.bridge_base import BridgeBase
from mimo_role.errors import BridgeError


class Bridge(BridgeBase):
    """Transfers batches of activations from one stage to another, and their gradients back.

    The two sides may have any grids, on different ranks or on the same. Bridges are made by `RoleContext.bridge`; every rank of
    both sides calls them in the same order. Activations have a row for each token, sample after sample (`ActivationSpec`); a
    rank's tensor has the samples of its lane, and of these the tokens that it owns.

    A call of a bridge is one autograd node. `send_forward` and the other single steps are for pipeline schedules; each makes a
    `Transfer`, which runs beside other work between its `start()` and `wait()`. The first forward on one side is the first on
    the other, and so on. So are backwards, except those of autograd, which belong to their forward in any order. Every batch
    has a header that the receiver compares with the batch it expects; a difference is an error on both sides.
    """

    def __call__(
        self,
        activations: torch.Tensor | None = None,
        *,
        spec: ActivationSpec | None = None,
        batch_size: int | None = None,
        sample_shape: tuple[int, ...] | None = None,
        dtype: torch.dtype | None = None,
        requires_grad: bool = True,
    ) -> torch.Tensor:
        """Send and receive one batch.

        Args:
            activations: this rank's, on a sender: a plain tensor, or a DTensor that is placed as the side divides its tokens.
            spec: the activations of the batch; or for samples of one shape the next three instead.
            batch_size: samples in the global batch, over all lanes.
            sample_shape: of the activations; needed on a rank that only receives.
            dtype: likewise.
            requires_grad: whether gradients come back; the same on both sides. Under `torch.no_grad()` none do.

        Returns:
            On a receiver, its lane's activations. Their gradients are sent back once: backward passes that reach them before
            this rank's next call of a bridge or step of an optimizer add up; if none does, zeros are sent. On a rank that only
            sends, a zero: its `backward()` waits for the gradients and continues into `activations`.

        Raises:
            BridgeError: this rank is on neither side, the tensor does not fit, the other side sends or expects another batch,
                or has left, exited or died; or activation checkpointing repeats the call.
        """
        if spec is None:
            spec = self._spec_of(activations, batch_size, sample_shape, dtype)
        return cross_together([Passage(self, spec, activations)], requires_grad=requires_grad)[0]

    def _spec_of(
        self,
        activations: torch.Tensor | None,
        batch_size: int | None,
        sample_shape: tuple[int, ...] | None,
        dtype: torch.dtype | None,
    ) -> ActivationSpec:
        self.check_takes_part()
        if batch_size is None:
            raise BridgeError(f"{self} needs a spec, or batch_size")
        if activations is not None and self.is_sender:
            sample_shape, dtype = self._sample_shape(activations, sample_shape), activations.dtype
        elif self.is_sender:
            raise BridgeError(f"rank {self.rank} sends over {self}; pass its lane's activations")
        elif activations is not None:
            raise BridgeError(f"rank {self.rank} only receives over {self}; pass no activations")
        if sample_shape is None or dtype is None:
            raise BridgeError(f"rank {self.rank} only receives over {self}; pass sample_shape and dtype")
        return ActivationSpec.of(batch_size, tuple(sample_shape), dtype)

    def _sample_shape(self, activations: torch.Tensor, whole: tuple[int, ...] | None) -> tuple[int, ...]:
        """The shape of a whole sample. A rank that has a part of each sample's tokens cannot know their number."""
        if self.source.cp > 1 or self.source.split.sequence_parallel:
            if whole is None:
                raise BridgeError(f"rank {self.rank} has parts of samples over {self}; pass sample_shape, of whole samples")
            return whole
        return tuple(activations.shape[1:])
