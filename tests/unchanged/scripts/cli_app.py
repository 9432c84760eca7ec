"""A Typer application: subcommands, its own exit code, and an exception that it prints itself."""

import os
import threading
from enum import Enum
from typing import Annotated

import torch
import torch.distributed as dist
import typer

app = typer.Typer(pretty_exceptions_show_locals=False)


class Precision(str, Enum):
    half = "half"
    full = "full"


@app.command()
def train(
    data: Annotated[str, typer.Argument()],
    steps: Annotated[int, typer.Option(min=1)] = 2,
    precision: Precision = Precision.full,
    code: int = 0,
) -> None:
    """Train on DATA."""
    dist.init_process_group("gloo")
    total = torch.tensor(steps)
    dist.all_reduce(total)
    typer.echo(f"rank {os.environ['RANK']}: {data!r} {precision.value} {total.item()}")
    dist.destroy_process_group()
    if code:
        raise typer.Exit(code)


@app.command()
def check() -> None:
    """Fail on rank 1."""
    if os.environ["RANK"] == "0":
        threading.Event().wait()
    raise FileNotFoundError("no data here")


if __name__ == "__main__":
    app()
