"""Questions about handwritten digits, in 0 to 3 pictures of different sizes, and a processor for models without files."""

from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch.nn.functional import interpolate
from torch.utils.data import Dataset
from transformers import AutoProcessor, PreTrainedConfig, PreTrainedTokenizerFast

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PICTURES, NEXT = "which digits are in the pictures ?", "which digit follows"
SPECIAL = ("<pad>", "<end>", "<unknown>")
VOCABULARY = (*SPECIAL, *DIGITS, "picture", *dict.fromkeys(f"{PICTURES} {NEXT}".split()))
IMAGE = "<image>"
PICTURES_OF = (0, 1, 1, 1, 1, 2, 2, 3)
"""The numbers of pictures of questions, in turn."""
HELD_OUT = 360
"""Of the 1,797 images of digits; and held-out questions."""


class SmallProcessor:
    """Words and pixels as a model's own processor of transformers makes them, for a model that has none."""

    def __init__(self, config: PreTrainedConfig) -> None:
        self._config = config
        vocabulary = {**{word: number for number, word in enumerate(VOCABULARY)}, IMAGE: config.image_token_id}
        words = Tokenizer(WordLevel(vocabulary, unk_token="<unknown>"))
        words.pre_tokenizer = WhitespaceSplit()
        pad, end, unknown = SPECIAL
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=pad, eos_token=end, unk_token=unknown)

    def apply_chat_template(self, messages: list[dict[str, Any]], **_options: Any) -> str:
        """The text of a conversation, with `<image>` for each image."""
        parts = [part for message in messages for part in message["content"]]
        return "".join(f"picture {IMAGE} " if part["type"] == "image" else part["text"] for part in parts) + " "

    def __call__(self, *, text: str, images: list[torch.Tensor] | None, **_options: Any) -> dict[str, torch.Tensor]:
        """The arguments of a model's `forward` for one sample: a batch of 1."""
        found = self._squares(images or []) if self._config.model_type == "llava" else self._patches(images or [])
        counts = found.pop("counts")
        for count in counts:
            text = text.replace(IMAGE, "<place> " * count, 1)
        ids = self.tokenizer(text.replace("<place>", IMAGE), return_tensors="pt").input_ids
        fields = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "image_grid_thw" in found:
            fields["mm_token_type_ids"] = (ids == self._config.image_token_id).int()
        return {**fields, **(found if images else {})}

    def _squares(self, images: list[torch.Tensor]) -> dict[str, Any]:
        size = self._config.vision_config.image_size
        pixels = [_resized(image, size, size) for image in images]
        counts = [self._config.image_seq_length] * len(images)
        return {"pixel_values": torch.stack(pixels) if pixels else None, "counts": counts}

    def _patches(self, images: list[torch.Tensor]) -> dict[str, Any]:
        """Patches as in Qwen-VL: those that are merged follow one another, and an image is a film of equal frames."""
        vision = self._config.vision_config
        patch, side, frames = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        rows, grids = [torch.empty(0)], []
        for image in images:
            height, width = (max(round(size / (patch * side)), 1) for size in image.shape[1:])
            pixels = _resized(image, height * side * patch, width * side * patch)[None].expand(frames, -1, -1, -1)
            cut = pixels.reshape(frames, 3, height, side, patch, width, side, patch).permute(2, 5, 3, 6, 1, 0, 4, 7)
            rows.append(cut.reshape(height * width * side**2, -1))
            grids.append([1, height * side, width * side])
        counts = [height * width // side**2 for _, height, width in grids]
        return {"pixel_values": torch.cat(rows[1:] or rows), "image_grid_thw": torch.tensor(grids), "counts": counts}


def processor_of(config: PreTrainedConfig, folder: str | None) -> Any:
    """The processor of a folder, if it has one; that of transformers needs torchvision."""
    if folder and any((Path(folder) / name).exists() for name in ("processor_config.json", "preprocessor_config.json")):
        return AutoProcessor.from_pretrained(folder, local_files_only=True)
    return SmallProcessor(config)


class Questions(Dataset):
    """Questions about pictures, and some without. Held-out ones show digits that no other question shows."""

    def __init__(self, processor: Any, length: int, *, held_out: bool) -> None:
        self._processor, self._length = processor, length
        found = load_digits()
        order = torch.randperm(len(found.images), generator=torch.Generator().manual_seed(0))
        order = order[:HELD_OUT] if held_out else order[HELD_OUT:]
        self._images, self._labels = torch.tensor(found.images)[order].float() / 16, found.target[order]
        self._seed = 0 if held_out else 1_000_000

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """A sample for `mimo_role.hf`: what the processor returns, without its batch dimension, and labels of the answer."""
        images, prompt, answer = self.example(index)
        fields = self.inputs(images, prompt + answer + self._processor.tokenizer.eos_token)
        sample = {name: tensor[0] if name == "input_ids" else tensor for name, tensor in fields.items()}
        asked = self.inputs(images, prompt)["input_ids"].shape[1]
        places = torch.arange(len(sample["input_ids"]))
        return {**sample, "labels": sample["input_ids"].masked_fill(places < asked, -100)}

    def inputs(self, images: list[torch.Tensor], text: str) -> dict[str, torch.Tensor]:
        """The arguments of a model's `forward` or `generate`."""
        return dict(self._processor(text=text, images=images or None, return_tensors="pt"))

    def example(self, index: int) -> tuple[list[torch.Tensor], str, str]:
        """Images `[3, height, width]` of 0 to 255, a prompt, and its answer."""
        random = torch.Generator().manual_seed(self._seed + index)
        numbers = torch.randint(len(self._images), (PICTURES_OF[index % len(PICTURES_OF)],), generator=random).tolist()
        images = [self._picture(number, random) for number in numbers]
        digits = [int(self._labels[number]) for number in numbers]
        question = PICTURES
        if not images:
            digit = int(torch.randint(10, (), generator=random))
            question, digits = f"{NEXT} {DIGITS[digit]} ?", [(digit + 1) % 10]
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        prompt = self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return images, prompt, " ".join(DIGITS[digit] for digit in digits)

    def _picture(self, number: int, random: torch.Generator) -> torch.Tensor:
        """A digit of a random color, 16 or 24 pixels high and wide."""
        height, width = (16 + 8 * torch.randint(2, (2,), generator=random)).tolist()
        color = 128 + 127 * torch.rand(3, 1, 1, generator=random)
        image = interpolate(self._images[number][None, None], size=(height, width), mode="bilinear")
        return (image[0] * color).to(torch.uint8)


def _resized(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Pixels between -1 and 1."""
    return interpolate(image[None].float(), size=(height, width), mode="bilinear", antialias=True)[0] / 127.5 - 1
