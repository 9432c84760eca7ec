"""Megatron-Core's own 1F1B schedule over our bridges: the numbers of one process, and the bits of its own communicator."""

import re
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import mimo_role
from mimo_role import TokenSplit, Topology
from mimo_role.megatron import run_on_cpu, set_token_counts
from mimo_role.megatron.token_counts import token_counts
from mimo_role.monitoring.recorder import Recorder
from mimo_role.monitoring.records import Kind
from mimo_role.monitoring.ring import Ring, read
from tests.mimo_role.fresh_worlds import LIMIT_S, Job, run_jobs
from tests.mimo_role.megatron.pipeline_vlm import HIDDEN, LENGTH, MICRO_BATCHES, Case, RankPart, whole_model

INSTALLED = find_spec("megatron")
HAS_SCHEDULE = INSTALLED is not None and any(
    Path(folder, "core/models/mimo/optimizer.py").exists() for folder in INSTALLED.submodule_search_locations
)
"""Whether Megatron-Core has a schedule for several modules, by a file of the same release: to import it takes seconds."""
pytestmark = [
    pytest.mark.peer,
    pytest.mark.ranks,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not HAS_SCHEDULE, reason="the installed Megatron-Core has no schedule for several modules"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="its code runs on the CPU here"),
]

PRELOAD = ["megatron.core.pipeline_parallel.schedules", "megatron.core.transformer"]

ZIGZAG = TokenSplit(cp_order="zigzag")
CASES = {
    "dp 2:2": Case({"dp": 2}, {"dp": 2}),
    "dp 3:2": Case({"dp": 3}, {"dp": 2}),
    "dp 2:3": Case({"dp": 2}, {"dp": 3}, deallocate=False),
    "dp 4:1": Case({"dp": 4}, {}),
    "dp 1:4, 7 samples": Case({}, {"dp": 4}, samples=7),
    "fixed numbers of tokens": Case({"dp": 2}, {"dp": 3}, fixed=True),
    "source cp": Case({"cp": 2}, {"dp": 2}),
    "source cp, zigzag": Case({"cp": 2}, {"dp": 3}, splits={"vision": ZIGZAG}),
    "destination cp": Case({"dp": 2}, {"cp": 2}),
    "destination cp, dp 1:2": Case({}, {"cp": 2, "dp": 2}),
    "destination cp, pp": Case({"dp": 2}, {"cp": 2, "pp": 2}),
    "sequence parallel": Case({"tp": 2}, {"tp": 2}, sequence_parallel=True),
    "sequence parallel with cp": Case({}, {"tp": 2, "cp": 2}, sequence_parallel=True),
    "sequence-parallel source": Case({"tp": 2}, {"dp": 2}, splits={"vision": TokenSplit(sequence_parallel=True)}),
    "encoder pp": Case({"pp": 2}, {"dp": 2}),
    "encoder pp with cp, language pp": Case({"pp": 2, "cp": 2}, {"pp": 2}),
    "language pp with sequence parallelism": Case({}, {"pp": 2, "tp": 2}, sequence_parallel=True),
    "two encoders": Case({"dp": 2}, {"dp": 2}, audio={}),
    "two encoders on the same ranks, language pp": Case({"dp": 2}, {"pp": 2}, audio={"dp": 2, "colocate_with": "vision"}),
    "an encoder after another": Case({"dp": 2}, {"dp": 2}, audio={"after": "vision"}),
    "frozen": Case({"dp": 2}, {"dp": 2}, frozen=("vision",)),
    "one of two frozen, pp": Case({"pp": 2}, {"dp": 2}, audio={}, frozen=("vision",)),
    "3 dimensions": Case({"dp": 3}, {"dp": 2}, fixed=True, dims=3),
    "3 dimensions, both cp": Case({"cp": 2}, {"cp": 2}, fixed=True, dims=3),
}


def configured(case):
    from megatron.core.transformer import TransformerConfig

    return TransformerConfig(
        num_layers=1,
        hidden_size=HIDDEN,
        num_attention_heads=1,
        pipeline_dtype=case.dtype,
        variable_seq_lengths=True,
        deallocate_pipeline_outputs=case.deallocate,
        calculate_per_token_loss=True,
        moe_token_dispatcher_type="alltoall",  # the default does not allow variable lengths
    )


