"""Checkpoints that any layout reads, over torch.distributed.checkpoint (DCP).

`save` (`saving.py`) names the tensors of this rank (`model_state.py`, `optimizer_state.py`), compares them with those
of the other ranks (`inventory.py`), and has DCP write them (`writer.py`). `load` (`loading.py`, `target.py`) does the
same the other way round. Both use a process group of their own (`session.py`). `folders.py` finds complete
checkpoints, without a collective.
"""

from mimo_role.host.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
