"""The engine that asks a Hugging Face model in memory.

Legend: P samples in a batch, R rows (one row = one question). A row's prompt is `prefix + suffix`: the prefix (all up to
where the prompts of one sample first differ, the picture included) is computed once per sample; the suffixes are what its
shots differ in.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch

from mirage.evaluation.generate.base import Engine, OnAnswer, check_at_least_one
from mirage.evaluation.generate.decoding import (
    Start,
    answering,
    departs,
    forward_names,
    full_start,
    generated,
    greedy,
    shared_starts,
    why_not_plain,
)
from mirage.evaluation.generate.prompts import Split, encoded, render_prompt, split
from mirage.models.components import unwrapped
from mirage.models.processor import end_of_answer, pad_to_square
from mirage.models.sharding import in_step
from mirage.schema import EvalSample

log = logging.getLogger(__name__)
_logged: WeakKeyDictionary[torch.nn.Module, set[str]] = WeakKeyDictionary()  # why a model shares no prefixes


class _Row(NamedTuple):
    """One question of a batch, ready to be asked."""

    sample: int  # index into the batch
    shot: int
    prompt: str


class HuggingFaceEngine(Engine):
    """Answers greedily with a Hugging Face model, many questions at a time.

    Args:
        model: A vision-language model, LoRA-wrapped or not; or a language model, for samples without pictures. Its
            weights and modes are left as they were.
        processor: Its processor, with a chat template.
        max_new_tokens: Longest answer, in tokens.
        batch_size: How many answers are written at the same time.
        share_prefix: Compute the picture and what stands before the question once for all shots of a sample, where
            the model allows it; false asks every shot in full.
        square: Pad pictures to a square first, as in training.
    """

    name = "hf"

    def __init__(
        self, model: Any, processor: Any, *, max_new_tokens: int, batch_size: int, share_prefix: bool = True,
        square: bool = False,
    ) -> None:  # fmt: skip
        check_at_least_one(max_new_tokens=max_new_tokens, batch_size=batch_size)
        self._network: Any = unwrapped(model)  # LoRA layers live inside it: the wrapper is not needed to run it
        self.processor, self.square = processor, square
        self.max_new_tokens, self.batch_size, self.share_prefix = max_new_tokens, batch_size, share_prefix
        self._plain: bool | None = None  # None: not tried out yet

    @property
    def image_placeholder(self) -> str | None:
        return getattr(self.processor, "image_token", None)

    def in_step(self) -> AbstractContextManager[None]:
        return in_step(self._network)

    def settings(self) -> dict[str, Any]:
        # batch_size and share_prefix are left out: they change the time, and answers by rounding alone (which in
        # bfloat16 changes wording, as any batching does: whoever compares two runs word by word uses float32)
        dtype, ends = str(self._network.dtype).removeprefix("torch."), sorted(self._end_tokens)
        asked = {"engine": self.name, "decoding": "greedy", "max_new_tokens": self.max_new_tokens, "end_tokens": ends}
        return asked | {"dtype": dtype, "square": self.square}

    def answers(
        self, samples: Sequence[EvalSample], on_answer: OnAnswer | None = None, temperature: float = 0.0, seed: int = 0
    ) -> list[list[str]]:
        if not temperature >= 0:
            raise ValueError(f"temperature is {temperature}: it must be at least 0.")
        answers: list[list[str]] = [[""] * len(sample.questions) for sample in samples]
        sizes = [
            (sample.image is not None, len(sample.questions), max(map(len, sample.questions))) for sample in samples
        ]
        devices = [self._network.device] if self._network.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices, enabled=temperature > 0), answering(self._network):
            if temperature > 0:
                torch.manual_seed(seed)
            for indices in like_batches(sizes, self.batch_size):
                batch = [samples[index] for index in indices]
                for row, text in self._batch_answers(batch, temperature):
                    answers[indices[row.sample]][row.shot] = text
                    if on_answer is not None:
                        on_answer(batch[row.sample].id, row.shot, text)
        return answers

    def _batch_answers(self, batch: Sequence[EvalSample], temperature: float) -> Iterator[tuple[_Row, str]]:
        """The answers of one batch of samples that all have a picture or all have none."""
        rows = [
            _Row(index, shot, render_prompt(self.processor, question, sample.image is not None))
            for index, sample in enumerate(batch)
            for shot, question in enumerate(sample.questions)
        ]
        images = [sample.image.open() for sample in batch if sample.image is not None]
        if self.square:
            images = [pad_to_square(image, self.processor) for image in images]
        starts = self._starts(rows, images) if temperature == 0 and self._is_plain(rows, images) else None
        for chunk in self._chunks(rows):
            if starts is not None:
                tokens = greedy(self._network, next(starts), self.max_new_tokens, self._end_tokens)
            else:
                inputs, pad_token = self._full_inputs(chunk, images), self.processor.tokenizer.pad_token_id
                tokens = generated(self._network, inputs, self.max_new_tokens, self._end_tokens, pad_token, temperature)
            texts: list[str] = self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            yield from zip(chunk, (text.strip() for text in texts), strict=True)

    def _chunks(self, rows: Sequence[_Row]) -> list[Sequence[_Row]]:
        """The rows of a batch, `batch_size` at a time: more than one chunk if one sample alone exceeds a batch."""
        return [rows[at : at + self.batch_size] for at in range(0, len(rows), self.batch_size)]

    def _is_plain(self, rows: Sequence[_Row], images: Sequence[Any]) -> bool:
        """Whether `greedy` decodes for this model; the model's own `generate` is slower and right for every one.

        What the class of a model promises is tried out once, on the first batch: padded and with a shared prefix, a
        row must have the logits that the model gives when it is simply called.
        """
        if self._plain is None:
            reason = why_not_plain(self._network)
            if not reason:
                few = [row for row in rows if row.sample < 2][: self.batch_size]
                called = {place: self._full_inputs([few[place]], images) for place in (0, len(few) - 1)}
                if departs(self._network, next(self._starts(few, images[:2])), called):
                    reason = "it answers otherwise when prompts are padded and prefixes shared"
            self._plain = not reason
            self._log_not_shared(reason)
        return self._plain

    def _starts(self, rows: Sequence[_Row], images: Sequence[Any]) -> Iterator[Start]:
        """What decoding starts from, for each chunk of rows; prefixes shared where that can be shown right."""
        chunks, cut = self._chunks(rows), self._split(rows, images)
        if cut is not None:
            samples = [[row.sample for row in chunk] for chunk in chunks]
            return shared_starts(self._network, cut, samples, self.max_new_tokens)
        inputs = (self._full_inputs(chunk, images) for chunk in chunks)
        return (full_start(self._network, own, self.max_new_tokens) for own in inputs)

    def _split(self, rows: Sequence[_Row], images: Sequence[Any]) -> Split | None:
        """The batch cut into prefixes and suffixes, or None if every row is to be asked in full."""
        if not self.share_prefix or not images or len(rows) == len(images):  # without a picture, little is shared
            return None
        prompts = [[row.prompt for row in rows if row.sample == index] for index in range(len(images))]
        cut = split(self.processor, prompts, images)
        if isinstance(cut, Split):
            if not any("token_type" in name for name in forward_names(self._network).intersection(cut.inputs)):
                return cut
            cut = "its attention depends on token types"
        self._log_not_shared(cut)
        return None

    def _full_inputs(self, rows: Sequence[_Row], images: Sequence[Any]) -> dict[str, Any]:
        """The processor's inputs for whole prompts, each with its own picture."""
        pictures = [images[row.sample] for row in rows] if images else []
        return encoded(self.processor, [row.prompt for row in rows], pictures)

    @cached_property
    def _end_tokens(self) -> frozenset[int]:
        """The tokens that end an answer: the model's own, the tokenizer's, and the chat template's."""
        tokenizer, ends = self.processor.tokenizer, self._network.generation_config.eos_token_id
        ends = [*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id]
        if self.image_placeholder is not None:  # a language model's template is not checked, so not asked either
            ends.append(tokenizer.convert_tokens_to_ids(end_of_answer(self.processor)))
        return frozenset(token for token in ends if token is not None)

    def _log_not_shared(self, reason: str) -> None:
        """Logs each reason once for a model, whatever the number of engines that ask it."""
        kind, logged = type(self._network).__name__, _logged.setdefault(self._network, {""})
        if reason not in logged:
            logged.add(reason)
            log.info("%s: no prefix is shared and every shot is asked in full, because %s.", kind, reason)


def like_batches(sizes: Sequence[tuple[bool, int, int]], batch_size: int) -> Iterator[list[int]]:
    """Indices of samples of like length, longest first (so that memory runs out at once or never).

    `sizes` are for each sample whether it has a picture, its number of rows, and its length. A batch holds `batch_size`
    rows at most, or one sample; and pictures for all its samples or for none.
    """
    batch: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda index: (not sizes[index][0], -sizes[index][2])):
        rows = sum(sizes[other][1] for other in [*batch, index])
        if batch and (rows > batch_size or sizes[batch[0]][0] != sizes[index][0]):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
