"""Seeded bugs: each is a change of a script without bugs, or of its config, and what finds it.

`docs/guides/rehearsed-bugs.md` has the messages, or why a bug is not found.
"""

from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).with_name("scripts")

WITHOUT_BUGS = tuple(sorted(path.stem for path in SCRIPTS.glob("*.py")))
"""The scripts without bugs, each with the config of a large job that it trains beside it."""


@dataclass(frozen=True, kw_only=True)
class Bug:
    """A bug, and what finds it."""

    name: str
    """In the words of the guide."""
    script: str
    """Of `scripts`, without the bug."""
    change: tuple[tuple[str, str], ...] = ()
    """Texts of the script, and what the bug has in their place."""
    overrides: tuple[str, ...] = ()
    """Of the config, which the bug needs or is."""
    found_by: str | None = "rehearse"
    """The command; `None` if nothing finds it before the job runs."""
    steps: int = 2
    timeout_s: float = 60

    def text(self) -> str:
        """The script with the bug."""
        found = (SCRIPTS / f"{self.script}.py").read_text(encoding="utf-8")
        for old, new in self.change:
            assert found.count(old) == 1, f"{self.name}: {found.count(old)} times in {self.script}.py: {old}"
            found = found.replace(old, new)
        return found


def bug(name, script, *change, **settings):
    """A bug with one or several changes, given as old and new texts one after the other."""
    pairs = tuple(zip(change[::2], change[1::2], strict=True))
    return Bug(name=name, script=script, change=pairs, **settings)


