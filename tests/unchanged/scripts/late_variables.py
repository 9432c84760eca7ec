"""Sets variables for torch before it imports torch, as many scripts do in their first lines."""

import os

os.environ["OMP_NUM_THREADS"] = "2"
os.environ["TORCH_DISTRIBUTED_DEBUG"] = "INFO"
os.environ["TORCH_LOGS"] = "+dynamo"
os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
os.environ["TORCH_SHOW_CPP_STACKTRACES"] = "1"

import logging

import torch
import torch.distributed as dist

print(torch.get_num_threads(), dist.get_debug_level(), logging.getLogger("torch._dynamo").getEffectiveLevel())
