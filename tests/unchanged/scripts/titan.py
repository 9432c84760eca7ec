"""Pre-training in the way of torchtitan: a TOML-like config on the command line, a device mesh, FSDP2, distributed checkpoints
of which the last one is still being written when the script's last line has been passed."""

import dataclasses
import logging
import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.fsdp import fully_shard

logger = logging.getLogger("titan")


@dataclasses.dataclass
class Training:
    steps: int = 2
    lr: float = 0.1


@dataclasses.dataclass
class Checkpoint:
    folder: str = "checkpoints"


@dataclasses.dataclass
class JobConfig:
    training: Training = dataclasses.field(default_factory=Training)
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)


def parse_config(words):
    config = JobConfig()
    for option, text in zip(words[::2], words[1::2], strict=True):
        section, name = option.removeprefix("--").split(".")
        part = getattr(config, section)
        setattr(part, name, type(getattr(part, name))(text))
    return config


class TrainState(Stateful):
    def __init__(self, model):
        self.model, self.step = model, 0

    def state_dict(self):
        return {"model": get_model_state_dict(self.model), "step": torch.tensor(self.step)}

    def load_state_dict(self, state):
        set_model_state_dict(self.model, state["model"])
        self.step = int(state["step"])


def make_state(mesh, seed):
    torch.manual_seed(seed)
    return TrainState(fully_shard(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), mesh=mesh))


def train(state, config, mesh):
    optimizer = torch.optim.SGD(state.model.parameters(), lr=config.training.lr)
    torch.manual_seed(mesh["dp_shard"].get_local_rank())
    for _ in range(config.training.steps):
        loss = state.model(torch.randn(4, 8)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        state.step += 1
        logger.info("step: %d  loss: %.5f", state.step, loss.item())


@record
def main(config):
    logging.basicConfig(level=logging.INFO, format="[titan] %(levelname)s - %(message)s", stream=sys.stdout)
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp_replicate", "dp_shard"))
    state = make_state(mesh["dp_shard"], seed=0)
    train(state, config, mesh)
    dcp.async_save({"app": state}, checkpoint_id=f"{config.checkpoint.folder}/step-{state.step}").result()
    loaded = make_state(mesh["dp_shard"], seed=1)
    dcp.load({"app": loaded}, checkpoint_id=f"{config.checkpoint.folder}/step-{state.step}")
    print(f"loaded step {loaded.step}, equal: {weights(loaded) == weights(state)}")
    train(loaded, config, mesh)
    dcp.async_save({"app": loaded}, checkpoint_id=f"{config.checkpoint.folder}/step-{loaded.step}")
    print("the last checkpoint is being written", flush=True)


def weights(state):
    return [each.full_tensor().tolist() for each in state.model.parameters()]


if __name__ == "__main__":
    dist.init_process_group("gloo") if not dist.is_initialized() else None
    main(parse_config(sys.argv[1:]))
