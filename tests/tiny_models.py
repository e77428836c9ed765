"""Tiny random vision-language checkpoints with working processors, built offline without torchvision.

    build("llava", folder)   # a folder such as a model repository holds: config, weights, tokenizer, template

Built: LLaVA-1.5, LLaVA-NeXT, Qwen2.5-VL, Idefics3, SmolVLM, InternVL and PaliGemma. The processors of Qwen2.5-VL,
SmolVLM and InternVL also hold a video processor, which exists only with torchvision; their folders hold what such
repositories hold; whoever reads the folder must do without video. SmolVLM's own processor also needs the
package num2words, so its model is paired with the processor of Idefics3, whose pixel layout it shares.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    GemmaConfig,
    GenerationConfig,
    Idefics3Config,
    InternVLConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    PaliGemmaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2Config,
    SiglipVisionConfig,
    SmolVLMConfig,
)

SIDE, PATCH, LAYERS, HIDDEN = 28, 14, 3, 32
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>"]
TEXT = {
    "hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3,
    "tie_word_embeddings": False,
}  # fmt: skip
VISION = {
    "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE,
    "patch_size": PATCH,
}  # fmt: skip


class Recipe(NamedTuple):
    """What distinguishes one architecture's folder from another's."""

    placeholder: str  # what the template writes for an image
    extra_tokens: list[str]
    kind: type[PreTrainedConfig]
    text: Callable[..., Any]  # makes text_config of TEXT and the size of the vocabulary
    config: dict[str, Any]  # the rest; where a key ends in `token_id`, the value is a token
    processor: dict[str, Any]  # processor_config.json
    images: dict[str, Any]  # preprocessor_config.json
    tokenizer: dict[str, str] | None = None  # named special tokens that the processor asks its tokenizer for


def template(placeholder: str) -> str:
    """A chat template that writes `placeholder` for each image, and ends each turn with the end token."""
    return (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}" + placeholder + "{% else %}{{ c['text'] }}{% endif %}"
        "{% endfor %}{% endif %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def train_tokenizer(extra_tokens: list[str], **named: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer trained on a few words; it can encode any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["user assistant What colour is the circle? The circle is red."] * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SPECIAL[1], eos_token=SPECIAL[2], pad_token=SPECIAL[3], **named
    )
    fast.add_special_tokens({"additional_special_tokens": extra_tokens})
    return fast


CLIP = CLIPVisionConfig(**VISION, projection_dim=24)
PINPOINTS = {"image_grid_pinpoints": [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]}
LLAVA = {
    "vision_config": CLIP, "image_token_id": "<image>", "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
}  # fmt: skip
LLAVA_PROCESSOR = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
CLIP_IMAGES = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": SIDE},
    "crop_size": {"height": SIDE, "width": SIDE},
}
IDEFICS_TOKENS = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
IDEFICS = {
    "vision_config": VISION, "image_token_id": "<image>", "scale_factor": 2, "pad_token_id": "<pad>",
    "tie_word_embeddings": False,
}  # fmt: skip
IDEFICS_PROCESSOR = {"processor_class": "Idefics3Processor", "image_seq_len": 1}
IDEFICS_IMAGES = {
    "image_processor_type": "Idefics3ImageProcessor", "size": {"longest_edge": SIDE},
    "max_image_size": {"longest_edge": SIDE}, "do_image_splitting": False,
}  # fmt: skip
QWEN_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}

RECIPES = {
    "llava": Recipe(
        "<image>\n", ["<image>"], LlavaConfig, LlamaConfig, {**LLAVA, "image_seq_length": (SIDE // PATCH) ** 2},
        {"processor_class": "LlavaProcessor", **LLAVA_PROCESSOR}, CLIP_IMAGES,
    ),
    "llava_next": Recipe(
        "<image>\n", ["<image>"], LlavaNextConfig, LlamaConfig, {**LLAVA, **PINPOINTS},
        {"processor_class": "LlavaNextProcessor", **LLAVA_PROCESSOR},
        {**CLIP_IMAGES, **PINPOINTS, "image_processor_type": "LlavaNextImageProcessor"},
    ),
    "qwen2_5_vl": Recipe(
        "<|vision_start|><|image_pad|><|vision_end|>",
        ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
        Qwen2_5_VLConfig, lambda **text: {**text, **QWEN_ROPE},
        {
            "vision_config": {
                "depth": 2, "hidden_size": 24, "intermediate_size": 36, "num_heads": 2, "patch_size": PATCH,
                "out_hidden_size": HIDDEN, "fullatt_block_indexes": [1], "window_size": 56,
            },
            "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
            "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>",
            "tie_word_embeddings": False,
        },
        {"processor_class": "Qwen2_5_VLProcessor"},
        {
            "image_processor_type": "Qwen2VLImageProcessor", "patch_size": PATCH, "merge_size": 2,
            "temporal_patch_size": 2, "size": {"shortest_edge": 28 * 28, "longest_edge": 56 * 56},
        },
    ),
    "idefics3": Recipe(
        "<image>", IDEFICS_TOKENS, Idefics3Config, LlamaConfig, IDEFICS, IDEFICS_PROCESSOR, IDEFICS_IMAGES
    ),
    "smolvlm": Recipe("<image>", IDEFICS_TOKENS, SmolVLMConfig, LlamaConfig, IDEFICS, IDEFICS_PROCESSOR, IDEFICS_IMAGES),
    "internvl": Recipe(
        "<IMG_CONTEXT>\n", ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"], InternVLConfig, Qwen2Config,
        {
            "vision_config": {**VISION, "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]},
            "image_token_id": "<IMG_CONTEXT>", "image_seq_length": 1, "downsample_ratio": 0.5,
        },
        {"processor_class": "InternVLProcessor", "image_seq_length": 1},
        {
            "image_processor_type": "GotOcr2ImageProcessor", "size": {"height": SIDE, "width": SIDE},
            "crop_to_patches": False,
        },
        {
            "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    ),
    "paligemma": Recipe(
        "<image>", ["<image>"], PaliGemmaConfig,
        lambda vocab_size, **text: GemmaConfig(
            **{**text, "vocab_size": vocab_size + 1152, "head_dim": 8, "tie_word_embeddings": True}
        ),
        {
            "vision_config": SiglipVisionConfig(**VISION, projection_dim=HIDDEN), "image_token_id": "<image>",
            "projection_dim": HIDDEN,
        },
        {"processor_class": "PaliGemmaProcessor"},
        {
            "image_processor_type": "SiglipImageProcessor", "size": {"height": SIDE, "width": SIDE},
            "image_seq_length": 4,
        },
    ),
}  # fmt: skip
# PaliGemma reads its prompt in both directions, which supervised answers inside the text do not survive.
REFUSED = ["paligemma"]
KINDS: list[str] = [kind for kind in RECIPES if kind not in REFUSED]


def build(kind: str, folder: Path) -> Path:
    """The folder, filled with a random checkpoint of about 100 kB; the same weights every time."""
    recipe = RECIPES[kind]
    named = {"extra_special_tokens": recipe.tokenizer} if recipe.tokenizer else {}
    tokenizer = train_tokenizer(recipe.extra_tokens, **named)  # type: ignore[arg-type]
    config = {
        key: tokenizer.convert_tokens_to_ids(value) if key.endswith("token_id") else value
        for key, value in copy.deepcopy(recipe.config).items()
    }
    text = recipe.text(**TEXT, vocab_size=len(tokenizer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(recipe.kind(text_config=text, **config))
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=2, pad_token_id=3)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(recipe.processor))
    (folder / "preprocessor_config.json").write_text(json.dumps(recipe.images))
    (folder / "chat_template.jinja").write_text(template(recipe.placeholder))
    return folder
