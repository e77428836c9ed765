"""Tiny random vision-language checkpoints with working processors, built offline without torchvision.

    build("llava", folder)   # a folder such as a model repository holds: config, weights, tokenizer, template

The processors of Qwen2.5-VL, SmolVLM and InternVL also hold a video processor, which exists only with torchvision; their
folders hold what such repositories hold; whoever reads the folder must do without video. SmolVLM's own processor also
needs the package num2words, so its model is paired with the processor of Idefics3, whose pixel layout it shares.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, PreTrainedTokenizerFast

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
NUM_PATCHES = (SIDE // PATCH) ** 2


class Recipe(NamedTuple):
    """What distinguishes one architecture's folder from another's."""

    placeholder: str  # what the template writes for an image
    extra_tokens: list[str]
    config: dict[str, Any]  # of the model; where a key ends in `token_id`, the value is a token
    text: dict[str, Any]  # what text_config has besides TEXT and the size of the vocabulary
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


# What several architectures share

LLAMA, MISTRAL, QWEN2 = ({"model_type": kind} for kind in ("llama", "mistral", "qwen2"))
COHERE2 = {"model_type": "cohere2", "head_dim": 8}
SIGLIP = {"model_type": "siglip_vision_model", **VISION, "vision_use_head": False}
SQUARE = {"size": {"height": SIDE, "width": SIDE}}
PINPOINTS = {"image_grid_pinpoints": [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]}
PATCHED = {"image_processor_type": "GotOcr2ImageProcessor", **SQUARE, "crop_to_patches": False}

LLAVA = {
    "vision_config": {"model_type": "clip_vision_model", **VISION, "projection_dim": 24}, "image_token_id": "<image>",
    "vision_feature_layer": -1, "vision_feature_select_strategy": "default",
}  # fmt: skip
LLAVA_PROCESSOR = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
CLIP_IMAGES = {
    "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": SIDE},
    "crop_size": {"height": SIDE, "width": SIDE},
}  # fmt: skip

PIXTRAL = {"model_type": "pixtral", **VISION, "hidden_size": 32}
PIXTRAL_TOKENS = ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]
PIXTRAL_IMAGES = {"image_processor_type": "PixtralImageProcessor", "patch_size": PATCH}

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

QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
QWEN_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
QWEN = {
    "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>", "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>", "tie_word_embeddings": False,
}  # fmt: skip
QWEN_VISION = {"depth": 2, "hidden_size": 24, "intermediate_size": 36, "num_heads": 2, "patch_size": PATCH}
QWEN_IMAGES = {
    "image_processor_type": "Qwen2VLImageProcessor", "patch_size": PATCH, "merge_size": 2, "temporal_patch_size": 2,
    "size": {"shortest_edge": 28 * 28, "longest_edge": 56 * 56},
}  # fmt: skip
QWEN_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}

PROMISED = {
    "llava": Recipe(
        "<image>\n", ["<image>"], {"model_type": "llava", **LLAVA, "image_seq_length": NUM_PATCHES}, LLAMA,
        {"processor_class": "LlavaProcessor", **LLAVA_PROCESSOR}, CLIP_IMAGES,
    ),
    "llava_next": Recipe(
        "<image>\n", ["<image>"], {"model_type": "llava_next", **LLAVA, **PINPOINTS}, LLAMA,
        {"processor_class": "LlavaNextProcessor", **LLAVA_PROCESSOR},
        {**CLIP_IMAGES, **PINPOINTS, "image_processor_type": "LlavaNextImageProcessor"},
    ),
    "qwen2_5_vl": Recipe(
        QWEN_IMAGE, QWEN_TOKENS,
        {
            "model_type": "qwen2_5_vl", **QWEN,
            "vision_config": {
                **QWEN_VISION, "out_hidden_size": HIDDEN, "fullatt_block_indexes": [1], "window_size": 56,
            },
        },
        QWEN_ROPE, {"processor_class": "Qwen2_5_VLProcessor"}, QWEN_IMAGES,
    ),
    "idefics3": Recipe(
        "<image>", IDEFICS_TOKENS, {"model_type": "idefics3", **IDEFICS}, LLAMA, IDEFICS_PROCESSOR, IDEFICS_IMAGES
    ),
    "smolvlm": Recipe(
        "<image>", IDEFICS_TOKENS, {"model_type": "smolvlm", **IDEFICS}, LLAMA, IDEFICS_PROCESSOR, IDEFICS_IMAGES
    ),
    "internvl": Recipe(
        "<IMG_CONTEXT>\n", ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"],
        {
            "model_type": "internvl", "image_token_id": "<IMG_CONTEXT>", "image_seq_length": 1, "downsample_ratio": 0.5,
            "vision_config": {**VISION, "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]},
        },
        QWEN2, {"processor_class": "InternVLProcessor", "image_seq_length": 1}, PATCHED,
        {
            "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    ),
}  # fmt: skip
TRIED = {  # once each: see docs/models.md
    "vipllava": Recipe(
        "<image>\n", ["<image>"],
        {
            "model_type": "vipllava", "vision_config": LLAVA["vision_config"], "image_token_id": "<image>",
            "vision_feature_layers": [-1, -2], "image_seq_length": NUM_PATCHES,
        },
        LLAMA, {"processor_class": "LlavaProcessor", **LLAVA_PROCESSOR}, CLIP_IMAGES,
    ),
    "llava_onevision": Recipe(
        "<image>\n", ["<image>", "<video>"],
        {
            "model_type": "llava_onevision", "vision_config": SIGLIP, "image_token_id": "<image>",
            "video_token_id": "<video>", **PINPOINTS, "vision_feature_select_strategy": "full",
        },
        QWEN2,
        {
            "processor_class": "LlavaOnevisionProcessor", "num_image_tokens": NUM_PATCHES,
            "vision_feature_select_strategy": "full",
        },
        {"image_processor_type": "LlavaOnevisionImageProcessor", **SQUARE, **PINPOINTS},
    ),
    "qwen2_vl": Recipe(
        QWEN_IMAGE, QWEN_TOKENS,
        {
            "model_type": "qwen2_vl", **QWEN,
            "vision_config": {
                "depth": 2, "embed_dim": 24, "hidden_size": HIDDEN, "mlp_ratio": 2, "num_heads": 2, "patch_size": PATCH,
            },
        },
        QWEN_ROPE, {"processor_class": "Qwen2VLProcessor"}, QWEN_IMAGES,
    ),
    "qwen3_vl": Recipe(
        QWEN_IMAGE, QWEN_TOKENS,
        {
            "model_type": "qwen3_vl", **QWEN,
            "vision_config": {
                **QWEN_VISION, "out_hidden_size": HIDDEN, "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
            },
        },
        {"head_dim": 8, **QWEN_ROPE}, {"processor_class": "Qwen3VLProcessor"}, QWEN_IMAGES,
    ),
    "glm4v": Recipe(
        "<|begin_of_image|><|image|><|end_of_image|>",
        ["<|begin_of_image|>", "<|end_of_image|>", "<|image|>", "<|video|>", "<|begin_of_video|>", "<|end_of_video|>"],
        {
            "model_type": "glm4v", "vision_config": {**QWEN_VISION, "image_size": SIDE, "out_hidden_size": HIDDEN},
            "image_token_id": "<|image|>", "video_token_id": "<|video|>", "image_start_token_id": "<|begin_of_image|>",
            "image_end_token_id": "<|end_of_image|>", "video_start_token_id": "<|begin_of_video|>",
            "video_end_token_id": "<|end_of_video|>", "tie_word_embeddings": False,
        },
        QWEN_ROPE, {"processor_class": "Glm4vProcessor"}, {**QWEN_IMAGES, "image_processor_type": "Glm4vImageProcessor"},
    ),
    "aya_vision": Recipe(
        "<image>",
        ["<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL"],
        {
            "model_type": "aya_vision", "vision_config": SIGLIP, "image_token_id": "<|IMG_PATCH|>", "downsample_factor": 2,
            "tie_word_embeddings": False,
        },
        COHERE2,
        {"processor_class": "AyaVisionProcessor", "patch_size": PATCH, "img_size": SIDE, "downsample_factor": 2}, PATCHED,
    ),
    "idefics2": Recipe(
        "<image>", IDEFICS_TOKENS,
        {
            "model_type": "idefics2", "vision_config": VISION, "image_token_id": "<image>", "tie_word_embeddings": False,
            "perceiver_config": {
                "hidden_size": HIDDEN, "resampler_n_latents": 2, "resampler_depth": 1, "resampler_n_heads": 2,
                "resampler_head_dim": 8, "num_key_value_heads": 1,
            },
        },
        MISTRAL, {"processor_class": "Idefics2Processor", "image_seq_len": 2},
        {
            "image_processor_type": "Idefics2ImageProcessor", "do_image_splitting": False,
            "size": {"shortest_edge": SIDE, "longest_edge": SIDE},
        },
    ),
    "gemma3": Recipe(
        "<start_of_image>", ["<start_of_image>", "<end_of_image>", "<image_soft_token>"],
        {
            "model_type": "gemma3", "vision_config": SIGLIP, "image_token_id": "<image_soft_token>",
            "boi_token_index": "<start_of_image>", "eoi_token_index": "<end_of_image>",
            "mm_tokens_per_image": NUM_PATCHES, "tie_word_embeddings": False,
        },
        {"model_type": "gemma3_text", "head_dim": 8, "query_pre_attn_scalar": 8},
        {"processor_class": "Gemma3Processor", "image_seq_length": NUM_PATCHES},
        {"image_processor_type": "Gemma3ImageProcessor", **SQUARE},
        {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
    ),
    "mllama": Recipe(
        "<|image|>", ["<|image|>", "<|python_tag|>"],
        {
            "model_type": "mllama", "image_token_id": "<|image|>",
            "vision_config": {
                "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2, "attention_heads": 2,
                "image_size": SIDE, "patch_size": PATCH, "num_global_layers": 1, "vision_output_dim": 48,
                "intermediate_layers_indices": [0],
            },
        },
        {"cross_attention_layers": [1]}, {"processor_class": "MllamaProcessor"},
        {"image_processor_type": "MllamaImageProcessor", **SQUARE, "max_image_tiles": 4},
    ),
}  # fmt: skip
NEED_TORCHVISION = {  # their processors do: see docs/models.md
    "mistral3": Recipe(
        "[IMG]", PIXTRAL_TOKENS,
        {
            "model_type": "mistral3", "vision_config": PIXTRAL, "image_token_id": "[IMG]", "spatial_merge_size": 2,
            "tie_word_embeddings": False,
        },
        MISTRAL, {"processor_class": "PixtralProcessor", "patch_size": PATCH, "spatial_merge_size": 2}, PIXTRAL_IMAGES,
    ),
    "pixtral": Recipe(
        "[IMG]", PIXTRAL_TOKENS,
        {**LLAVA, "model_type": "llava", "vision_config": PIXTRAL, "image_token_id": "[IMG]",
         "vision_feature_select_strategy": "full"},
        MISTRAL, {"processor_class": "PixtralProcessor", "patch_size": PATCH}, PIXTRAL_IMAGES,
    ),
    "cohere2_vision": Recipe(
        "<|IMG_PATCH|>", ["<|IMG_PATCH|>"],
        {
            "model_type": "cohere2_vision", "vision_config": SIGLIP, "image_token_id": "<|IMG_PATCH|>",
            "alignment_intermediate_size": 48,
        },
        COHERE2, {"processor_class": "Cohere2VisionProcessor"},
        {"image_processor_type": "Cohere2VisionImageProcessorFast"},
    ),
    "lfm2_vl": Recipe(
        "<image>", ["<image>"],
        {
            "model_type": "lfm2_vl", "image_token_id": "<image>", "projector_hidden_size": 32,
            "vision_config": {
                "model_type": "siglip2_vision_model", "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2,
                "num_attention_heads": 2, "patch_size": PATCH, "num_patches": 16, "vision_use_head": False,
            },
        },
        {"model_type": "lfm2", "layer_types": ["conv", "full_attention", "full_attention"]},
        {"processor_class": "Lfm2VlProcessor"}, {"image_processor_type": "Lfm2VlImageProcessorFast"},
    ),
    "llama4": Recipe(
        "<|image|>", ["<|image|>"],
        {
            "model_type": "llama4", "image_token_id": "<|image|>", "tie_word_embeddings": False,
            "vision_config": {
                **VISION, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32,
            },
        },
        {"model_type": "llama4_text", "head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2},
        {"processor_class": "Llama4Processor"}, {"image_processor_type": "Llama4ImageProcessorFast"},
    ),
}  # fmt: skip
REFUSES = {  # reads its prompt in both directions, which supervised answers inside the text do not survive
    "paligemma": Recipe(
        "<image>", ["<image>"],
        {
            "model_type": "paligemma", "vision_config": {**SIGLIP, "vision_use_head": True, "projection_dim": HIDDEN},
            "image_token_id": "<image>", "projection_dim": HIDDEN,
        },
        {"model_type": "gemma", "vocab_size": 2048, "head_dim": 8, "tie_word_embeddings": True},
        {"processor_class": "PaliGemmaProcessor"},
        {"image_processor_type": "SiglipImageProcessor", **SQUARE, "image_seq_length": 4},
    ),
}  # fmt: skip
RECIPES = {**PROMISED, **TRIED, **NEED_TORCHVISION, **REFUSES}
KINDS, FURTHER, WITH_TORCHVISION, REFUSED = map(list, (PROMISED, TRIED, NEED_TORCHVISION, REFUSES))


def build(kind: str, folder: Path) -> Path:
    """The folder, filled with a random checkpoint of about 100 kB; the same weights every time."""
    recipe = RECIPES[kind]
    named = {"extra_special_tokens": recipe.tokenizer} if recipe.tokenizer else {}
    tokenizer = train_tokenizer(recipe.extra_tokens, **named)  # type: ignore[arg-type]
    config = {
        key: tokenizer.convert_tokens_to_ids(value) if key.endswith(("token_id", "token_index")) else value
        for key, value in recipe.config.items()
    }
    text = {**TEXT, "vocab_size": len(tokenizer), **recipe.text}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**config, text_config=text))
    for name, parameter in model.named_parameters():
        if name.endswith("_gate"):  # of Mllama: as it starts, at 0, its pictures would change nothing
            parameter.data.fill_(1.0)
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=2, pad_token_id=3)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(recipe.processor))
    (folder / "preprocessor_config.json").write_text(json.dumps(recipe.images))
    (folder / "chat_template.jinja").write_text(template(recipe.placeholder))
    return folder
