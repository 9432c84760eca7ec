"""The names of a job and its pools that Kubernetes accepts.

torchx calls a job `NAME-RANDOM` and a task `POOL-REPLICA`; Volcano then calls a pod, and the host in it,
`NAME-RANDOM-POOL-REPLICA-0`, and a service `NAME-RANDOM`. These are DNS labels: at most 63 lower-case letters, digits and
dashes, a letter or digit at both ends, a letter at the start of a service's name (RFC 1035, RFC 1123). torchx itself
drops other characters and does not look at the length.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping

LONGEST_LABEL = 63
LONGEST_POOL = 16
"""The most characters of a pool's name in a pod's: the job's name has at least 22 then, for a million nodes."""

_RANDOM = 14
"""The most characters of torchx's random suffix: 64 bits in base 29, and the first one in base 20."""

_HASH = 6
"""Characters of a hash: of sixteen million."""


def pool_names(pools: Iterable[str]) -> dict[str, str]:
    """A name of lower-case letters and digits for each pool, all different.

    There is no dash in it: torchx takes Volcano's variable with node 0's host name from the name of the first pool, and
    Volcano writes an underscore in place of a dash.

    Args:
        pools: the names in the config, all different.

    Returns:
        The names by those in the config. A name that is too long, or that differs from another one only in characters
        that it loses, ends in a hash of the name in the config.
    """
    names: dict[str, str] = {}
    # A name that needs no change keeps it.
    for pool in sorted(pools, key=lambda pool: "".join(_words(pool)) != pool):
        names[pool] = next(name for name in _candidates(pool) if name not in names.values())
    return names


def job_name(name: str, nodes: Mapping[str, int]) -> str:
    """A name for a job that leaves room for what torchx and Volcano add to it.

    Args:
        name: the name in the config.
        nodes: the number of nodes of each pool, by the names of `pool_names`.

    Returns:
        Lower-case letters, digits and single dashes; it begins with a letter. One that is too long ends in a hash of the
        name in the config.
    """
    added = max(len(f"-{pool}-{count - 1}-0") for pool, count in nodes.items())
    longest = LONGEST_LABEL - added - _RANDOM - len("-")
    words = "-".join(_words(name))
    label = words if words[:1].isalpha() else f"mimo-{words}".rstrip("-")
    if len(label) <= longest:
        return label
    return f"{label[: longest - _HASH - 1].rstrip('-')}-{_hash(name)[:_HASH]}"


def _candidates(pool: str) -> Iterator[str]:
    name = "".join(_words(pool))
    if name and len(name) <= LONGEST_POOL:
        yield name
    for length in range(_HASH, LONGEST_POOL + 1):
        yield (name or "pool")[: LONGEST_POOL - length] + _hash(pool)[:length]


def _words(name: str) -> list[str]:
    """The runs of letters and digits in a name, without accents and in lower case."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.findall(r"[a-z0-9]+", plain.lower())


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
