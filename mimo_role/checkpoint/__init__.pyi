from mimo_role.checkpoint.folders import latest as latest
from mimo_role.checkpoint.loading import Loaded as Loaded
from mimo_role.checkpoint.loading import load as load
from mimo_role.checkpoint.safetensors_export import export_safetensors as export_safetensors
from mimo_role.checkpoint.saving import save as save
from mimo_role.checkpoint.saving import wait as wait
