"""The memory from which one rank sends and into which it receives in one transfer."""

import torch

from mimo_role.bridge.buffer_pool import BufferPool
from mimo_role.bridge.local_end import LocalEnd
from mimo_role.bridge.messages import is_one_operation
from mimo_role.bridge.parts import Part

_CARRIERS = {1: torch.uint8, 2: torch.bfloat16, 4: torch.int32, 8: torch.int64}
"""By bytes of an element, a dtype that every backend transfers; only the bits matter."""

_TRANSFERRED_AS_THEY_ARE = {
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int8,
    torch.uint8,
}


class TransferTensors:
    """Cuts what is sent into parts, and puts the parts that are received together."""

    def __init__(
        self, end: LocalEnd, source: torch.Tensor | None, result: torch.Tensor | None, pool: BufferPool, *, copy: bool
    ) -> None:
        """
        Args:
            end: this rank's end of the bridge.
            source: what is sent, a plain tensor of the end's shape; `None` on a rank that only receives.
            result: where it is received, contiguous, of the end's shape; `None` on a rank that only sends.
            pool: memory for parts that are not contiguous.
            copy: whether what is sent is copied first, so that `source` may change before it has been received.
        """
        self.result = result
        self._end = end
        self._pool = pool
        self._copy = copy
        self._source = None if source is None else _as_carrier(source.detach() if source.requires_grad else source).reshape(-1)
        self._result = None if result is None else _as_carrier(result).view(-1)
        self._staging: list[torch.Tensor | None] = []
        """For each overlap that is received: memory for it if it is not contiguous in the result."""

    def allocate(self) -> None:
        """Take staging memory, once."""
        if not self._staging:
            overlaps = self._end.plan.receive_overlaps
            self._staging = [
                self._staging_for(overlap.rows) if is_staged else None
                for overlap, is_staged in zip(overlaps, self._end.parts.is_staged, strict=True)
            ]

    @property
    def is_one_operation(self) -> bool:
        """Whether the receives of a batch are one operation; otherwise replicas' messages are posted from the start."""
        return self.result is not None and is_one_operation(self.result)

    def outgoing(self, part: Part) -> torch.Tensor:
        """What is sent as one part."""
        assert self._source is not None
        pieces = [_cut(self._source, start, stop) for start, stop in part.pieces]
        if len(pieces) > 1:
            return torch.cat(pieces, out=self._pool.take((part.stop - part.start,), self._source.dtype))
        return pieces[0].clone() if self._copy else pieces[0]

    def incoming(self, part: Part) -> torch.Tensor:
        """Where one part is received."""
        assert self._result is not None
        staging = self._staging[part.overlap]
        return _cut(staging, part.start, part.stop) if staging is not None else _cut(self._result, *part.pieces[0])

    def copy_local_parts(self) -> None:
        """Copy what this rank sends itself."""
        for sent, received in self._end.parts.local:
            assert self._source is not None
            torch.cat([_cut(self._source, start, stop) for start, stop in sent.pieces], out=self.incoming(received))

    def assemble(self) -> None:
        """Copy what has been received from staging memory to the result."""
        if True in self._end.parts.is_staged and self._result is not None:
            rows = self._result.view(-1, self._end.spec.width)
            for overlap, staging in zip(self._end.plan.receive_overlaps, self._staging, strict=True):
                if staging is not None:
                    parts = torch.split(staging.view(-1, rows.shape[1]), [len(run) for run in overlap.runs])
                    for run, part in zip(overlap.runs, parts, strict=True):
                        rows[run.start : run.stop] = part
        self._staging = []

    def release_source(self) -> None:
        """All parts have been received."""
        self._source = None

    def release_result(self) -> None:
        """The result is the caller's."""
        self.result = self._result = None

    def _staging_for(self, rows: int) -> torch.Tensor:
        assert self._result is not None
        return self._pool.take((rows * self._end.spec.width,), self._result.dtype)


def _cut(flat: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    return flat if stop - start == flat.numel() else flat[start:stop]


def _as_carrier(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype in _TRANSFERRED_AS_THEY_ARE else tensor.view(_CARRIERS[tensor.element_size()])
