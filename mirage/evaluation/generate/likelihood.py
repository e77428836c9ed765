"""How likely a model finds an answer to a question: mean log-probability per token, many answers at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from inspect import signature
from typing import Any, NamedTuple

from mirage.evaluation.generate.prefixes import encoded, render_prompt
from mirage.schema import Picture

MOST_TOKENS = 256  # of an answer, and at most half of the context; what comes later is not read
_MOST_CHARACTERS = 8 * MOST_TOKENS


class Said(NamedTuple):
    """An answer to score, or (without it) a question to answer."""

    question: str
    image: Picture | None
    answer: str = ""


def token_logp_mean(network: Any, processor: Any, said: Sequence[Said], batch_size: int) -> list[float]:
    """For each answer the mean log-probability of its tokens, in nats, given its question and picture; at most 0.

    The text is what the chat template makes of question and answer, without what it writes after the answer. Padded on
    the right; no gradients. Only the first `MOST_TOKENS` tokens of an answer count. An answer without any has -inf.

    Raises:
        ValueError: If a question holds the image placeholder.
    """
    import torch

    from mirage.losses import sft

    keeps_logits = "logits_to_keep" in signature(type(network).forward).parameters
    scores = [-math.inf] * len(said)
    said = [item._replace(answer=_cut(processor, item.answer)) for item in said]
    spoken = [index for index, item in enumerate(said) if item.answer]
    with torch.no_grad():
        for places in _batches([said[index] for index in spoken], batch_size):
            indices = [spoken[place] for place in places]
            inputs, labels_BS = _answered_inputs(processor, [said[index] for index in indices])
            keep = labels_BS.shape[1] - int((labels_BS >= 0).any(0).nonzero()[0]) + 1
            fed = {name: value.to(network.device) for name, value in _understood(network, inputs).items()}
            if keeps_logits:
                fed["logits_to_keep"] = keep
            logits_BSV = network(**fed, use_cache=False).logits[:, -keep:]
            nats = (-sft(logits_BSV, labels_BS[:, -keep:].to(network.device))).tolist()
            for index, score in zip(indices, nats, strict=True):
                scores[index] = score
    return scores


def sampled_answers(
    network: Any, processor: Any, said: Sequence[Said], max_new_tokens: int, batch_size: int, seed: int
) -> list[str]:
    """The model's own answers to the questions, drawn at temperature 1; the caller's random state is left as it was."""
    import torch

    answers = [""] * len(said)
    devices = [network.device] if network.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed)
        for indices in _batches(said, batch_size):
            batch = [said[index] for index in indices]
            prompts = [render_prompt(processor, item.question, item.image is not None) for item in batch]
            inputs = _understood(network, encoded(processor, prompts, _opened(batch)))
            fed = {name: value.to(network.device) for name, value in inputs.items()}
            tokens = network.generate(
                **fed, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=max_new_tokens,
                pad_token_id=processor.tokenizer.pad_token_id,
            )  # fmt: skip
            written = processor.tokenizer.batch_decode(tokens[:, fed["input_ids"].shape[1] :], skip_special_tokens=True)
            for index, text in zip(indices, written, strict=True):
                answers[index] = text.strip()
    return answers


def _answered_inputs(processor: Any, said: Sequence[Said]) -> tuple[dict[str, Any], Any]:
    """The processor's inputs for whole conversations, and labels (B, S): the tokens of the answers, IGNORED elsewhere."""
    import torch

    from mirage.losses import IGNORED

    tokenizer = processor.tokenizer
    written = [_conversation(processor, item) for item in said]
    texts = [text for text, _ in written]
    special = not (tokenizer.bos_token and texts[0].startswith(tokenizer.bos_token))
    inputs = processor(
        text=texts, images=[[image] for image in _opened(said)] or None, padding=True, padding_side="right",
        add_special_tokens=special, return_tensors="pt",
    )  # fmt: skip
    ids = inputs["input_ids"]
    labels = torch.full_like(ids, IGNORED)
    ends = inputs["attention_mask"].sum(1).tolist()
    for row, ((text, start), end) in enumerate(zip(written, ends, strict=True)):
        # Image tokens come before the answer, so that its tokens are the same counted from the end, expanded or not.
        offsets = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)["offset_mapping"]
        counted = sum(right > start and right > left for left, right in offsets)
        labels[row, end - counted : end] = ids[row, end - counted : end]
    return dict(inputs), labels


def _conversation(processor: Any, item: Said) -> tuple[str, int]:
    """Question and answer as the chat template writes them, cut at the answer's end; and where the answer starts."""
    answer = item.answer
    prompt = render_prompt(processor, item.question, item.image is not None)
    content: list[dict[str, Any]] = [{"type": "text", "text": item.question}]
    if item.image is not None:
        content.insert(0, {"type": "image"})
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    text: str = processor.apply_chat_template(messages, tokenize=False)
    start = text.find(answer, len(prompt.rstrip()))
    if start < 0:  # a template that rewrites answers: put ours where the model begins to answer
        text, start = prompt + answer, len(prompt)
    return text[: start + len(answer)], start


def _cut(processor: Any, answer: str) -> str:
    """The beginning of an answer that is read, without image placeholders: they would be read as pictures."""
    tokenizer = processor.tokenizer
    answer = answer.replace(processor.image_token, " ").strip()[:_MOST_CHARACTERS].rstrip()
    most = min(MOST_TOKENS, tokenizer.model_max_length // 2)
    cut = tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True, truncation=True, max_length=most)
    return answer[: max((end for _, end in cut["offset_mapping"]), default=0)].rstrip()


def _opened(said: Sequence[Said]) -> list[Any]:
    return [item.image.open() for item in said if item.image is not None]


def _understood(network: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs that the model's forward names."""
    known = signature(type(network).forward).parameters
    return {name: value for name, value in inputs.items() if name in known}


def _batches(said: Sequence[Said], batch_size: int) -> Iterator[list[int]]:
    """Indices of items of like length; pictures for all of a batch or for none."""

    def order(index: int) -> tuple[bool, int]:
        return said[index].image is None, -len(said[index].question) - len(said[index].answer)

    batch: list[int] = []
    for index in sorted(range(len(said)), key=order):
        if batch and (len(batch) == batch_size or (said[batch[0]].image is None) != (said[index].image is None)):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
