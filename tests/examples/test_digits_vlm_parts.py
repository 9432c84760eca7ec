import itertools

import pytest
import torch
from data import CAPTION_TOKENS, CAPTIONS, END, IGNORED, MODALITIES, NOISE, VOCABULARY, Digits, placeholder_id, sequence_tokens
from model import ENCODERS, LANGUAGE, Encoder, LanguageModel, Stage, initialize
from options import parse
from sklearn.datasets import load_digits

from mimo_role import MimoError
from tests.examples.whole_batches import whole_batches

BOTH = ("vision", "profile")


@pytest.fixture(scope="module")
def digits():
    return Digits(BOTH, torch.float64)


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


def captions(part):
    """The tokens and targets of all samples of a part."""
    return part["language"].tensors


def caption_of(targets):
    """The text of one row of targets, up to its end."""
    tokens = [VOCABULARY[number] for number in targets.tolist() if number != IGNORED]
    return "".join(tokens[: tokens.index(END)])


def patches_of(image):
    return MODALITIES["vision"].read(torch.as_tensor(image / 16))


def test_each_image_is_held_out_or_trained(digits):
    noise = torch.Generator().manual_seed(0).get_state()
    held_out = list(digits.held_out["vision"])
    training = []
    for index in range(1438):
        torch.set_rng_state(noise)
        noisy = digits.training["vision"][index]
        torch.set_rng_state(noise)
        training.append(noisy - MODALITIES["vision"].read(NOISE * torch.randn(8, 8, dtype=torch.float64)))

    found = torch.stack([*held_out, *training]).flatten(1).round(decimals=6)
    expected = torch.stack([patches_of(image) for image in load_digits().images]).flatten(1)
    assert len(held_out) == 359
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, expected.tolist()))


def test_the_split_is_the_same_every_time(digits):
    again = Digits(["vision"], torch.float64)

    assert torch.equal(again.held_out["vision"], digits.held_out["vision"])


def test_captions_are_the_names_of_the_digits(digits):
    found = load_digits()
    patches = [tuple(patches_of(image).flatten().tolist()) for image in found.images]
    label_of = dict(zip(patches, found.target, strict=True))
    _, targets = captions(digits.held_out)

    labels = [label_of[tuple(row.flatten().tolist())] for row in digits.held_out["vision"]]
    assert [caption_of(row) for row in targets] == [CAPTIONS[label] for label in labels]


def test_every_target_is_the_token_that_follows(digits):
    tokens, predicted = captions(digits.held_out)
    read = tokens[:, -CAPTION_TOKENS:]
    more_follows = predicted[:, 1:] != IGNORED

    assert torch.equal(read[:, 1:][more_follows], predicted[:, :-1][more_follows])


def test_every_modality_has_a_placeholder_for_each_of_its_tokens(digits):
    tokens, _ = captions(digits.held_out)

    assert tokens.shape == (359, sequence_tokens(BOTH))
    for name in BOTH:
        assert digits.held_out[name].shape == (359, MODALITIES[name].tokens, MODALITIES[name].features)
        assert ((tokens == placeholder_id(name)).sum(dim=1) == MODALITIES[name].tokens).all()


def test_patches_and_profile_are_cut_from_the_image():
    image = torch.arange(64.0).view(8, 8)

    assert MODALITIES["vision"].read(image)[5].tolist() == [18, 19, 26, 27]
    assert MODALITIES["profile"].read(image)[:, 1].tolist() == [11.5, 29]
    for modality in MODALITIES.values():
        assert torch.equal(modality.read(torch.stack([image, image]))[1], modality.read(image))


def test_noise_is_the_same_for_each_modality_and_another_in_each_epoch(digits):
    first, second = itertools.islice(whole_batches(digits, 1438), 2)
    mean_of_image = [batch["vision"].mean(dim=(1, 2)) for batch in (first, second)]

    for batch, mean in zip((first, second), mean_of_image, strict=True):
        torch.testing.assert_close(batch["profile"][:, 0].mean(dim=1), mean)
    assert not torch.isin(mean_of_image[0], mean_of_image[1]).any()


def test_more_samples_in_a_batch_than_there_are_is_refused(digits):
    with pytest.raises(MimoError, match="--batch-size 1439: there are 1438 training samples"):
        digits.training_sampler(batch_size=1439, micro_batches=1, seed=0)


def test_an_unknown_modality_is_refused():
    with pytest.raises(MimoError, match=r"modules\.audio: this example has no such encoder; it has vision, profile"):
        Digits(["audio"], torch.float32)


@pytest.mark.parametrize("name", BOTH)
def test_the_stages_of_an_encoder_make_up_the_whole(name, digits):
    def build(stage):
        return Encoder(name, stage)

    (whole,) = stages_of(build, ENCODERS[name], 1)
    parts = stages_of(build, ENCODERS[name], 2)
    raw = digits.held_out[name][:5]

    assert sorted(name for name, _ in named_parameters(parts)) == sorted(name for name, _ in named_parameters([whole]))
    assert torch.equal(run(parts, raw), whole(raw))
    assert whole(raw).shape == (5, MODALITIES[name].tokens, LANGUAGE.width)


def test_the_stages_of_the_language_model_make_up_the_whole(digits):
    def build(stage):
        return LanguageModel(BOTH, stage)

    (whole,) = stages_of(build, LANGUAGE, 1)
    parts = stages_of(build, LANGUAGE, 2)
    tokens = captions(digits.held_out)[0][:5]
    embeddings = {name: torch.randn(5, MODALITIES[name].tokens, LANGUAGE.width, dtype=torch.float64) for name in BOTH}

    assert sorted(name for name, _ in named_parameters(parts)) == sorted(name for name, _ in named_parameters([whole]))
    expected = whole(whole.merge(tokens, embeddings))
    assert torch.equal(run(parts, parts[0].merge(tokens, embeddings)), expected)


def test_only_the_ends_of_a_pipeline_hold_embedding_and_head():
    first, last = stages_of(lambda stage: LanguageModel(BOTH, stage), LANGUAGE, 2)

    assert first.embedding is not None
    assert first.head is None
    assert last.embedding is None
    assert last.head is not None


def test_embeddings_land_at_their_placeholders(digits):
    (model,) = stages_of(lambda stage: LanguageModel(BOTH, stage), LANGUAGE, 1)
    tokens = captions(digits.held_out)[0][:5]
    embeddings = {name: torch.randn(5, MODALITIES[name].tokens, LANGUAGE.width, dtype=torch.float64) for name in BOTH}

    merged = model.merge(tokens, embeddings) - model.position.weight

    for name in BOTH:
        found = merged[tokens == placeholder_id(name)].view(5, -1, LANGUAGE.width)
        assert torch.allclose(found, embeddings[name])
    assert torch.allclose(merged[:, -CAPTION_TOKENS:], model.embedding(tokens[:, -CAPTION_TOKENS:]))


def test_a_caption_is_predicted_without_seeing_what_follows(digits):
    (model,) = stages_of(lambda stage: LanguageModel(["vision"], stage), LANGUAGE, 1)
    tokens = captions(Digits(["vision"], torch.float64).held_out)[0][:5]
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