def run_schedule(ctx, model, communicator, output_of=None, *, micro_batches=MICRO_BATCHES, forward_only=False):
    """One step of Megatron-Core's schedule; the losses on the last stage. `output_of` calls the model for a micro-batch."""
    from megatron.core.pipeline_parallel.schedules import forward_backward_pipelining_without_interleaving

    def forward_step(numbers, part):
        output, mask = (part(next(numbers)), None) if output_of is None else output_of(part, next(numbers))
        return output, partial(loss_of_micro_batch, mask)

    found = forward_backward_pipelining_without_interleaving(
        forward_step_func=forward_step,
        data_iterator=iter(range(micro_batches)),
        model=[model],
        num_microbatches=micro_batches,
        seq_length=LENGTH,
        micro_batch_size=1,
        forward_only=forward_only,
        p2p_communicator=communicator,
        pg_collection=ctx.megatron_multi_module_process_groups(),
    )
    return [loss.item() for loss in found]


def loss_of_micro_batch(mask, output):
    loss = output if mask is None else (output * mask).sum()
    return loss, torch.ones((), dtype=torch.int), loss.detach().clone()


def ranks_with_loss(topology):
    """One rank of each lane's and cp rank's last stage."""
    grid = topology.grids["language"]
    coords = {rank: grid.coords(rank) for rank in grid.ranks}
    return [rank for rank, at in coords.items() if at["pp"] == grid.axis_size("pp") - 1 and at["tp"] == 0]


def communicator_of(ctx, case, config):
    tokens = dict.fromkeys(case.modules, 4) if case.fixed else None
    return ctx.megatron_pipeline_communicator(
        config, samples=case.samples, tokens=tokens, splits=case.splits, frozen=case.frozen
    )


def step_and_evaluate(found, case):
    """Two steps with an evaluation between them; the last step's gradients."""
    run_on_cpu()
    ctx = mimo_role.current()
    config = configured(case)
    model = RankPart(ctx, case, config)
    communicator = communicator_of(ctx, case, config)
    losses = [run_schedule(ctx, model, communicator)]
    with torch.no_grad():
        losses.append(run_schedule(ctx, model, communicator, forward_only=True))
    model.zero_grad()
    losses.append(run_schedule(ctx, model, communicator))
    found += [losses, model.sum_gradients()]


def topology_of(case):
    return Topology.from_modules(case.modules)


