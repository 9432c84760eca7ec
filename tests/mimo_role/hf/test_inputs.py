"""Samples as a family joins them: as transformers itself takes them, or refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mimo_role.errors import HfError
from mimo_role.hf import Collation
from mimo_role.hf.families import family_of
from tests.mimo_role.hf import small_models
from tests.mimo_role.hf.small_models import IMAGE, Samples

KINDS = ("llava", "idefics3", "smolvlm", "qwen2_audio", "qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    torch.manual_seed(1)
    config = getattr(small_models, request.param)()
    return family_of(config).model_class()(config).double()


def encoder_of(config):
    ((name, encoder),) = family_of(config).encoders.items()
    return name, encoder


@settings(max_examples=15)
@given(indices=st.lists(st.integers(0, 95), max_size=4))
def test_an_encoder_returns_as_many_embeddings_as_are_counted(model, indices):
    name, encoder = encoder_of(model.config)
    samples = [Samples(model.config)[index] for index in indices]

    batch = Collation(model.config, name)(samples)

    assert batch["tokens"] == [encoder.count(model.config, sample) for sample in samples]
    found = 0 if batch["inputs"] is None else len(encoder.embed(model.model, batch["inputs"])["embeddings"])
    assert found == sum(batch["tokens"])


def test_blank_inputs_have_gradients_of_zero(model):
    _, encoder = encoder_of(model.config)
    embedded = encoder.embed(model.model, encoder.blank(model.config, torch.float64))

    assert all(len(tensor) > 0 for tensor in embedded.values())
    sum(tensor[:0].sum() for tensor in embedded.values()).backward()
    gradients = [each.grad for path in encoder.paths for each in model.get_submodule(path).parameters() if each.requires_grad]
    assert all(gradient is None or not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("kind", ["idefics3", "smolvlm"])
def test_images_without_padding_give_the_logits_of_a_batch_that_the_processor_pads(kind):
    torch.manual_seed(1)
    config = getattr(small_models, kind)()
    model = family_of(config).model_class()(config).double()
    samples = [Samples(config)[index] for index in range(9)]
    text = Collation(config, "language")(samples)
    arguments = {"input_ids": text["input_ids"], "attention_mask": text["attention_mask"].long()}

    def padded(name, *shape):
        found = torch.zeros(len(samples), 4, *shape, dtype=torch.float64)
        for row, sample in enumerate(samples):
            if name in sample:
                found[row, : len(sample[name])] = sample[name]
        return found

    expected = model(
        **arguments, pixel_values=padded("pixel_values", 3, 16, 16), pixel_attention_mask=padded("pixel_attention_mask", 16, 16)
    ).logits
    found = model(**arguments, **encoder_of(config)[1].join(config, samples)).logits
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def with_images(config, number, **changed):
    """A sample with a number of images or sounds."""
    samples = map(Samples(config).__getitem__, range(96))
    return {**next(sample for sample in samples if _images(sample) == number), **changed}


def _images(sample):
    features = sample.get("input_features", sample.get("pixel_values"))
    return 0 if features is None else int((features.flatten(1) != 0).any(1).sum())


@pytest.mark.parametrize("kind", ["llava", "idefics3", "smolvlm", "qwen2_audio"])
def test_images_of_another_sample_are_refused_though_the_sums_are_equal(kind):
    config = getattr(small_models, kind)()
    name, _ = encoder_of(config)
    one, two = with_images(config, 1), with_images(config, 2)
    swapped = [{**one, "input_ids": two["input_ids"]}, {**two, "input_ids": one["input_ids"]}]

    with pytest.raises(HfError, match=rf"the {name} inputs of a sample become \d+ embeddings, its input_ids have \d+ places"):
        Collation(config, name)(swapped)


def test_a_text_without_its_images_is_refused():
    sample = {"input_ids": torch.tensor([1, IMAGE, 2])}
    with pytest.raises(HfError, match="become 0 embeddings, its input_ids have 1 places"):
        Collation(small_models.qwen2_5_vl(), "vision")([sample])


@pytest.mark.parametrize("module", ["vision", "language"])
def test_a_sample_with_padding_is_refused(module):
    sample = {"input_ids": torch.tensor([0, 1, 2]), "attention_mask": torch.tensor([0, 1, 1])}
    with pytest.raises(HfError, match="attention_mask of a sample has zeros"):
        Collation(small_models.llava(), module)([sample])


def test_images_of_zeros_are_no_images():
    config = small_models.smolvlm()
    sample = {"input_ids": torch.tensor([1, 2]), "pixel_values": torch.zeros(2, 3, 16, 16)}
    assert Collation(config, "vision")([sample]) == {"inputs": None, "tokens": [0]}


def _refused(config, samples, message):
    with pytest.raises(HfError, match=message):
        Collation(config, encoder_of(config)[0])(samples)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param({"pixel_values": torch.ones(1, 1, 3, 16, 16)}, r"not \[images, channels, height, width\]", id="a batch"),
        pytest.param({"pixel_values": torch.ones(1, 3, 8, 32)}, "8 x 32 pixels", id="not square"),
        pytest.param({"pixel_values": torch.ones(1, 3, 12, 12)}, "a multiple of 8", id="patches that cannot be joined"),
        pytest.param({"pixel_attention_mask": torch.ones(1, 8, 8)}, "pixel_attention_mask of a sample is", id="mask"),
    ],
)
def test_images_that_idefics3_would_misread_are_refused(changed, message):
    config = small_models.idefics3()
    _refused(config, [with_images(config, 1, **changed)], message)


def test_images_of_two_sizes_are_refused():
    config = small_models.idefics3()
    small = {"input_ids": torch.tensor([1, IMAGE]), "pixel_values": torch.ones(1, 3, 8, 8)}
    _refused(config, [with_images(config, 1), small], "sides of 8 and 16 pixels")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param({"feature_attention_mask": None}, "without feature_attention_mask", id="no mask"),
        pytest.param({"feature_attention_mask": torch.ones(24)}, r"they are \[sounds, mels, frames\]", id="a mask of one"),
        pytest.param({"feature_attention_mask": torch.zeros(1, 24)}, "a sound without frames", id="no frames"),
    ],
)
def test_sounds_that_qwen2_audio_would_misread_are_refused(changed, message):
    config = small_models.qwen2_audio()
    _refused(config, [with_images(config, 1, **changed)], message)


def test_videos_are_refused():
    config = small_models.qwen3_vl()
    _refused(config, [{**Samples(config)[1], "pixel_values_videos": torch.ones(4, 96)}], "leave videos out")
