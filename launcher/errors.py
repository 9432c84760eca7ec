"""The errors of the launcher. The user can fix all of them, so all are `MimoError`s."""

from mimo_role import MimoError


class ConfigError(MimoError):
    """A config that cannot be read or cannot work; the message names the file and the key."""


class PlacementError(MimoError):
    """Ranks that do not fit on the nodes."""


class LaunchError(MimoError):
    """A plan that cannot be started, or a job that cannot be found."""


class UsageError(MimoError):
    """A command line that cannot be carried out."""
