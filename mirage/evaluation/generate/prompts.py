"""Prompts as tokens, and where the prompts of one sample begin to differ. Nothing here knows a model.

Legend: P samples, R prompts (one row each), L tokens of the longest plain prompt, S of the longest suffix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mirage.models.processor import adds_special_tokens, user_message

Tokens = list[int]


class Split(NamedTuple):
    """A batch of P samples with R prompts, cut where the prompts of each sample begin to differ."""

    inputs: dict[str, Any]  # what the processor made of the P plain prompts, without the end that no sample shares
    prefix_mask: Tensor  # (P, L): 1 where a token of a plain prompt begins all prompts of its sample
    suffixes: Tensor  # (R, S): the rest of each prompt, at least one token
    suffix_mask: Tensor  # (R, S)


def render_prompt(processor: Any, question: str, has_image: bool) -> str:
    """The text that the model is given for one question, by the processor's own chat template.

    Raises:
        ValueError: If the processor takes no pictures, or the question holds the image placeholder itself.
    """
    placeholder = getattr(processor, "image_token", None)
    if placeholder is None and has_image:
        raise ValueError("This model reads text alone. Ask it without pictures, or ask one that takes them.")
    if placeholder is not None and placeholder in question:
        raise ValueError(
            f"the question {question[:80]!r} holds the image placeholder {placeholder!r}, which would be read as a "
            "picture. Remove it from the data file."
        )
    return str(processor.apply_chat_template([user_message(question, has_image)], add_generation_prompt=True))


def encoded(processor: Any, prompts: Sequence[str], images: Sequence[Any]) -> dict[str, Any]:
    """The processor's inputs for these prompts, padded on the left; one image for each, or none at all."""
    return dict(
        processor(
            text=list(prompts),
            images=[[image] for image in images] or None,
            padding=True,
            padding_side="left",
            add_special_tokens=adds_special_tokens(processor, prompts[0]),
            return_tensors="pt",
        )
    )


def split(processor: Any, prompts: Sequence[Sequence[str]], images: Sequence[Any]) -> Split | str:
    """The batch cut into prefixes and suffixes, or the reason why it cannot be shown that shots share their prefix.

    `prompts` holds the rendered questions of each sample, plain one first. A picture is prepared and expanded into its
    tokens once per sample, with the plain question. The other prompts are tokenized as they are: behind the picture, an
    expanded prompt must end exactly as the unexpanded one does.
    """
    tokenizer, picture = processor.tokenizer, getattr(processor, "image_token_id", None)
    special = adds_special_tokens(processor, prompts[0][0])
    inputs = encoded(processor, [shots[0] for shots in prompts], images)
    prefix_mask = inputs["attention_mask"].clone()
    suffixes: list[Tokens] = []
    least = inputs["input_ids"].shape[1]
    for index, shots in enumerate(prompts):
        rows: list[Tokens] = tokenizer(list(shots), add_special_tokens=special)["input_ids"]
        common = _num_common(rows)
        if picture not in rows[0][:common] or any(picture in row[common:] for row in rows):
            return "its chat template does not put the picture before the question"
        rest = len(rows[0]) - common
        if inputs["input_ids"][index, -rest:].tolist() != rows[0][common:]:
            return "its processor changes what stands behind the picture"
        prefix_mask[index, -rest:] = 0
        least = min(least, rest)
        suffixes.extend(row[common:] for row in rows)
    for name in ("input_ids", "attention_mask"):
        inputs[name] = inputs[name][:, :-least]
    return Split(
        inputs,
        prefix_mask[:, :-least],
        pad_sequence([torch.tensor(row) for row in suffixes], True, tokenizer.pad_token_id, "left"),
        pad_sequence([torch.ones(len(row), dtype=torch.long) for row in suffixes], True, 0, "left"),
    )


def _num_common(rows: Sequence[Tokens]) -> int:
    """How many tokens all rows begin with, leaving each at least one: its logits are the first answer token."""
    most = min(map(len, rows)) - 1
    return next((place for place in range(most) if len({row[place] for row in rows}) > 1), most)
