"""Logging by `dictConfig` to stderr and a file for each rank, captured warnings, and a tqdm bar."""

import logging
import logging.config
import os
import sys
import warnings

import torch
import torch.distributed as dist
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

rank = int(os.environ["RANK"])
logging.config.dictConfig(
    {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"short": {"format": "%(levelname)s %(name)s %(processName)s %(threadName)s: %(message)s"}},
        "handlers": {
            "screen": {"class": "logging.StreamHandler", "formatter": "short", "stream": "ext://sys.stderr"},
            "file": {"class": "logging.FileHandler", "formatter": "short", "filename": f"train{rank}.log", "mode": "w"},
        },
        "root": {"level": "INFO", "handlers": ["screen", "file"]},
    }
)
logging.captureWarnings(capture=True)
logger = logging.getLogger("train")


def main():
    dist.init_process_group("gloo")
    logger.info("rank %d of %d, seed unset", rank, dist.get_world_size())
    warnings.warn("the learning rate is high", stacklevel=1)
    warnings.warn("this is old", DeprecationWarning, stacklevel=1)
    with logging_redirect_tqdm():
        for step in tqdm(range(5), desc=f"rank {rank}", bar_format="{desc}: {n_fmt}/{total_fmt}", ncols=40, mininterval=0):
            total = torch.tensor(step)
            dist.all_reduce(total)
            if step == 2:
                logger.warning("half way, %d", total)
    print("no line end here", end="")
    sys.stdout.flush()
    print("\x1b[32mdone\x1b[0m", "é ✓", file=sys.stderr)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
