"""Transfers of activations and gradients between pipeline stages of any two grids.

A call of a bridge (`autograd.py`) or one of its single steps (`bridge_base.py`) makes a `Transfer` (`transfer.py`), which posts
messages (`messages.py`) and waits for headers and data through the `BatchLedger` (`batch_ledger.py`): for headers in
`FrameChannel.poll`, for data in `TransferGuard.wait`.
"""

from mimo_role.host.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
