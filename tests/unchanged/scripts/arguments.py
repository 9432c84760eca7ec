"""argparse, with the local rank from the environment; words that need care reach it as they were."""

import argparse
import os
import sys

import torch
import torch.distributed as dist

parser = argparse.ArgumentParser(description="Train.")
parser.add_argument("data", nargs="*")
parser.add_argument("--local-rank", "--local_rank", type=int, default=int(os.environ.get("LOCAL_RANK", -1)))
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--betas", type=float, nargs=2, default=[0.9, 0.999])
parser.add_argument("--tag", action="append", default=[])
parser.add_argument("--amp", action=argparse.BooleanOptionalAction, default=True)
arguments = parser.parse_args()
dist.init_process_group("gloo", init_method="env://")
total = torch.tensor(arguments.local_rank)
dist.all_reduce(total)
print(parser.prog, vars(arguments), total.item())
print(sys.argv, sys.argv == sys.orig_argv[-len(sys.argv) :], __file__ == sys.argv[0], sys.path[0] == os.path.dirname(__file__))
dist.destroy_process_group()
