"""The model of the project."""

from torch import nn


class Model(nn.Linear):
    """A layer."""
