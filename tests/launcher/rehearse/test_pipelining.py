"""`torch.distributed.pipelining` in a rehearsal: stages learn their shapes from each other, in both directions."""

import pytest

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]

SCRIPT = """\
import torch, mimo_role
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, SplitPoint, pipeline, schedules

class Layers(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(count))

    def forward(self, hidden):
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden))
        return hidden

group = mimo_role.current().group("language", "pp")
place, cpu = dist.get_rank(group), torch.device("cpu")

def run(stage, name):
    schedule = getattr(schedules, name)(stage, n_microbatches=4, loss_fn=nn.functional.mse_loss)
    schedule.step(*([torch.ones(8, 8)] * (place == 0)), **({"target": torch.ones(8, 8)} if place == 1 else {}))
    for each in stage if isinstance(stage, list) else [stage]:
        assert all(parameter.grad is not None for parameter in each.submod.parameters()), name

def stage(number, stages, **given):
    return PipelineStage(Layers(1), number, stages, cpu, group=group, **given)

"""


def inferred(name):
    return f"run(stage(place, 2), {name!r})\n"


INTERLEAVED = "run([stage(place, 4), stage(place + 2, 4)], 'ScheduleInterleaved1F1B')\n"
GIVEN = (
    "form = dict(input_args=torch.ones(2, 8, requires_grad=place > 0), output_args=torch.ones(2, 8, requires_grad=True))\n"
    "run(stage(place, 2, **form), 'Schedule1F1B')\n"
)
CUT = (
    "cut = pipeline(Layers(2), mb_args=(torch.ones(2, 8),), split_spec={'layers.1': SplitPoint.BEGINNING})\n"
    "run(cut.build_stage(place, cpu, group), 'ScheduleGPipe')\n"
)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(inferred("ScheduleGPipe") + inferred("Schedule1F1B"), id="two schedules"),
        pytest.param(INTERLEAVED, id="interleaved"),
        pytest.param(GIVEN + CUT, id="given shapes, and a whole model that is cut"),
    ],
)
def test_a_pipeline_of_thousands_of_lanes_is_rehearsed(rehearse, job, body):
    job.config = "name: small\nlayout: colocated\nmodules:\n  language: {pp: 2, dp: 4096}\nentry: {script: script.py}\n"
    done = rehearse(SCRIPT + body, timeout_s=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.found["world_size"] == 8192
    assert [kind["objects_not_known"] for kind in done.found["kinds"]] == [0] * 6
    assert "PipeliningMetadataError" not in done.stderr  # of a kind that is run again
