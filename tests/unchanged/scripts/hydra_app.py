"""A Hydra application: config groups, overrides, an output folder for each rank, and logging that Hydra sets up."""

import logging
import os
from pathlib import Path

import hydra
import torch
import torch.distributed as dist
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_original_cwd, to_absolute_path
from omegaconf import DictConfig, OmegaConf

log = logging.getLogger(__name__)


@hydra.main(version_base=None, config_path="hydra_conf", config_name="config")
def main(config: DictConfig) -> float:
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    torch.manual_seed(2)
    output = Path(HydraConfig.get().runtime.output_dir)
    log.info("width %d, lr %g, note %r", config.model.width, config.lr, config.note)
    print(OmegaConf.to_yaml(config))
    print(f"overrides: {list(HydraConfig.get().overrides.task)}; job {HydraConfig.get().job.name}")
    total = torch.ones(config.model.width) * config.lr
    dist.all_reduce(total)
    (output / "total.txt").write_text(f"{total.sum().item():.4f}\n")
    print(f"{output.name}: the same folder: {get_original_cwd() == os.getcwd() == to_absolute_path('.')}")
    dist.destroy_process_group()
    return total.sum().item()


if __name__ == "__main__":
    main()
