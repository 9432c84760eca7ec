"""Rank exits for tests of reports."""

from launcher.failures.crash import Crash, Frame
from launcher.failures.rank_exit import RankExit
from mimo_role import Topology

TOPOLOGY = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "pp": 2}})
"""Ranks 0-1 are vision's, 2-3 and 4-5 the stages of language."""

SCRIPT = Frame("/home/me/train.py", 12, "main", "loss = model(batch)", is_users=True)
TORCH = Frame("/env/lib/python3.11/site-packages/torch/nn/modules/module.py", 1779, "_call_impl", "", is_users=False)

# The message of torch 2.13 over gloo when the peer is killed.
GLOO_LOST_A_PEER = (
    "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:47513: Connection reset by "
    "peer. This is typically caused by a remote worker hanging or bugs in the application. Check the logs of the remote worker "
    "before reporting an error. GLHF! 🏖️"
)
# From NVIDIA/nccl#2076.
NCCL_LOST_A_PEER = """\
NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.hpp:268, remote process exited or there was a network error, \
NCCL version 2.21.5
ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.
Last error:
socketProgressOpt: Call to recv from 172.16.0.1<33759> failed : Connection reset by peer"""
# From NVIDIA/nccl#1514.
NCCL_LOST_A_PEER_INSIDE = """\
NCCL error in: ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:1275, internal error, NCCL version 2.14.3
ncclInternalError: Internal check failed.
Last error:
Net : Connection closed by remote peer user<50260>"""
# The message of a client of torch's TCPStore when the server has exited.
STORE_LOST_A_PEER = "Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown or crash?"


def crash(kind="RuntimeError", text="", *, bases=("RuntimeError", "Exception", "BaseException"), frames=(SCRIPT,)):
    kinds = (kind, *(base for base in bases if base != kind))
    return Crash(kind=kind, text=text, traceback=f"{kind}: {text}", frames=tuple(frames), kinds=kinds)


def record(rank, code=1, *, order=None, after_s=0.0, step=None, crash=None, tail=(), logs=()):
    return RankExit(
        rank=rank,
        code=code,
        order=rank if order is None else order,
        host="hosta",
        ended_at=1_700_000_000.0 + after_s,
        step=step,
        crash=crash,
        tail=tuple(tail),
        logs=tuple(logs),
    )