@pytest.fixture(scope="module")
def outcomes():
    jobs = (Job(step_and_evaluate, topology_of(case), (case,)) for case in CASES.values())
    return dict(zip(CASES, run_jobs(*jobs, timeout_s=400, preload=PRELOAD), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_one_process(outcomes, name):
    case, ranks = CASES[name], outcomes[name]
    assert [rank.errors for rank in ranks] == [""] * len(ranks)
    losses, gradients = whole_model(case)
    last = ranks_with_loss(topology_of(case))
    for step in range(3):
        sums = [sum(of_one) for of_one in zip(*(ranks[at].found[0][step] for at in last), strict=True)]
        assert sums == pytest.approx(losses, rel=1e-12, abs=1e-12)
    seen = set()
    for rank in ranks:
        for key, gradient in rank.found[1].items():
            seen.add(key)
            if key not in gradients:
                assert gradient is None
            else:
                torch.testing.assert_close(gradient, gradients[key], rtol=1e-12, atol=1e-12)
    assert gradients.keys() <= seen


def record(found, case, folder):
    """What a rank has recorded of a step and an evaluation: kind, step and micro-batch of what it has computed."""
    run_on_cpu()
    ctx = mimo_role.current()
    path = Path(folder, f"rank{ctx.rank}.recording")
    ctx.recorder = Recorder(Ring.create(path, ctx.rank, ctx.world_size))
    config = configured(case)
    model = RankPart(ctx, case, config)
    communicator = communicator_of(ctx, case, config)
    run_schedule(ctx, model, communicator)
    with torch.no_grad():
        run_schedule(ctx, model, communicator, forward_only=True)
    recording = read(path)
    found.append(recording.open)
    found.append([(each.kind, each.step, each.micro_batch) for each in recording.records if each.kind in COMPUTED])


COMPUTED = (Kind.FORWARD, Kind.BACKWARD)


def test_the_schedule_records_its_forwards_and_backwards(tmp_path):
    case = Case({}, {"pp": 2})
    (ranks,) = run_jobs(Job(record, topology_of(case), (case, str(tmp_path))), timeout_s=200, preload=PRELOAD)
    assert [rank.errors for rank in ranks] == [""] * len(ranks)
    for rank in ranks:
        running, computed = rank.found
        assert running == []
        for kind in COMPUTED:
            trained = [
                (step, micro_batch) for found, step, micro_batch in computed if (found, micro_batch < 0) == (kind, False)
            ]
            assert trained == [(0, micro_batch) for micro_batch in range(MICRO_BATCHES)]
        assert [each for each in computed if each[2] < 0] == [(Kind.FORWARD, 0, -1)] * MICRO_BATCHES


ACCEPTED = {
    "dp 2:2": Case({"dp": 2}, {"dp": 2}),
    "dp 1:2": Case({}, {"dp": 2}),
    "dp 4:2": Case({"dp": 4}, {"dp": 2}, fixed=True, samples=8),
    "tp, sequence parallel": Case({"tp": 2}, {"tp": 2}, sequence_parallel=True),
    "pp": Case({"pp": 2, "dp": 2}, {"pp": 2}, fixed=True),
    "two encoders, 3 dimensions": Case({"dp": 2}, {"dp": 2}, audio={"tp": 2}, fixed=True, dims=3),
}
"""Layouts that Megatron-Core's communicator accepts. It cannot send a micro-batch without tokens over gloo."""


def compare(found, case):
    """Losses and gradients over our bridges, and over Megatron-Core's communicator."""
    from megatron.core.pipeline_parallel.bridge_communicator import BridgeCommunicator
    from megatron.core.pipeline_parallel.multimodule_communicator import MultiModulePipelineCommunicator

    run_on_cpu()
    ctx = mimo_role.current()
    config = configured(case)
    encoders = [name for name in case.modules if name != "language"]
    feeds = {name: ["language"] for name in encoders} | {"language": []}
    theirs = MultiModulePipelineCommunicator(
        ctx.megatron_grid_map(),
        feeds,
        config,
        dim_mapping={"s": 0, "b": 1, "h": 2},
        module_output_ndim=dict.fromkeys(encoders, case.dims),
    )
    for communicator in (communicator_of(ctx, case, config), theirs):
        model = RankPart(ctx, case, config)
        places = communicator.total_stages, communicator.current_stage
        places += communicator.is_pp_first_stage, communicator.is_pp_last_stage
        found.append((run_schedule(ctx, model, communicator), model.sum_gradients(), places))
    BridgeCommunicator.destroy_broadcast_pgs()
    BridgeCommunicator.destroy_bridge_pgs()


@pytest.fixture(scope="module")
def compared():
    cases = {name: replace(case, dtype=torch.float32, has_text_only=False) for name, case in ACCEPTED.items()}
    jobs = (Job(compare, topology_of(case), (case,)) for case in cases.values())
    return dict(zip(cases, run_jobs(*jobs, timeout_s=400, preload=PRELOAD), strict=True))


@pytest.mark.parametrize("name", ACCEPTED)
def test_losses_and_gradients_have_the_bits_of_megatrons_communicator(compared, name):
    assert [rank.errors for rank in compared[name]] == [""] * len(compared[name])
    for rank in compared[name]:
        (losses, gradients, places), (their_losses, their_gradients, their_places) = rank.found
        assert losses == their_losses
        assert places == their_places
        assert gradients.keys() == their_gradients.keys()
        for key, gradient in gradients.items():
            assert torch.equal(gradient, their_gradients[key])


UNEVEN = Case({}, {"dp": 2})
"""Rank 0 has the samples of both language ranks, so that their token counts matter."""


class FaultyPart(RankPart):
    """A model that makes one mistake."""

    fault = ""

    def forward(self, micro):
        found = super().forward(micro)
        if "vision" not in self.coords:
            return found
        output = found["vision"]
        if self.fault == "rows":
            found["vision"] = output[1:].clone()
            set_token_counts(found["vision"], token_counts(output))
        elif self.fault == "counts":
            set_token_counts(output, token_counts(output)[1:])
        elif self.fault == "no counts":
            found["vision"] = output.clone()
        elif self.fault == "no output":
            del found["vision"]
        elif self.fault == "dtype":
            found["vision"] = output.float()
        elif self.fault == "dimensions":
            found["vision"] = output[0]
        return found


def make_mistake(found, fault):
    run_on_cpu()
    ctx = mimo_role.current()
    is_vision = ctx.role.has_modality_modules
    case = replace(UNEVEN, frozen=("vision",) if fault == "frozen on one side" and is_vision else ())
    config = configured(case)
    model = FaultyPart(ctx, case, config)
    model.fault = fault
    samples = 4 if fault == "samples" and not is_vision else case.samples
    frozen = ["vision"] if fault == "frozen trains" else case.frozen
    communicator = ctx.megatron_pipeline_communicator(config, samples=samples, frozen=frozen)
    micro_batches = MICRO_BATCHES - (fault == "micro-batches" and is_vision)
    with torch.set_grad_enabled(fault != "backward without gradients"):
        run_schedule(ctx, model, communicator, micro_batches=micro_batches, forward_only=fault == "forward only")
    if fault == "micro-batches":
        run_schedule(ctx, model, communicator, micro_batches=micro_batches)


MISTAKES = {
    "rows": "vision lane 0|lane 0 of the bridge vision stage 0 -> language stage 0 holds samples 0-5",
    "counts": "token counts of 5 samples, but its lane has 6",
    "no counts": r"are 6 samples, of which each may have another number of tokens; pass tokens= if it is fixed, or call",
    "no output": "returned no output of 'vision' to send",
    "dtype": r"sends torch\.float32; the schedule takes config\.pipeline_dtype=torch\.float64",
    "dimensions": r"return \[tokens, hidden\] or \[sequence, batch, hidden\]",
    "samples": "all ranks call exchange_spec|batch of",
    "frozen on one side": "gradients",
    "frozen trains": "frozen: 'vision' has parameters to train",
    "micro-batches": "micro-batch",
    "backward without gradients": r"a schedule with backwards does not run under torch\.no_grad",
    "forward only": r"forward_only=True under torch\.no_grad",
}


@pytest.fixture(scope="module")
def mistakes():
    jobs = [Job(make_mistake, topology_of(UNEVEN), (fault,)) for fault in MISTAKES]
    jobs.append(Job(make_mistake, Topology.from_modules({"vision": {}, "language": {}}, layout="colocated"), ("",)))
    shared = {
        "vision": {},
        "audio": {"after": "vision"},
        "video": {"after": "vision", "colocate_with": "audio"},
        "language": {},
    }
    jobs.append(Job(make_mistake, Topology.from_modules(shared), ("",)))
    return dict(zip([*MISTAKES, "colocated", "shared"], run_jobs(*jobs, timeout_s=400, preload=PRELOAD), strict=True))


@pytest.mark.parametrize("fault", MISTAKES)
def test_a_mistake_on_one_rank_is_an_error_on_all_before_the_timeout(mistakes, fault):
    assert any(re.search(MISTAKES[fault], rank.errors) for rank in mistakes[fault]), mistakes[fault]
    for rank in mistakes[fault]:
        assert "Error" in rank.errors
        assert rank.seconds < LIMIT_S / 2


def test_modules_on_the_same_ranks_are_refused(mistakes):
    (rank,) = mistakes["colocated"]
    assert "ScheduleError: Megatron-Core's schedule runs each rank once for a micro-batch" in rank.error


def test_a_rank_whose_modules_take_the_same_output_is_refused(mistakes):
    assert "two modules of rank 1 take the output of 'vision'" in mistakes["shared"][1].error


class LargeOutputs(torch.nn.Module):
    """Sends 4 MiB in each micro-batch, far more than a connection buffers; the next output gets memory that has become free."""

    def __init__(self, ctx, config):
        super().__init__()
        self.config = config
        self.is_encoder = ctx.role.has_modality_modules
        self.scale = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def set_input_tensor(self, tensors):
        self.given = tensors[0]

    def forward(self, micro):
        if self.is_encoder:
            return {"vision": self.scale * torch.full((512, 1024), micro + 1.0, dtype=torch.float64)}
        return self.given["vision"].mean() * self.scale


def send_large_outputs(found):
    run_on_cpu()
    ctx = mimo_role.current()
    config = configured(Case({}, {}))
    communicator = ctx.megatron_pipeline_communicator(config, samples=1)
    model = LargeOutputs(ctx, config)
    found.append(run_schedule(ctx, model, communicator, micro_batches=6))
    found.append(model.scale.grad.item())


def test_an_output_is_freed_by_the_schedule_while_it_is_being_sent():
    (ranks,) = run_jobs(Job(send_large_outputs, topology_of(Case({}, {}))), preload=PRELOAD)
    assert [rank.errors for rank in ranks] == ["", ""]
    assert ranks[1].found[0] == pytest.approx([1, 2, 3, 4, 5, 6])
    assert [rank.found[1] for rank in ranks] == pytest.approx([21, 21])
