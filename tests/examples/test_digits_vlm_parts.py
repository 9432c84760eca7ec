import pytest
import torch
from data import CAPTION_TOKENS, CAPTIONS, IGNORED, MODALITIES, Digits, caption_of, placeholder_id, sequence_tokens
from model import ENCODERS, LANGUAGE, Encoder, LanguageModel, Stage, initialize
from options import parse
from sklearn.datasets import load_digits

from mimo_role import MimoError

BOTH = ("vision", "profile")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits():
    return Digits(BOTH, torch.float64, CPU)


def stages_of(build, sizes, count, seed=3):
    """A module as `count` stages, each built and initialized alone."""
    stages = [
        build(Stage(sizes.layers_of(index, count), is_first=index == 0, is_last=index == count - 1)) for index in range(count)
    ]
    for stage in stages:
        initialize(stage.double(), "module", seed)
    return stages


def named_parameters(stages):
    return [(name, parameter) for stage in stages for name, parameter in stage.named_parameters()]


def run(stages, hidden):
    for stage in stages:
        hidden = stage(hidden)
    return hidden


def test_held_out_and_training_samples_are_all_images_and_share_none(digits):
    held_out, training = set(digits.held_out_samples.tolist()), set(digits.training_samples.tolist())

    assert not held_out & training
    assert held_out | training == set(range(1797))
    assert len(held_out) == 359


def test_the_split_is_the_same_every_time(digits):
    assert torch.equal(Digits(["vision"], torch.float32, CPU).held_out_samples, digits.held_out_samples)


def test_captions_are_the_names_of_the_digits(digits):
    labels = load_digits().target[digits.held_out_samples.numpy()]

    assert [caption_of(targets) for targets in digits.held_out().targets] == [CAPTIONS[label] for label in labels]


def test_every_target_is_the_token_that_follows(digits):
    batch = digits.held_out()
    read, predicted = batch.tokens[:, -CAPTION_TOKENS:], batch.targets
    more_follows = predicted[:, 1:] != IGNORED

    assert torch.equal(read[:, 1:][more_follows], predicted[:, :-1][more_follows])


def test_every_modality_has_a_placeholder_for_each_of_its_tokens(digits):
    batch = digits.held_out()

    assert batch.tokens.shape == (359, sequence_tokens(BOTH))
    for name in BOTH:
        assert batch.inputs[name].shape == (359, MODALITIES[name].tokens, MODALITIES[name].features)
        assert ((batch.tokens == placeholder_id(name)).sum(dim=1) == MODALITIES[name].tokens).all()


def test_patches_and_profile_are_cut_from_the_image():
    image = torch.arange(64.0).view(1, 8, 8)

    assert MODALITIES["vision"].read(image)[0, 5].tolist() == [18, 19, 26, 27]
    assert MODALITIES["profile"].read(image)[0, :, 1].tolist() == [11.5, 29]


def test_a_batch_follows_from_seed_and_step_alone(digits):
    batch = digits.batch(1, 5, 23)
    other = Digits(BOTH, torch.float64, CPU).batch(1, 5, 23)

    assert torch.equal(batch.tokens, other.tokens)
    assert all(torch.equal(batch.inputs[name], other.inputs[name]) for name in BOTH)
    assert not torch.equal(batch.tokens, digits.batch(1, 6, 23).tokens)
    assert not torch.equal(batch.tokens, digits.batch(2, 5, 23).tokens)


def test_micro_batches_are_the_batch_in_order(digits):
    batch = digits.batch(0, 1, 23)
    parts = batch.split(4)

    assert [len(part) for part in parts] == [6, 6, 6, 5]
    assert torch.equal(torch.cat([part.targets for part in parts]), batch.targets)
    assert {part.predictions_in_whole for part in parts} == {batch.predictions_in_whole}
    assert sum(int((part.targets != IGNORED).sum()) for part in parts) == batch.predictions_in_whole


def test_an_unknown_modality_is_refused():
    with pytest.raises(MimoError, match=r"modules\.audio: this example has no such encoder; it has vision, profile"):
        Digits(["audio"], torch.float32, CPU)


