"""A script that sets variables which must be there when the interpreter starts, and executes itself again."""

import os
import sys

if os.environ.get("PYTHONHASHSEED") != "42":
    os.environ.update(PYTHONHASHSEED="42", OMP_NUM_THREADS="2")
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.tensor(float(hash("a text") % 1000))
dist.all_reduce(total)
print(sys.argv[1:], hash("a text"), total.item(), torch.get_num_threads(), __name__)
dist.destroy_process_group()
