import threading

import torch
from torch.utils.checkpoint import checkpoint

from mimo_role.bridge import backward_pass
from mimo_role.bridge.backward_pass import is_in_backward


class Noting(torch.autograd.Function):
    """Records in both directions whether a backward pass is running."""

    @staticmethod
    def forward(ctx, tensor, noted):
        ctx.noted = noted
        ctx.save_for_backward(tensor)
        noted.append(("forward", is_in_backward()))
        return tensor.clone()

    @staticmethod
    def backward(ctx, gradient):
        (_,) = ctx.saved_tensors
        ctx.noted.append(("backward", is_in_backward()))
        return gradient, None


def test_torch_has_the_private_function():
    assert backward_pass._task is not None


def test_a_backward_pass_is_detected():
    noted = []
    leaf = torch.ones(2, requires_grad=True)
    leaf.register_hook(lambda _: noted.append(("hook", is_in_backward())))
    loss = Noting.apply(leaf, noted).sum()
    noted.append(("before", is_in_backward()))
    loss.backward()
    noted.append(("after", is_in_backward()))
    assert noted == [("forward", False), ("before", False), ("backward", True), ("hook", True), ("after", False)]


def test_a_recomputed_forward_is_within_a_backward_pass():
    for use_reentrant in (False, True):
        noted = []
        leaf = torch.ones(2, requires_grad=True)
        checkpoint(lambda tensor: Noting.apply(tensor, noted), leaf, use_reentrant=use_reentrant).sum().backward()  # noqa: B023
        assert noted == [("forward", False), ("forward", True), ("backward", True)]


def test_another_thread_is_not_in_the_backward_pass_of_this_one():
    noted = []

    def ask(gradient):
        thread = threading.Thread(target=lambda: noted.append(is_in_backward()))
        thread.start()
        thread.join()
        return gradient

    leaf = torch.ones(2, requires_grad=True)
    leaf.register_hook(ask)
    leaf.sum().backward()
    assert noted == [False]