@pytest.mark.parametrize("name", BOTH)
def test_the_stages_of_an_encoder_make_up_the_whole(name, digits):
    def build(stage):
        return Encoder(name, stage)

    (whole,) = stages_of(build, ENCODERS[name], 1)
    parts = stages_of(build, ENCODERS[name], 2)
    raw = digits.batch(0, 1, 5).inputs[name]

    assert sorted(name for name, _ in named_parameters(parts)) == sorted(name for name, _ in named_parameters([whole]))
    assert torch.equal(run(parts, raw), whole(raw))
    assert whole(raw).shape == (5, MODALITIES[name].tokens, LANGUAGE.width)


def test_the_stages_of_the_language_model_make_up_the_whole(digits):
    def build(stage):
        return LanguageModel(BOTH, stage)

    (whole,) = stages_of(build, LANGUAGE, 1)
    parts = stages_of(build, LANGUAGE, 2)
    batch = digits.batch(0, 1, 5)
    embeddings = {name: torch.randn(5, MODALITIES[name].tokens, LANGUAGE.width, dtype=torch.float64) for name in BOTH}

    assert sorted(name for name, _ in named_parameters(parts)) == sorted(name for name, _ in named_parameters([whole]))
    expected = whole(whole.merge(batch.tokens, embeddings))
    assert torch.equal(run(parts, parts[0].merge(batch.tokens, embeddings)), expected)


def test_only_the_ends_of_a_pipeline_hold_embedding_and_head():
    first, last = stages_of(lambda stage: LanguageModel(BOTH, stage), LANGUAGE, 2)

    assert first.embedding is not None
    assert first.head is None
    assert last.embedding is None
    assert last.head is not None


def test_embeddings_land_at_their_placeholders(digits):
    (model,) = stages_of(lambda stage: LanguageModel(BOTH, stage), LANGUAGE, 1)
    batch = digits.batch(0, 1, 5)
    embeddings = {name: torch.randn(5, MODALITIES[name].tokens, LANGUAGE.width, dtype=torch.float64) for name in BOTH}

    merged = model.merge(batch.tokens, embeddings) - model.position.weight

    for name in BOTH:
        found = merged[batch.tokens == placeholder_id(name)].view(5, -1, LANGUAGE.width)
        assert torch.allclose(found, embeddings[name])
    assert torch.allclose(merged[:, -CAPTION_TOKENS:], model.embedding(batch.tokens[:, -CAPTION_TOKENS:]))


def test_a_caption_is_predicted_without_seeing_what_follows(digits):
    (model,) = stages_of(lambda stage: LanguageModel(["vision"], stage), LANGUAGE, 1)
    tokens = Digits(["vision"], torch.float64, CPU).batch(0, 1, 5).tokens
    embeddings = {"vision": torch.randn(5, 16, LANGUAGE.width, dtype=torch.float64)}
    changed = tokens.clone()
    changed[:, -2:] = 0

    before, after = (model(model.merge(each, embeddings)) for each in (tokens, changed))

    assert torch.equal(before[:, :-2], after[:, :-2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            ["--micro-batches", "9", "--batch-size", "8"], "--micro-batches 9: a batch of 8 samples", id="too many parts"
        ),
        pytest.param(["--steps", "0"], "--steps 0: use 1 or more", id="no steps"),
        pytest.param(["--lr", "nan"], "--lr nan: use a number above 0", id="no learning rate"),
        pytest.param(["--clip-grad-norm", "-1"], "--clip-grad-norm -1.0: use 0 or more", id="negative norm"),
        pytest.param(["--checkpoint-every", "-1"], "--checkpoint-every -1: use a number of steps, or 0", id="below never"),
    ],
)
def test_impossible_options_are_refused(arguments, message):
    with pytest.raises(MimoError, match=message):
        parse(arguments)


def test_the_learning_rate_does_not_depend_on_where_training_ends():
    short, long = parse(["--steps", "10"]), parse(["--steps", "1000"])

    assert [short.learning_rate(step) for step in (1, 50, 200)] == [long.learning_rate(step) for step in (1, 50, 200)]
    assert short.learning_rate(50) == short.lr
