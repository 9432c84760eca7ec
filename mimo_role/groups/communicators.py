"""How the group of each family of a module is created."""

from mimo_role.errors import TopologyError
from mimo_role.groups.families import (
    EMBEDDING,
    SECOND_GROUPS,
    check_family,
    families_of,
    has_embedding_groups,
    locate,
)
from mimo_role.groups.options import Communicator, GroupOptions
from mimo_role.groups.row_set import RowSet
from mimo_role.topology.topology import Topology

_Identity = tuple[RowSet, str]
"""A group's rows, and its name if it is a second group of the same ranks."""


def communicator_of(topology: Topology, module: str, options: GroupOptions, family: tuple[str, ...]) -> Communicator:
    """How the group of one family of a module is created. Families with equal rows have one group.

    Args:
        topology: the world.
        module: one of its modules.
        options: the module's.
        family: axes of the module, the name of a second group, or the embedding's.

    Raises:
        AxisError: the module has no such axes.
    """
    own = _identity(topology, module, family)
    is_high = any(own == _identity(topology, module, each) for each in options.priority_families)
    return options.communicator(is_high_priority=is_high, purpose=own[1])


def check_priorities(topology: Topology, module: str, options: GroupOptions) -> None:
    """Check `high_priority_stream_groups`.

    Raises:
        TopologyError: it names an axis that the module does not have, or a group that the options do not create.
    """
    families = list(families_of(topology, module, options))
    families += [(EMBEDDING,)] if has_embedding_groups(module, options) else []
    created = {_identity(topology, module, family) for family in families}
    for index, family in enumerate(options.priority_families):
        key = f"high_priority_stream_groups[{index}]"
        if family != (EMBEDDING,):
            check_family(topology, module, family, key)
        if _identity(topology, module, family) not in created:
            raise TopologyError(
                f"modules.{module}.groups.{key}", f"={list(family)}: no such group is created; add it to families"
            )


def _identity(topology: Topology, module: str, family: tuple[str, ...]) -> _Identity:
    if family == (EMBEDDING,):
        return RowSet.ends_of(topology.grids[module], "pp"), ""
    purpose = family[0] if family and family[0] in SECOND_GROUPS else ""
    return RowSet.of(*locate(topology, module, family)), purpose
