from mimo_role.groups.options import GroupOptions as GroupOptions
from mimo_role.groups.options import NcclOptions as NcclOptions
