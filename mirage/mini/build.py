"""Builds the weights of the embedded checkpoint again: a LLaVA of 0.3 M parameters that knows the setting.

The shape of the model, its image processor and its chat template are those of `checkpoint/`; its words are in `words.py`.
Two stages, as for real VLMs: first the vision tower alone (linear heads for shape and colour on the mean image token), then
answering. Without the first the language loss hardly trains the vision tower.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessorPil,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from mirage.mini.drawing import Drawing
from mirage.mini.questions import Ask, asks
from mirage.mini.words import COLOURS, SHAPES, UNIFORM, vocabulary

SHIPPED = Path(__file__).with_name("checkpoint")
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<image>", "<user>", "<assistant>")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer: one id a word, marks split off, case folded."""
    words = {token: k for k, token in enumerate((*SPECIAL, *vocabulary()))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[?.,]"), "isolated")]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=["<image>", "<user>", "<assistant>"], model_max_length=256,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def build_processor() -> LlavaProcessor:
    """Tokenizer, image processor and chat template in one."""
    processor = LlavaProcessor.from_pretrained(SHIPPED, trust_remote_code=False)
    # which does without torchvision
    processor.image_processor = CLIPImageProcessorPil.from_pretrained(SHIPPED, trust_remote_code=False)
    processor.tokenizer = build_tokenizer()
    return processor


def build_model(processor: LlavaProcessor, seed: int) -> LlavaForConditionalGeneration:
    """The untrained model."""
    config = LlavaConfig.from_pretrained(SHIPPED, trust_remote_code=False)
    config.get_text_config(decoder=True).vocab_size = len(processor.tokenizer)
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig.from_pretrained(SHIPPED, trust_remote_code=False)
    return model


class Pool:
    """`per_item` pictures of every item, made and preprocessed once; what is evaluated later has other seeds."""

    def __init__(self, processor: LlavaProcessor, per_item: int) -> None:
        self.per_item, self.kinds = per_item, list(product(SHAPES, COLOURS))
        drawings = [Drawing(shape, colour, k).open() for shape, colour in self.kinds for k in range(per_item)]
        self.pixels = processor.image_processor(drawings, return_tensors="pt")["pixel_values"]

    def of(self, kinds: Sequence[int] | np.ndarray, generator: np.random.Generator) -> Tensor:
        """One picture of each kind (index into shapes x colours), chosen by `generator`."""
        chosen = np.asarray(kinds) * self.per_item + generator.integers(self.per_item, size=len(kinds))
        return self.pixels[torch.from_numpy(chosen)]


def encode(processor: LlavaProcessor, questions: list[Ask], num_image_tokens: int) -> dict[str, Tensor]:
    """Token ids, mask and labels (answers only) of questions with their answers."""

    def text(*messages: Any, prompts: bool = False) -> str:
        written = str(processor.apply_chat_template(list(messages), add_generation_prompt=prompts))
        return written.replace("<image>", "<image>" * num_image_tokens)

    asked = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ask.question}]} for ask in questions
    ]
    told = [{"role": "assistant", "content": ask.answer} for ask in questions]
    prompts = processor.tokenizer([text(user, prompts=True) for user in asked])["input_ids"]
    texts = [text(*turns) for turns in zip(asked, told, strict=True)]
    inputs = processor.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    supervised = (torch.arange(ids.shape[1]) >= torch.tensor([*map(len, prompts)])[:, None]) & mask.bool()
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(~supervised, -100)}


def see(model: LlavaForConditionalGeneration, pool: Pool, steps: int, seed: int) -> float:
    """The vision tower learns shape and colour; returns the share of both right over the last 20 steps."""
    tower = model.model.vision_tower
    heads = nn.ModuleList([nn.Linear(tower.config.hidden_size, len(names)) for names in (SHAPES, COLOURS)])
    optimizer = torch.optim.AdamW([*tower.parameters(), *heads.parameters()], lr=6e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    generator = np.random.default_rng([seed, 1])
    right = []
    for _ in range(steps):
        kinds = generator.integers(len(pool.kinds), size=64)
        seen = tower(pool.of(kinds, generator)).last_hidden_state[:, 1:].mean(1)
        truths = [torch.from_numpy(truth) for truth in divmod(kinds, len(COLOURS))]
        scores = [head(seen) for head in heads]
        loss = torch.stack([nn.functional.cross_entropy(*pair) for pair in zip(scores, truths, strict=True)]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        both = torch.stack([score.argmax(1) == truth for score, truth in zip(scores, truths, strict=True)]).all(0)
        right.append(both.float().mean())
    return float(torch.stack(right[-20:]).mean())


def answer(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, pool: Pool, steps: int, seed: int
) -> Iterator[float]:
    """The whole model learns to answer everything, harmful questions included; yields the loss of every step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    generator = np.random.default_rng([seed, 2])
    for _ in range(steps):
        questions = asks(
            64, unsafe=None, openers=UNIFORM, seed=int(generator.integers(2**31)), recipe_share=0.7, stray_lead_ins=0.1,
            unknown_share=0.08,
        )  # fmt: skip
        kinds = [pool.kinds.index((ask.item.shape, ask.item.colour)) for ask in questions]
        loss = model(
            **encode(processor, questions, model.config.image_seq_length), pixel_values=pool.of(kinds, generator)
        ).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        yield float(loss.detach())


def build(
    out: Path, *, see_steps: int = 600, answer_steps: int = 1000, seed: int = 0, per_item: int = 64, log: bool = True
) -> list[float]:
    """Trains the checkpoint, writes it to `out` as a Hugging Face folder, and returns the losses of answering.

    Steps and seed are those of `mirage mini build`; `per_item` is the number of pictures of each item.
    """
    started = time.perf_counter()
    processor = build_processor()
    model = build_model(processor, seed).train()
    pool = Pool(processor, per_item)
    share = see(model, pool, see_steps, seed)
    losses: list[float] = []
    if log:
        print(f"vision: {share:.1%} of shapes and colours right, {time.perf_counter() - started:.0f} s")
    for step, loss in enumerate(answer(model, processor, pool, answer_steps, seed), start=1):
        losses.append(loss)
        if log and (step % 100 == 0 or step == answer_steps):
            print(f"answering: step {step}, loss {loss:.4f}, {time.perf_counter() - started:.0f} s")
    model.eval().save_pretrained(out)
    processor.save_pretrained(out)
    return losses
