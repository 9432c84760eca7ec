from mimo_role.megatron.adapters import grid_map as grid_map
from mimo_role.megatron.adapters import process_groups as process_groups
from mimo_role.megatron.cpu import run_on_cpu as run_on_cpu
from mimo_role.megatron.hyper_comm_grid import HyperCommGrid as HyperCommGrid
from mimo_role.megatron.mimo_model import MimoModel as MimoModel
from mimo_role.megatron.pipeline_communicator import PipelineCommunicator as PipelineCommunicator
from mimo_role.megatron.token_counts import set_token_counts as set_token_counts
