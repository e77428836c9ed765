"""Tiny random vision-language checkpoints with working processors, built offline without torchvision.

    build("llava", folder)   # a folder such as a model repository holds: config, weights, tokenizer, template

Built: LLaVA-1.5, LLaVA-NeXT, Qwen2.5-VL, Idefics3, SmolVLM, InternVL and PaliGemma. The processors of Qwen2.5-VL,
SmolVLM and InternVL also hold a video processor, which exists only with torchvision; their folders hold what such
repositories hold, and it is for the reader of the folder to do without video. SmolVLM's own processor also needs the
package num2words, so its model is paired with the processor of Idefics3, whose pixel layout it shares.
"""

from __future__ import annotations

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
IDEFICS_EXTRA = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
TEXT = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "tie_word_embeddings": False,
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}


class Recipe(NamedTuple):
    """What distinguishes one architecture's folder from another's."""

    placeholder: str  # what the template writes for an image
    extra_tokens: list[str]
    config: Callable[[PreTrainedTokenizerFast], PreTrainedConfig]
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


def _id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    return int(tokenizer.convert_tokens_to_ids(token))


def _llava(tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    return LlavaConfig(
        text_config=LlamaConfig(vocab_size=len(tokenizer), **TEXT),
        vision_config=CLIPVisionConfig(**VISION, projection_dim=24),
        image_token_id=_id(tokenizer, "<image>"),
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )


def _llava_next(tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    return LlavaNextConfig(
        text_config=LlamaConfig(vocab_size=len(tokenizer), **TEXT),
        vision_config=CLIPVisionConfig(**VISION, projection_dim=24),
        image_token_id=_id(tokenizer, "<image>"),
        image_grid_pinpoints=[[SIDE, 2 * SIDE], [2 * SIDE, SIDE]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )


def _qwen(tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    return Qwen2_5_VLConfig(
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 24,
            "intermediate_size": 36,
            "num_heads": 2,
            "patch_size": PATCH,
            "out_hidden_size": HIDDEN,
            "fullatt_block_indexes": [1],
            "window_size": 56,
        },
        image_token_id=_id(tokenizer, "<|image_pad|>"),
        video_token_id=_id(tokenizer, "<|video_pad|>"),
        vision_start_token_id=_id(tokenizer, "<|vision_start|>"),
        vision_end_token_id=_id(tokenizer, "<|vision_end|>"),
        tie_word_embeddings=False,
    )


def _idefics(kind: type[PreTrainedConfig]) -> Callable[[PreTrainedTokenizerFast], PreTrainedConfig]:
    def config(tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
        text = LlamaConfig(vocab_size=len(tokenizer), **TEXT)
        return kind(
            text_config=text,
            vision_config=dict(VISION),
            image_token_id=_id(tokenizer, "<image>"),
            scale_factor=2,
            pad_token_id=3,
            tie_word_embeddings=False,
        )

    return config


def _internvl(tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    return InternVLConfig(
        text_config=Qwen2Config(vocab_size=len(tokenizer), **TEXT),
        vision_config={**VISION, "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]},
        image_token_id=_id(tokenizer, "<IMG_CONTEXT>"),
        image_seq_length=1,
        downsample_ratio=0.5,
    )


def _paligemma(tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    return PaliGemmaConfig(
        text_config=GemmaConfig(vocab_size=len(tokenizer) + 1152, head_dim=8, **{**TEXT, "tie_word_embeddings": True}),
        vision_config=SiglipVisionConfig(**VISION, projection_dim=HIDDEN),
        image_token_id=_id(tokenizer, "<image>"),
        projection_dim=HIDDEN,
    )


CLIP_IMAGES = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": SIDE},
    "crop_size": {"height": SIDE, "width": SIDE},
}
IDEFICS_IMAGES = {
    "image_processor_type": "Idefics3ImageProcessor",
    "size": {"longest_edge": SIDE},
    "max_image_size": {"longest_edge": SIDE},
    "do_image_splitting": False,
}
LLAVA_PROCESSOR = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
IDEFICS_PROCESSOR = {"processor_class": "Idefics3Processor", "image_seq_len": 1}

RECIPES = {
    "llava": Recipe(
        "<image>\n", ["<image>"], _llava, {"processor_class": "LlavaProcessor", **LLAVA_PROCESSOR}, CLIP_IMAGES
    ),
    "llava_next": Recipe(
        "<image>\n",
        ["<image>"],
        _llava_next,
        {"processor_class": "LlavaNextProcessor", **LLAVA_PROCESSOR},
        {
            **CLIP_IMAGES,
            "image_processor_type": "LlavaNextImageProcessor",
            "image_grid_pinpoints": [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]],
        },
    ),
    "qwen2_5_vl": Recipe(
        "<|vision_start|><|image_pad|><|vision_end|>",
        ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
        _qwen,
        {"processor_class": "Qwen2_5_VLProcessor"},
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "patch_size": PATCH,
            "merge_size": 2,
            "temporal_patch_size": 2,
            "size": {"shortest_edge": 28 * 28, "longest_edge": 56 * 56},
        },
    ),
    "idefics3": Recipe("<image>", IDEFICS_EXTRA, _idefics(Idefics3Config), IDEFICS_PROCESSOR, IDEFICS_IMAGES),
    "smolvlm": Recipe("<image>", IDEFICS_EXTRA, _idefics(SmolVLMConfig), IDEFICS_PROCESSOR, IDEFICS_IMAGES),
    "internvl": Recipe(
        "<IMG_CONTEXT>\n",
        ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"],
        _internvl,
        {"processor_class": "InternVLProcessor", "image_seq_length": 1},
        {
            "image_processor_type": "GotOcr2ImageProcessor",
            "size": {"height": SIDE, "width": SIDE},
            "crop_to_patches": False,
        },
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    ),
    "paligemma": Recipe(
        "<image>",
        ["<image>"],
        _paligemma,
        {"processor_class": "PaliGemmaProcessor"},
        {
            "image_processor_type": "SiglipImageProcessor",
            "size": {"height": SIDE, "width": SIDE},
            "image_seq_length": 4,
        },
    ),
}
# PaliGemma reads its prompt in both directions, which supervised answers inside the text do not survive.
REFUSED = ["paligemma"]
KINDS: list[str] = [kind for kind in RECIPES if kind not in REFUSED]


def build(kind: str, folder: Path) -> Path:
    """The folder, filled with a random checkpoint of about 100 kB; the same weights every time."""
    recipe = RECIPES[kind]
    named = {"extra_special_tokens": recipe.tokenizer} if recipe.tokenizer else {}
    tokenizer = train_tokenizer(recipe.extra_tokens, **named)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(recipe.config(tokenizer))
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=2, pad_token_id=3)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(recipe.processor))
    (folder / "preprocessor_config.json").write_text(json.dumps(recipe.images))
    (folder / "chat_template.jinja").write_text(template(recipe.placeholder))
    return folder
