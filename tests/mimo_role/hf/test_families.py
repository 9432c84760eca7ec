"""Each family of models: the losses and gradient norms of transformers' own single process, and what is refused."""

from typing import NamedTuple

import pytest

import mimo_role
from mimo_role import Topology
from mimo_role.errors import HfError
from mimo_role.hf import RankModel
from tests.mimo_role.fresh_worlds import Job, run_jobs
from tests.mimo_role.hf import small_models
from tests.mimo_role.hf.oracle import oracle, steps_of

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]

STEPS = 10


class Case(NamedTuple):
    """A model in a layout."""

    kind: str
    encoder: dict[str, int]
    language: dict[str, int]
    fsdp: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    tied: bool = False

    @property
    def config(self):
        return getattr(small_models, self.kind)(**({"tied": True} if self.tied else {}))

    @property
    def topology(self):
        name = "audio" if self.kind == "qwen2_audio" else "vision"
        return Topology.from_modules({name: self.encoder, "language": self.language})

    @property
    def model(self):
        """What does not depend on the layout."""
        return self.kind, self.tied, self.freeze


CASES = {
    "idefics3, tp": Case("idefics3", {"dp": 2}, {"tp": 2}),
    "idefics3, uneven dp": Case("idefics3", {"dp": 3}, {}),
    "idefics3, frozen tower": Case("idefics3", {"dp": 2}, {"pp": 2}, freeze=("model.vision_model.*",)),
    "smolvlm, tied, pp": Case("smolvlm", {}, {"pp": 2}, tied=True),
    "smolvlm, tied, tp and FSDP2": Case("smolvlm", {"dp": 2}, {"tp": 2}, fsdp=("vision", "language"), tied=True),
    "smolvlm, tied and frozen, pp": Case("smolvlm", {}, {"pp": 2}, freeze=("lm_head.*",), tied=True),
    "qwen2_audio, pp": Case("qwen2_audio", {"dp": 2}, {"pp": 2}),
    "qwen2_audio, FSDP2": Case("qwen2_audio", {"dp": 2}, {"dp": 2}, fsdp=("audio", "language")),
    "qwen2_audio, frozen encoder": Case(
        "qwen2_audio",
        {"dp": 2},
        {"tp": 2},
        fsdp=("audio",),
        freeze=("model.audio_tower.*", "model.multi_modal_projector.*"),
    ),
    "qwen2_5_vl, tp": Case("qwen2_5_vl", {"dp": 2}, {"tp": 2}),
    "qwen2_5_vl, uneven dp": Case("qwen2_5_vl", {}, {"dp": 3}),
    "qwen2_5_vl, cp": Case("qwen2_5_vl", {"dp": 2}, {"cp": 2}, tied=True),
}


def train(found, config, folder, fsdp, freeze):
    found += steps_of(mimo_role.current(), config, folder, fsdp, freeze, STEPS)


def build_tied(found):
    config = small_models.smolvlm(tied=True)
    ctx = mimo_role.current()
    if ctx.role.has_language_module:
        with pytest.raises(HfError, match=r"gradients of tied embeddings: .* modules\.language\.groups\.families: megatron"):
            RankModel(ctx, config)
    found.append(ctx.rank)


@pytest.fixture(scope="module")
def of_one_process(tmp_path_factory):
    """By model: a folder with its weights, and what transformers computes with them."""
    found = {}
    for case in CASES.values():
        if case.model not in found:
            folder = str(tmp_path_factory.mktemp(case.kind))
            found[case.model] = folder, oracle(case.config, folder, _freeze_of_one(case), STEPS)
    return found


def _freeze_of_one(case):
    """transformers has tied embeddings under one name."""
    return tuple(pattern.replace("lm_head", "model.text_model.embed_tokens") for pattern in case.freeze)


@pytest.fixture(scope="module")
def outcomes(of_one_process):
    jobs = [
        Job(train, case.topology, (case.config, of_one_process[case.model][0], case.fsdp, case.freeze))
        for case in CASES.values()
    ]
    tied = Job(build_tied, Topology.from_modules({"vision": {}, "language": {"pp": 3}}))
    return dict(zip([*CASES, "no group"], run_jobs(*jobs, tied, timeout_s=280), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_ten_steps_are_those_of_one_process(outcomes, of_one_process, name):
    _, expected = of_one_process[CASES[name].model]

    for outcome in outcomes[name]:
        assert outcome.errors == ""
        assert outcome.found == [pytest.approx(numbers, rel=1e-12, abs=0) for numbers in expected]


def test_tied_embeddings_without_a_group_of_the_end_stages_are_refused(outcomes):
    assert [(outcome.found, outcome.errors) for outcome in outcomes["no group"]] == [([rank], "") for rank in range(4)]
