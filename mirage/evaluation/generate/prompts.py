"""Prompts as tokens, and where the prompts of one sample begin to differ. Nothing here knows a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

Tokens = list[int]

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Split(NamedTuple):
    """A batch of P samples with R prompts, cut where the prompts of each sample begin to differ."""

    prefixes: list[Tokens]  # P, pictures expanded
    suffixes: list[Tokens]  # R, each at least one token
    inputs: dict[str, Any]  # what the processor made of the P plain questions and their pictures


def render_prompt(processor: Any, question: str, has_image: bool) -> str:
    """The text that the model is given for one question, by the processor's own chat template.

    Raises:
        ValueError: If the processor has no chat template or takes no pictures, or the question holds the image
            placeholder itself.
    """
    kind, placeholder = type(processor).__name__, getattr(processor, "image_token", None)
    if placeholder is None and has_image:
        raise ValueError(f"{kind}: this model reads text alone. Ask it without pictures, or ask one that takes them.")
    if placeholder is not None and placeholder in question:
        raise ValueError(
            f"the question {question[:80]!r} holds the image placeholder {placeholder!r}, which would be read as a "
            "picture. Remove it from the data file."
        )
    if not (getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)):
        raise ValueError(f"{kind} has no chat template. Put a chat_template.jinja into the model's folder.")
    content = [{"type": "text", "text": question}]
    if has_image:
        content.insert(0, {"type": "image"})
    messages = [{"role": "user", "content": content}]
    return str(processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def encoded(processor: Any, prompts: Sequence[str], images: Sequence[Any]) -> dict[str, Any]:
    """The processor's inputs for these prompts, padded on the left; one image for each, or none at all."""
    tokenizer = processor.tokenizer
    if tokenizer.pad_token_id is None:
        raise ValueError(f"{type(tokenizer).__name__} has no pad token. Set pad_token in tokenizer_config.json.")
    inputs = processor(
        text=list(prompts),
        images=[[image] for image in images] or None,
        padding=True,
        padding_side="left",
        add_special_tokens=_add_special_tokens(tokenizer, prompts[0]),
        return_tensors="pt",
    )
    return dict(inputs)


def split(processor: Any, prompts: Sequence[Sequence[str]], images: Sequence[Any]) -> Split | str:
    """The batch cut into prefixes and suffixes, or the reason why it cannot be shown that shots share their prefix.

    `prompts` holds the rendered questions of each sample, plain one first. A picture is prepared and expanded into its
    tokens once per sample, with the plain question. The other prompts are tokenized as they are: behind the picture, an
    expanded prompt must end exactly as the unexpanded one does.
    """
    tokenizer = processor.tokenizer
    special = _add_special_tokens(tokenizer, prompts[0][0])
    inputs = encoded(processor, [shots[0] for shots in prompts], images)
    picture = getattr(processor, "image_token_id", None)
    prefixes: list[Tokens] = []
    suffixes: list[Tokens] = []
    for index, shots in enumerate(prompts):
        rows: list[Tokens] = tokenizer(list(shots), add_special_tokens=special)["input_ids"]
        common = _num_common(rows)
        if picture not in rows[0][:common] or any(picture in row[common:] for row in rows):
            return "its chat template does not put the picture before the question"
        expanded = inputs["input_ids"][index][inputs["attention_mask"][index].bool()].tolist()
        end = len(expanded) - (len(rows[0]) - common)
        if expanded[end:] != rows[0][common:]:
            return "its processor changes what stands behind the picture"
        prefixes.append(expanded[:end])
        suffixes.extend(row[common:] for row in rows)
    return Split(prefixes, suffixes, inputs)


def _add_special_tokens(tokenizer: Any, prompt: str) -> bool:
    """False if the chat template has written the opening token already: the rule of `apply_chat_template`."""
    return not (tokenizer.bos_token is not None and prompt.startswith(tokenizer.bos_token))


def _num_common(rows: Sequence[Tokens]) -> int:
    """How many tokens all rows begin with, leaving each at least one: its logits are the first answer token."""
    most = min(map(len, rows)) - 1
    return next((place for place in range(most) if len({row[place] for row in rows}) > 1), most)
