"""Weights of models of transformers: loaded, initialized, and exported."""

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import mimo_role
from mimo_role import CheckpointError, GlobalBatchSampler, RoleDataLoader, Topology, checkpoint
from mimo_role.hf import RankModel, export_pretrained, weights
from mimo_role.hf.families import family_of
from mimo_role.testing import run_ranks
from tests.mimo_role.hf import small_models
from tests.mimo_role.hf.oracle import oracle

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(240)]

STEPS = 3


def train_and_save(config, folder, checkpoints):
    ctx = mimo_role.current()
    model = RankModel(ctx, config, dtype=torch.float64, fsdp=("language",))
    model.load(folder)
    sampler = GlobalBatchSampler(length=96, global_batch_size=8, micro_batches=2, seed=7)
    loader = RoleDataLoader(ctx, small_models.Samples(config), sampler, collate_fn=model.collate_fn, needs=model.needs)
    optimizer = torch.optim.SGD(model.modules.parameters(), lr=0.05)
    for _, micro_batches in zip(range(STEPS), loader, strict=False):
        model.step(micro_batches)
        ctx.sum_gradients(model.modules)
        ctx.clip_grad_norm_(model.modules, 0.5)
        optimizer.step()
        optimizer.zero_grad()
    checkpoint.save(ctx, checkpoints, STEPS, model.modules, optimizer)


@pytest.mark.parametrize("kind", ["llava", "qwen3_vl"])
def test_a_model_trained_over_tp_pp_and_fsdp2_is_one_of_transformers(kind, tmp_path):
    config = getattr(small_models, kind)()
    trained = tmp_path / "one process"
    oracle(config, str(tmp_path / "start"), steps=STEPS, save_to=trained)
    topology = Topology.from_modules({"vision": {}, "language": {"tp": 2, "pp": 2, "dp": 2}})
    run_ranks(train_and_save, topology, config, str(tmp_path / "start"), str(tmp_path / "saved"), timeout_s=200)
    export_pretrained(config, tmp_path / "saved", tmp_path / "exported")
    models = [
        family_of(config).model_class().from_pretrained(path, dtype=torch.float64).eval()
        for path in (trained, tmp_path / "exported")
    ]
    inputs = small_models.batch_of_one(config)
    with torch.no_grad():
        expected, found = (model(**inputs).logits for model in models)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        tokens = [model.generate(**inputs, max_new_tokens=12, do_sample=False).tolist() for model in models]
    assert tokens[0] == tokens[1]


def initialized(config):
    model = RankModel(mimo_role.current(), config, dtype=torch.float64)
    model.initialize(5)
    whole = {}
    for part in model.modules.values():
        for name, parameter in part.named_parameters():
            tensor = parameter.detach()
            whole[name] = (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).numpy()
    return whole


def test_random_weights_are_those_of_transformers_in_any_layout():
    config = small_models.qwen3_vl()
    layouts = ({"vision": {}, "language": {}}, {"vision": {}, "language": {"tp": 2, "pp": 2}})
    found = [run_ranks(initialized, topology, config) for topology in map(Topology.from_modules, layouts)]
    one, divided = ({name: value for rank in ranks for name, value in rank.items()} for ranks in found)
    assert one.keys() == divided.keys()
    assert all((one[name] == divided[name]).all() for name in one)
    assert one["model.language_model.norm.weight"].tolist() == [1.0] * 32
    assert one["lm_head.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert (one["lm_head.weight"] != one["model.language_model.embed_tokens.weight"]).any()


def refusals(folder):
    model = RankModel(mimo_role.current(), small_models.llava())
    found = []
    for path in (folder, Path(folder) / "nothing"):
        try:
            model.load(path)
        except CheckpointError as error:
            found.append(str(error).replace(folder, "FOLDER"))
    return found


def test_files_of_another_model_are_refused(tmp_path):
    config = small_models.llava()
    config.text_config.vocab_size = 200
    family_of(config).model_class()(config).save_pretrained(tmp_path)
    vision, language = run_ranks(refusals, Topology.from_modules({"vision": {}, "language": {}}), str(tmp_path))
    nothing = "FOLDER/nothing: no .safetensors files; pass a folder that save_pretrained has written"
    assert vision == [nothing]
    assert language == [
        "FOLDER: 'language_model.model.embed_tokens.weight' has the shape [200, 32], not [96, 32]",
        nothing,
    ]


class Scaled(torch.nn.Module):
    """A layer with a buffer that files have, and one that they do not have."""

    def __init__(self, value):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((2,), value))
        self.register_buffer("scale", torch.full((3,), value))
        self.register_buffer("cache", torch.full((4,), value), persistent=False)


def test_buffers_that_files_have_are_read(tmp_path):
    save_file(Scaled(2.0).state_dict(), tmp_path / "model.safetensors")
    part = Scaled(0.0)
    names = {name: name for name in weights.stored_tensors(part)}
    weights.load_pretrained(torch.nn.ModuleDict({"vision": part}), names, tmp_path, {})
    assert (part.weight.tolist(), part.scale.tolist(), part.cache.tolist()) == ([2.0] * 2, [2.0] * 3, [0.0] * 4)


MIB = 2**20


class Watch:
    """The most anonymous memory of this process, and the most of a file that it has mapped and read, in bytes."""

    def __init__(self, folder):
        self._folder, self._done = folder, threading.Event()
        self.memory = self.file = 0
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self):
        self._before = self._anonymous()
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()
        self._look()

    def _watch(self):
        while not self._done.wait(0.0005):
            self._look()

    def _look(self):
        self.memory = max(self.memory, self._anonymous() - self._before)
        self.file = max(self.file, self._mapped())

    def _anonymous(self):
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) * 1024

    def _mapped(self):
        total, ours = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if "-" in line.split(" ", 1)[0]:
                ours = self._folder in line
            elif ours and line.startswith("Rss:"):
                total += int(line.split()[1]) * 1024
        return total


def memory_while_loading(config, folder):
    ctx = mimo_role.current()
    RankModel(ctx, config)  # imports what it needs
    with Watch(folder) as watch:
        model = RankModel(ctx, config)
        model.load(folder)
    tensors = [parameter.untyped_storage().nbytes() for parameter in model.modules.parameters()]
    return watch.memory, watch.file, sum(tensors), max(tensors)


def test_a_rank_takes_memory_for_its_share_and_reads_no_more(tmp_path):
    config = small_models.llava()
    config.text_config.update({"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "vocab_size": 8000})
    family_of(config).model_class()(config).save_pretrained(tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    topology = Topology.from_modules({"vision": {}, "language": {"pp": 4}})
    ranks = run_ranks(memory_while_loading, topology, config, str(tmp_path), timeout_s=200)
    assert sum(share for _, _, share, _ in ranks) == pytest.approx(size, rel=0.01)
    for rank, (memory, read, share, largest) in enumerate(ranks):
        sizes = ", ".join(f"{size / MIB:.1f}" for size in (share, largest, memory, read))
        print(f"rank {rank}: MiB of its share, the largest tensor, the memory taken, and what was read: {sizes}")
        assert memory <= share + largest + 16 * MIB
        assert read <= share + 4 * MIB
