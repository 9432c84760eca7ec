"""Training programs of the kinds that are in public use: output, files and exit code are the same as under torchrun.

Each is written anew, from what is essential to its kind.
"""

import re
from dataclasses import dataclass

import pytest

from tests.unchanged.launches import Program, by_mimo_launch, by_torchrun

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(700)]

TRAINER_OPTIONS = (
    "--output_dir=trained",
    "--use_cpu",
    "--max_steps=3",
    "--per_device_train_batch_size=4",
    "--logging_steps=1",
    "--save_steps=2",
    "--report_to=none",
)
HYDRA_OVERRIDES = ("model=large", "lr=0.5", "+extra.depth=2", "note='a b'", "hydra.run.dir=outputs/rank${oc.env:RANK}")
ARGUMENTS = ("a b", "", "ü★", "--batch-size=4", "--betas", "0.8", "0.9", "--tag=-x", "--tag", "q\"'$HOME", "--no-amp")


@dataclass(frozen=True)
class Kind:
    """A kind of program."""

    program: Program
    shows: str
    """Part of what rank 1 prints: it has done its work."""
    packages: tuple[str, ...] = ()
    joins_if_needed: bool = False
    """Whether it joins torch.distributed only if that has not been done before."""


KINDS = {
    "DDP": Kind(Program("ddp.py"), "weights read: ", joins_if_needed=True),
    "FSDP2": Kind(Program("fsdp2.py"), "holds [(", joins_if_needed=True),
    "tensor parallel": Kind(Program("tensor_parallel.py"), "tp 1 step 2 loss", joins_if_needed=True),
    "pipeline": Kind(Program("pipelining.py"), "stage 1 step 2 losses", joins_if_needed=True),
    "GPT": Kind(Program("gpt.py", ("--max_iters=2", "--dtype=bfloat16")), "Overriding: max_iters = 2"),
    "Fabric": Kind(Program("fabric_loop.py"), "loaded step 4", ("lightning_fabric",), joins_if_needed=True),
    "Accelerate": Kind(Program("accelerate_loop.py"), "process 1 of 2", ("accelerate",), joins_if_needed=True),
    "Trainer": Kind(Program("trainer.py", TRAINER_OPTIONS), "rank 1 of 2", ("transformers",), joins_if_needed=True),
    "Hydra": Kind(Program("hydra_app.py", HYDRA_OVERRIDES), "rank1: the same folder: True", ("hydra",), joins_if_needed=True),
    "torchtitan": Kind(Program("titan.py", ("--training.steps", "2")), "loaded step 2, equal: True", joins_if_needed=True),
    "tracker": Kind(Program("tracker.py"), "the service ended with 0, the run with 0", joins_if_needed=True),
    "WebDataset": Kind(Program("shards.py"), "spawn: __main__.Batch, total 16920", joins_if_needed=True),
    "argparse": Kind(Program("arguments.py", ARGUMENTS), "'batch_size': 4"),
    "nested processes": Kind(Program("nested_spawn.py"), "[0, 1, 4, 9] with fork"),
    "module": Kind(Program("trainkit.train", ("0", "x")), "__main__ of trainkit", joins_if_needed=True),
    "Typer": Kind(Program("cli_app.py", ("train", "my data", "--steps=3")), "rank 1: 'my data' full 6", ("typer",)),
    "logging": Kind(Program("logs.py"), "no line end here", ("tqdm",)),
    "executes itself": Kind(Program("restarts_itself.py", ("x",)), "['x'] "),
}


def kinds(wanted=lambda _: True):
    return pytest.mark.parametrize("kind", [pytest.param(kind, id=name) for name, kind in KINDS.items() if wanted(kind)])


@pytest.fixture(scope="module")
def launched_by_torchrun(tmp_path_factory):
    launches = {}

    def launched(kind):
        for package in kind.packages:
            pytest.importorskip(package)
        if kind.program not in launches:
            launches[kind.program] = by_torchrun(kind.program, tmp_path_factory.mktemp("torchrun"))
        launch = launches[kind.program]
        assert launch.code == 0, launch.stderr
        assert kind.shows in launch.ranks[1].stdout
        return launch

    return launched


@kinds()
def test_a_program_prints_and_writes_the_same_as_under_torchrun(kind, launched_by_torchrun, tmp_path):
    expected, found = launched_by_torchrun(kind), by_mimo_launch(kind.program, tmp_path)
    assert found.code == 0, found.stderr
    assert found.ranks == expected.ranks
    assert found.files == expected.files
    assert printed_lines(found.stdout) == printed_lines(expected.stdout)


@kinds(lambda kind: kind.joins_if_needed)
def test_a_program_that_joins_if_needed_needs_no_setting(kind, launched_by_torchrun, tmp_path):
    """Libraries report on stderr that they join, which they do not do here."""
    expected, found = launched_by_torchrun(kind), by_mimo_launch(kind.program, tmp_path, join="launcher")
    assert found.code == 0, found.stderr
    assert [rank.stdout for rank in found.ranks] == [rank.stdout for rank in expected.ranks]
    assert found.files == expected.files


def printed_lines(text):
    """The ranks' lines as the launcher prints them, without their prefixes, in any order."""
    return sorted(line for line in re.split(r"\n|\[default\d\]:|\[language\.dp\d r\d\] ", text) if line)
