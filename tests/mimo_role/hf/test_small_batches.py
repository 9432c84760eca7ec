"""Batches with fewer samples than lanes, as at the end of an epoch."""

import pytest
import torch

import mimo_role
from mimo_role import GlobalBatchSampler, RoleDataLoader, Topology
from mimo_role.hf import RankModel
from tests.mimo_role.fresh_worlds import Job, run_jobs
from tests.mimo_role.hf import small_models

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(240)]

LAYOUTS = [
    ({}, {}, ()),
    ({"dp": 3}, {"dp": 3}, ("vision", "language")),
    ({}, {"dp": 2, "cp": 2, "pp": 2}, ()),
    ({"dp": 2}, {"dp": 2, "tp": 2}, ()),
]


def train(found, fsdp):
    """Two epochs of five samples, in steps of four and one."""
    ctx, config = mimo_role.current(), small_models.qwen3_vl()
    model = RankModel(ctx, config, dtype=torch.float64, fsdp=fsdp)
    model.initialize(seed=3)
    sampler = GlobalBatchSampler(length=5, global_batch_size=4, micro_batches=2, seed=1)
    loader = RoleDataLoader(ctx, small_models.Samples(config, 5), sampler, collate_fn=model.collate_fn, needs=model.needs)
    optimizer = torch.optim.SGD(model.modules.parameters(), lr=0.5)
    for _ in range(2):
        for micro_batches in loader:
            losses = model.step(micro_batches)
            ctx.sum_gradients(model.modules)
            norm = ctx.clip_grad_norm_(model.modules, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            found.append((ctx.mean_loss(losses).item(), norm.item()))


def test_lanes_without_samples_change_no_number():
    jobs = [
        Job(train, Topology.from_modules({"vision": vision, "language": language}), (fsdp,))
        for vision, language, fsdp in LAYOUTS
    ]
    alone, *divided = run_jobs(*jobs, timeout_s=200)
    assert [rank.errors for ranks in (alone, *divided) for rank in ranks] == [""] * sum(map(len, (alone, *divided)))
    assert len(alone[0].found) == 4
    for ranks in divided:
        for rank in ranks:
            assert rank.found == [pytest.approx(step, rel=1e-12) for step in alone[0].found]


class OtherTexts(small_models.Samples):
    """Samples of which each has one image token less."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        at = (sample["input_ids"] == small_models.IMAGE).nonzero()[:1, 0]
        kept = [number for number in range(len(sample["input_ids"])) if number not in at.tolist()]
        return {name: value[kept] if name in ("input_ids", "labels") else value for name, value in sample.items()}


def train_on_other_texts(_found):
    ctx, config = mimo_role.current(), small_models.llava()
    model = RankModel(ctx, config, dtype=torch.float64)
    model.initialize(seed=3)
    sampler = GlobalBatchSampler(length=4, global_batch_size=4, micro_batches=1, shuffle=False)
    dataset = OtherTexts(config, 4) if "language" in ctx.role.modules else small_models.Samples(config, 4)
    (micro_batches,) = RoleDataLoader(ctx, dataset, sampler, collate_fn=model.collate_fn, needs=model.needs)
    model.step(micro_batches)


def test_embeddings_for_another_text_are_refused():
    (ranks,) = run_jobs(Job(train_on_other_texts, Topology.from_modules({"vision": {}, "language": {}})), timeout_s=100)
    assert "embeddings came from 'vision'" in ranks[1].error
    assert ranks[0].error
