"""The errors that a user of mimo-launch can meet.

A user's mistake raises a child of `MimoError`, whose message says what is wrong, where, and what to do. Several
children are also the built-in error that code written against torch or Megatron-Core expects.
"""


class MimoError(Exception):
    """A mistake in what the user gave: the message is meant to be read without a traceback."""


class TopologyError(MimoError, ValueError):
    """Modules that cannot be arranged as grids of one world.

    `key` is the dotted path of the value at fault as it stands in a config, such as `modules.vision.tp`.
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}{problem}" if problem.startswith(("=", ":")) else f"{key}: {problem}")
        self.key = key


class UnknownWorldSizeError(TopologyError):
    """`dp: auto` takes the ranks that are left, and nothing says how many there are."""


class AxisError(MimoError, KeyError):
    """An axis, module or group name that a grid or context does not have."""

    def __str__(self) -> str:
        return str(self.args[0])


class RankNotInGridError(MimoError, RuntimeError):
    """A rank that no grid spans."""


class GridError(MimoError, ValueError):
    """A grid whose shape, axes or views do not fit together."""


class WorldSizeError(MimoError, RuntimeError):
    """A grid that does not fit into its world, or a world whose size nothing tells."""


class EnvironError(MimoError, ValueError):
    """A variable of the environment contract that is missing, malformed or at odds with another."""

    def __init__(self, variable: str, problem: str) -> None:
        super().__init__(f"{variable}: {problem}")
        self.variable = variable


class ContextError(MimoError, RuntimeError):
    """`init()`, `current()` or `shutdown()` called where it cannot work."""


class TopologyMismatchError(ContextError):
    """Ranks of one job that hold different topologies."""


class BridgeError(MimoError, RuntimeError):
    """A bridge that does not exist, or a tensor that does not fit it."""


class ScheduleError(MimoError, ValueError):
    """A step that cannot be scheduled: its micro-batches, its stages or what they return do not fit."""


class GradientError(MimoError, RuntimeError):
    """Gradients whose norm over all modules cannot be computed, or is not finite where that is an error."""
