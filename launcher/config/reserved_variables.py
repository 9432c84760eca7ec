"""The environment variables that mimo-launch sets for ranks, so that a config cannot set them."""

from launcher.host.reaper import AGENT_ID
from mimo_role.host import environ

CONTRACT_VARIABLES = frozenset(
    {
        environ.TOPOLOGY,
        environ.TOPOLOGY_DIGEST,
        environ.ROLE,
        environ.LAYOUT,
        environ.MODULES,
        environ.HAS_LANGUAGE_MODULE,
        environ.HAS_MODALITY_MODULES,
        environ.COORDS,
        environ.RUN_DIR,
        environ.RUN_ID,
        environ.BACKEND,
        environ.TIMEOUT_S,
        environ.GROUPS,
        environ.RESTART_COUNT,
        environ.NODE,
        environ.GRACE_S,
        environ.WARNING_S,
        environ.NODE_DIR,
        AGENT_ID,
        "MIMO_PLAN",
        "MIMO_POOL",
    }
)
"""mimo-launch's own."""

TORCHELASTIC_VARIABLES = frozenset(
    {
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "GROUP_RANK",
        "GROUP_WORLD_SIZE",
        "ROLE_NAME",
        "ROLE_RANK",
        "ROLE_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "TORCHELASTIC_ERROR_FILE",
        "TORCHELASTIC_MAX_RESTARTS",
        "TORCHELASTIC_RESTART_COUNT",
        "TORCHELASTIC_RUN_ID",
        "TORCHELASTIC_SIGNALS_TO_HANDLE",
        "TORCHELASTIC_USE_AGENT_STORE",
    }
)
"""Those of its agent's library, which torchrun sets as well."""

RESERVED_VARIABLES = CONTRACT_VARIABLES | TORCHELASTIC_VARIABLES
