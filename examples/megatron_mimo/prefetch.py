"""Frozen encoders run one step ahead: their outputs are ready when a step begins, and the language model does not wait."""

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from data import Samples
from megatron.core.models.mimo import MimoModel
from megatron.core.utils import unwrap_model


class Prefetch:
    """The micro-batches of a rank that runs encoders; of frozen ones, what they make of them instead of their inputs.

    While the language model works on micro-batch 3 of a step, the encoder reads micro-batch 3 of the next: on a GPU on a stream
    of its own, otherwise before it continues. Projections train, so they run in their step.
    """

    def __init__(self, samples: Samples, model: MimoModel, frozen: list[str]) -> None:
        self._samples, self._model = samples, model
        self._frozen = [name for name in frozen if name in model.modality_submodules]
        self._ready: deque[dict[str, Any]] = deque()
        self._stream = torch.cuda.Stream()

    def micro_batches(self, step: int) -> Iterator[dict[str, Any]]:
        """As `Samples.micro_batches`. Exhaust it at the end of the step."""
        if not self._frozen:
            yield from self._samples.micro_batches(step)
            return
        if not self._ready:  # the first step
            self._ready.extend(map(self._encoded, self._samples.micro_batches(step)))
        for following in self._samples.micro_batches(step + 1):
            torch.cuda.current_stream().wait_stream(self._stream)
            yield self._ready.popleft()
            self._ready.append(self._encoded(following))

    def _encoded(self, batch: dict[str, Any]) -> dict[str, Any]:
        inputs, features = dict(batch["modality_inputs"]), {}
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(self._stream):
            for name in self._frozen:
                encoder = unwrap_model(self._model.modality_submodules[name])
                features[name] = encoder.combine_embeddings(encoder.encode(inputs.pop(name)))
        return batch | {"modality_inputs": inputs, "features": features}
