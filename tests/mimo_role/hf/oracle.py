"""Training steps of transformers' own single process, and of a job."""

from fnmatch import fnmatch
from itertools import chain

import torch
from torch.nn.functional import cross_entropy

import mimo_role
from mimo_role import GlobalBatchSampler, RoleDataLoader
from mimo_role.hf import Collation, RankModel
from mimo_role.hf.families import family_of
from tests.mimo_role.hf.small_models import Samples

STEPS, BATCH, MICRO_BATCHES, MAX_NORM = 10, 8, 2, 0.5


def _sampler():
    return GlobalBatchSampler(length=96, global_batch_size=BATCH, micro_batches=MICRO_BATCHES, seed=7)


def oracle(config, folder, freeze=(), steps=STEPS, save_to=None, device="cpu"):
    """Save a model with random weights and train it; return the loss and the gradient norm of each step."""
    torch.manual_seed(1)
    family = family_of(config)
    model = family.model_class()(config).double().train()
    model.save_pretrained(folder)
    model.to(device)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and not any(fnmatch(name, pattern) for pattern in freeze))
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.05)
    samples, found = Samples(config), []
    from mimo_role.data.global_batch import Position

    batches = iter(_sampler().batches(Position()))
    for _ in range(steps):
        batch = [samples[index] for index in chain.from_iterable(next(batches).micro_batches)]
        text = Collation(config, "language")(batch)
        inputs = {}
        for encoder in family.encoders.values():
            inputs.update(encoder.join(config, batch) or {})
        if "image_grid_thw" in family.position_inputs:
            inputs["mm_token_type_ids"] = (text["input_ids"] == config.image_token_id).int()
        inputs.update(input_ids=text["input_ids"], attention_mask=text["attention_mask"].long())
        logits = model(**{name: value.to(device) for name, value in inputs.items()}).logits
        assert logits.dtype == torch.float64
        loss = cross_entropy(logits.flatten(0, 1), text["labels"].to(device).flatten(), ignore_index=-100)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        found.append((loss.item(), norm.item()))
    if save_to is not None:
        model.save_pretrained(save_to)
    return found


def layout_run(topology, config, folder, fsdp, freeze=(), steps=STEPS):
    return steps_of(mimo_role.init(topology, backend="gloo", timeout_s=60), config, folder, fsdp, freeze, steps)


def steps_of(ctx, config, folder, fsdp, freeze=(), steps=STEPS):
    """The loss and the gradient norm of each step of a job, on one of its ranks."""
    model = RankModel(ctx, config, dtype=torch.float64, fsdp=fsdp, freeze=freeze)
    model.load(folder)
    loader = RoleDataLoader(ctx, Samples(config), _sampler(), collate_fn=model.collate_fn, needs=model.needs)
    parameters = [each for each in model.modules.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.05) if parameters else None
    found = []
    for _, micro_batches in zip(range(steps), loader, strict=False):
        losses = model.step(micro_batches)
        ctx.sum_gradients(model.modules)
        norm = ctx.clip_grad_norm_(model.modules, MAX_NORM)
        if optimizer:
            optimizer.step()
            optimizer.zero_grad()
        found.append((ctx.mean_loss(losses).item(), norm.item()))
    return found
