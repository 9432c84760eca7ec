"""The errors of the launcher. All are the user's to mend, so all are `MimoError`s."""

from mimo_role import MimoError


class ConfigError(MimoError):
    """A config that cannot be read or cannot work; the message names the file and the key."""


class PlacementError(MimoError):
    """Ranks that do not fit on the nodes there are."""


class LaunchError(MimoError):
    """A plan that this machine cannot start as it stands."""
