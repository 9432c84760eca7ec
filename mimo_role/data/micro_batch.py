"""One micro-batch, as one rank has it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mimo_role.errors import DataError


@dataclass(frozen=True, eq=False, kw_only=True)
class MicroBatch:
    """What has been read for this rank's modules, and what every rank knows of the micro-batch.

    `micro["vision"]` is what `collate_fn` made of the samples of this rank's lane of a module. `len(micro)` is the number of
    samples over all lanes, for `ActivationSpec.of(len(micro), ...)` or `Samples(len(micro), ...)`.
    """

    epoch: int
    step: int
    """Over all epochs, from 0; it continues after `load_state_dict`."""
    number: int
    """Of the micro-batch in its step, from 0."""
    indices: tuple[int, ...]
    """Of its samples in the dataset, over all lanes."""
    samples_in_step: int
    """Samples of all micro-batches of the step."""
    lanes: Mapping[str, tuple[int, ...]]
    """The lane of each sample, for the modules in `assign_lanes`: `Samples(source_lanes=micro.lanes["vision"])`. Other modules'
    lanes have contiguous ranges, `lane_samples`."""
    data: Mapping[str, Any]
    """By module: what this rank has read."""

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, module: str) -> Any:
        """The collated samples of this rank's lane of a module.

        Raises:
            DataError: this rank has read nothing for it.
        """
        if module not in self.data:
            raise DataError(
                f"this rank reads no samples of {module!r}, only of: {', '.join(self.data) or 'no module'}. By default a "
                "module's first stage reads them, and the last of the language module; needs= of the data loader sets others"
            )
        return self.data[module]
