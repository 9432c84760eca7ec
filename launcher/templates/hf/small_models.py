"""Small models with random weights, one of each family, for runs on a CPU."""

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, PreTrainedConfig, Qwen2_5_VLConfig, Qwen3VLConfig

WIDTH, LAYERS, WORDS = 64, 2, 64
IMAGE, VIDEO, START, END = 63, 62, 61, 60
"""The last words are special tokens."""

TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": WORDS,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "initializer_range": 0.12,
}
VISION = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "initializer_range": 0.12}
QWEN_VISION = {**VISION, "depth": 2, "num_heads": 4, "patch_size": 4, "out_hidden_size": WIDTH}
QWEN = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}


def llava() -> PreTrainedConfig:
    """Images of 16x16 pixels, 16 tokens each."""
    vision = CLIPVisionConfig(num_hidden_layers=3, num_attention_heads=4, image_size=16, patch_size=4, **VISION)
    return LlavaConfig(vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_id=IMAGE, image_seq_length=16)


def qwen2_5_vl() -> PreTrainedConfig:
    """Images of any size, a token for each 8x8 pixels; windows of 32x32 in the first of two layers."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
    vision = {**QWEN_VISION, "window_size": 32, "fullatt_block_indexes": [1]}
    return Qwen2_5_VLConfig(text_config={**TEXT, "rope_parameters": rope}, vision_config=vision, **QWEN)


def qwen3_vl() -> PreTrainedConfig:
    """Images of any size, a token for each 8x8 pixels; features of its first layer go to the language model too."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    text = {**TEXT, "head_dim": 16, "rope_parameters": rope}
    vision = {**QWEN_VISION, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **QWEN)


CONFIGS = {"llava": llava, "qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl}
