"""Errors of mimo-launch.

A user's mistake raises a subclass of `MimoError`, whose message has what is wrong, where, and what to do. Several subclasses
are also the built-in error that code written for torch or Megatron-Core expects.
"""


class MimoError(Exception):
    """A user's mistake. The message is complete without a traceback."""


class TopologyError(MimoError, ValueError):
    """Modules that cannot be arranged as grids of one world.

    `key` is the dotted path of the wrong value in a config, such as `modules.vision.tp`.
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}{problem}" if problem.startswith(("=", ":")) else f"{key}: {problem}")
        self.key = key


class UnknownWorldSizeError(TopologyError):
    """`dp: auto` takes the remaining ranks, but the number of ranks is unknown."""


class AxisError(MimoError, KeyError):
    """An axis, module or group name that a grid or context does not have."""

    def __str__(self) -> str:
        return str(self.args[0])


class RankNotInGridError(MimoError, RuntimeError):
    """A rank that is in no grid."""


class GridError(MimoError, ValueError):
    """A grid whose shape, axes or views do not fit together."""


class WorldSizeError(MimoError, RuntimeError):
    """A grid that does not fit into its world, or a world of unknown size."""


class EnvironError(MimoError, ValueError):
    """A variable of the environment contract that is missing, malformed or inconsistent with another."""

    def __init__(self, variable: str, problem: str) -> None:
        super().__init__(f"{variable}: {problem}")
        self.variable = variable


class ContextError(MimoError, RuntimeError):
    """`init()`, `current()` or `shutdown()` called in a wrong state."""


class TopologyMismatchError(ContextError):
    """Ranks of one job that have different topologies."""


class RecordingError(MimoError, TypeError):
    """A value that `RoleContext.log` cannot record, or a recording that cannot be read."""


class BridgeError(MimoError, RuntimeError):
    """A bridge that does not exist, a tensor that does not fit it, or a transfer that has failed."""


class ScheduleError(MimoError, ValueError):
    """A step that cannot be scheduled: its micro-batches, its stages or what they return do not fit."""


class GradientError(MimoError, RuntimeError):
    """Gradients that cannot be summed or whose norm cannot be computed, or a norm that is not finite if that is an error."""


class ReplicaError(MimoError, RuntimeError):
    """Ranks that should have equal parameters or gradients do not, or they cannot be compared."""


class DataError(MimoError, ValueError):
    """A data loader whose dataset, sizes or state do not fit, or ranks that read different samples."""


class CheckpointError(MimoError, RuntimeError):
    """A checkpoint that cannot be saved, found or loaded."""


class HfError(MimoError, ValueError):
    """A model of transformers that cannot be divided as asked, or samples that do not fit it."""