BUGS = [
    # Batches, samples and sizes.
    bug(
        "lanes that do not divide the batch, which the script divides without a remainder",
        "multimodal",
        "rows = (lane + 1) * BATCH // lanes - lane * BATCH // lanes",
        "rows = BATCH // lanes",
        overrides=("modules.vision.dp=1000",),
    ),
    bug(
        "a pipeline stage without layers",
        "multimodal",
        "LAYERS, MICRO_BATCHES = 4096, 3, 8, 32, 6",
        "LAYERS, MICRO_BATCHES = 4096, 3, 8, 32, 1",
        "per_stage = LAYERS // stages",
        "per_stage = min(-(-LAYERS // stages), LAYERS - stage * -(-LAYERS // stages))",
    ),
    bug(
        "heads that tp does not divide",
        "language",
        "HEADS = 2**24, 4, 64, 8",
        "HEADS = 2**24, 4, 72, 6",
    ),
    bug(
        "an index of samples in int32, which overflows on the last lanes",
        "language",
        "first * LENGTH * WIDTH",
        "torch.tensor(first * LENGTH * WIDTH, dtype=torch.int32)",
    ),
    bug(
        "a division by the number of lanes beyond 1,024",
        "language",
        "torch.ones(()) / lanes",
        "1 / (lanes - 1024)",
    ),
    bug(
        "fewer test samples on the last lane, gathered as if all had the same",
        "language",
        "TEST_SAMPLES = 8192",
        "TEST_SAMPLES = 8189",
        "tests = TEST_SAMPLES // lanes",
        "tests = -(-TEST_SAMPLES // lanes)",
        "errors = torch.ones(tests)",
        "errors = torch.ones(min(tests, TEST_SAMPLES - lane * tests))",
    ),
    bug(
        "a last lane with one batch less",
        "language",
        "steps = 4",
        "steps = 4 if lane < lanes - 1 else 3",
        steps=0,
    ),
    # Two sides that disagree.
    bug(
        "two modules that disagree on the width of activations",
        "multimodal",
        "hidden = from_vision(batch_size=BATCH, sample_shape=(LENGTH, WIDTH)",
        "hidden = from_vision(batch_size=BATCH, sample_shape=(LENGTH, 2 * WIDTH)",
    ),
    bug(
        "two modules that disagree on the dtype of activations",
        "multimodal",
        "from_vision(model(images), ",
        "from_vision(model(images).bfloat16(), ",
    ),
    bug(
        "an encoder that is frozen while its receiver sends gradients",
        "multimodal",
        "    images = torch.randn(rows, LENGTH, WIDTH)\n        from_vision(model(images), batch_size=BATCH).backward()",
        "    images = torch.randn(rows, LENGTH, WIDTH)\n"
        "        with torch.no_grad():\n            from_vision(model(images), batch_size=BATCH)",
    ),
    bug(
        "no_grad on the side that receives",
        "multimodal",
        "        hidden = from_vision(batch_size=BATCH, sample_shape=(LENGTH, WIDTH), dtype=torch.float32)\n        words",
        "        with torch.no_grad():\n"
        "            hidden = from_vision(batch_size=BATCH, sample_shape=(LENGTH, WIDTH), dtype=torch.float32)\n        words",
    ),
    bug(
        "gradient accumulation that is off by one in one module",
        "multimodal",
        "for _ in range(MICRO_BATCHES):",
        "for _ in range(MICRO_BATCHES if not is_vision else MICRO_BATCHES + 1):",
    ),
    bug(
        "tied embeddings of two sizes: one stage pads the vocabulary",
        "multimodal",
        "nn.Embedding(WORDS, WIDTH)",
        "nn.Embedding(WORDS if is_first else 64, WIDTH)",
    ),
    bug(
        "a gradient in bfloat16 on one stage",
        "multimodal",
        'sum_over(ctx.group("language", "pp"), embedding.weight.grad)',
        'sum_over(ctx.group("language", "pp"), embedding.weight.grad.bfloat16() if is_last else embedding.weight.grad)',
    ),
    bug(
        "a message that one side sends in another dtype",
        "language",
        "torch.ones(LENGTH, WIDTH), group",
        "torch.ones(LENGTH, WIDTH, dtype=torch.bfloat16), group",
    ),
    bug(
        "a message that is sent and never received",
        "language",
        "    for each in work:",
        "    if lane < lanes - 1:\n"
        "        work.append(dist.isend(torch.ones(1), group=dp, group_dst=lane + 1))\n    for each in work:",
    ),
    # Collectives.
    bug(
        "a sum over the world on one role only",
        "multimodal",
        'sum_over(ctx.group("language", "dp"), loss)',
        "sum_over(None, loss)",
    ),
    bug(
        "a barrier in one branch only",
        "multimodal",
        "    dist.barrier()",
        "    if is_vision:\n        dist.barrier()",
    ),
    bug(
        "a collective under `if rank == 0`",
        "language",
        "accuracy = evaluate()",
        "if ctx.rank == 0:\n        accuracy = evaluate()",
    ),
    bug(
        "a checkpoint that only rank 0 saves",
        "language",
        "    checkpoint.save(",
        "    if ctx.rank == 0:\n        checkpoint.save(",
    ),
    bug(
        "two reductions: a sum on one stage and a maximum on another",
        "multimodal",
        'sum_over(ctx.group("language", "pp"), embedding.weight.grad)',
        "dist.all_reduce(embedding.weight.grad, dist.ReduceOp.SUM if is_first else dist.ReduceOp.MAX, "
        'ctx.group("language", "pp"))',
    ),
    bug(
        "another order of collectives on the last lane",
        "multimodal",
        "    for parameter in model.parameters():",
        "    for parameter in reversed(list(model.parameters())) "
        "if not is_vision and lane == lanes - 1 else model.parameters():",
    ),
    bug(
        "new_group called by its members only",
        "language",
        "for pair in neighbours]",
        "for pair in neighbours if ctx.rank in pair]",
    ),
    bug(
        "a broadcast over tp from rank 0 of the world",
        "language",
        "dist.broadcast_object_list(layout, group=tp, group_src=0)",
        "dist.broadcast(torch.ones(1), src=0, group=tp)",
    ),
    bug(
        "an object broadcast from a rank that is not in the group",
        "language",
        "dist.broadcast_object_list(layout, group=tp, group_src=0)",
        "dist.broadcast_object_list(layout, src=0, group=tp)",
    ),
    bug(
        "LOCAL_RANK as a rank of the world",
        "language",
        "dist.broadcast_object_list(layout, group=tp, group_src=0)",
        "dist.broadcast_object_list(layout, src=local_rank // tp_size * tp_size, group=tp)",
    ),
    bug(
        "a wrong group on one stage",
        "multimodal",
        'sum_over(ctx.group(module, "dp"), parameter.grad)',
        'sum_over(ctx.group(module, "pp" if is_last and not is_vision else "dp"), parameter.grad)',
    ),
    bug(
        "a loop that looks for a number of experts and finds none",
        "experts",
        "EXPERTS, WIDTH, TOKENS = 64",
        "EXPERTS, WIDTH, TOKENS = 60",
        "per_rank = EXPERTS // ep_size",
        "per_rank = 1\nwhile per_rank * ep_size != EXPERTS: per_rank += 1",
        found_by="rehearse --timeout-s",
        timeout_s=3,
    ),
    # torch's own wrappers.
    bug(
        "a mesh whose shape is not the size of the world",
        "sharded",
        "(world // TP, TP)",
        "(world, TP)",
    ),
    bug(
        "a tensor parallel layer whose output stays sharded",
        "sharded",
        '"down": RowwiseParallel()',
        '"down": ColwiseParallel()',
    ),
    bug(
        "a placement along a dimension that the tensor lacks",
        "sharded",
        "[Shard(0)])",
        "[Shard(2)])",
    ),
    bug(
        "a list of experts that ep does not divide",
        "experts",
        "EXPERTS, WIDTH, TOKENS = 64",
        "EXPERTS, WIDTH, TOKENS = 60",
    ),
    bug(
        "an import that only one role has",
        "multimodal",
        "per_stage =",
        "if is_last and not is_vision:\n    import fused_cross_entropy\nper_stage =",
    ),
    # Memory.
    bug(
        "a last stage whose head does not fit the GPU",
        "large",
        "WORDS // 16",
        "WORDS",
        found_by="rehearse --memory",
        steps=1,
    ),
    bug(
        "FSDP over a group of one rank",
        "large",
        '"language", "dp")',
        '"language", "tp")',
        found_by="rehearse --memory",
        steps=1,
    ),
    bug(
        "losses that keep the graph of each micro-batch",
        "large",
        "        loss = model(torch.ones(LENGTH, WIDTH)).square().mean()\n        loss.backward()\n",
        "        losses = [*(losses if _ else ()), model(torch.ones(LENGTH, WIDTH)).square().mean()]\n"
        "    sum(losses).backward()\n",
        found_by="rehearse --memory",
        steps=1,
    ),
    # What the plan refuses, and what real ranks show.
    bug(
        "ranks that ep does not divide",
        "experts",
        overrides=("modules.language.ep=7",),
        found_by="plan",
    ),
    bug(
        "a pool with a node less than its module needs",
        "language",
        overrides=("pools.gpus.nodes=511",),
        found_by="plan",
    ),
    bug(
        "modules on the same ranks with two sizes",
        "multimodal",
        overrides=("layout=colocated", "modules.vision.tp=3"),
        found_by="plan",
    ),
    bug(
        "replicas of a module that begin with different numbers",
        "replicas",
        "torch.manual_seed(1)",
        "torch.manual_seed(ctx.rank)",
        found_by="rehearse --shrink, and run",
    ),
    # What nothing finds.
    bug(
        "files named by LOCAL_RANK: two nodes write the same one",
        "language",
        "accuracy = evaluate()",
        'accuracy = evaluate()\n    (ctx.run_dir / f"accuracy-{local_rank}.txt").write_text(str(accuracy))',
        found_by=None,
    ),
    bug(
        "a seed by LOCAL_RANK: ranks of different nodes draw the same samples",
        "language",
        "torch.manual_seed(1 + tp_rank)",
        "torch.manual_seed(1 + local_rank)",
        found_by=None,
    ),
    bug(
        "the same wrong group on all ranks: gradients summed over tp",
        "language",
        "dist.all_reduce(parameter.grad, group=dp)",
        "dist.all_reduce(parameter.grad, group=tp)",
        found_by=None,
    ),
    bug(
        "two groups in another order on odd lanes: a deadlock",
        "language",
        "    dist.all_reduce(loss, group=dp, op=dist.ReduceOp.SUM)",
        "    for group in (dp, tp) if lane % 2 else (tp, dp):\n"
        "        dist.all_reduce(loss, group=group, op=dist.ReduceOp.SUM)",
        found_by=None,
    ),
    bug(
        "names in a checkpoint that differ by rank",
        "language",
        "step, model, optimizer)",
        'step, model, optimizer, extra={f"rng_{ctx.rank}": 1})',
        found_by=None,
    ),
]
