"""From samples to answers. An engine asks a model every sample's plain question and all its rewrites.

Legend: P samples in a batch, R rows (one row = one question). A row's prompt is `prefix + suffix`: the prefix (all up to
where the prompts of one sample first differ, the picture included) is computed once per sample; the suffixes are what its
shots differ in.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from mirage.evaluation.generate.base import Engine, OnAnswer
from mirage.evaluation.generate.prefixes import Split, Unshareable, encoded, render_prompt, split
from mirage.models.processor import end_of_answer, pad_to_square
from mirage.schema import EvalSample

if TYPE_CHECKING:
    from mirage.evaluation.generate.decoding import Start

__all__ = ["Engine", "HuggingFaceEngine", "OnAnswer", "render_prompt"]

Item = TypeVar("Item")
log = logging.getLogger(__name__)


class _Row(NamedTuple):
    """One question of a batch, ready to be asked."""

    sample: int  # index into the batch
    shot: int
    prompt: str


class HuggingFaceEngine(Engine):
    """Answers greedily with a Hugging Face vision-language model, many questions at a time.

    Args:
        model: Any `AutoModelForImageTextToText`, LoRA-wrapped or not. Its weights and modes are left as they were.
        processor: Its processor, with a chat template.
        max_new_tokens: Longest answer, in tokens.
        batch_size: How many answers are written at the same time.
        share_prefix: Compute the picture and what stands before the question once for all shots of a sample, where
            the model allows it; false asks every shot in full.
        square: Pad pictures to a square first, as in training.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        max_new_tokens: int,
        batch_size: int,
        share_prefix: bool = True,
        square: bool = False,
    ) -> None:
        for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} is {value}: it must be at least 1.")
        # LoRA layers live inside the transformers model, so that the wrapper around it is not needed to run it
        self._network: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.processor, self.square = processor, square
        self.max_new_tokens, self.batch_size, self.share_prefix = max_new_tokens, batch_size, share_prefix
        self._plain: bool | None = None  # None: not tried out yet

    @property
    def name(self) -> str:
        return "hf"

    @property
    def image_placeholder(self) -> str | None:
        return getattr(self.processor, "image_token", None)

    def settings(self) -> dict[str, Any]:
        # batch_size and share_prefix are left out: they change the time, and answers by rounding alone (which in
        # bfloat16 changes wording, as any batching does: whoever compares two runs word by word uses float32)
        return {
            "engine": self.name,
            "decoding": "greedy",
            "max_new_tokens": self.max_new_tokens,
            "end_tokens": sorted(self._end_tokens),
            "dtype": str(self._network.dtype).removeprefix("torch."),
            "square": self.square,
        }

    def answers(self, samples: Sequence[EvalSample], on_answer: OnAnswer | None = None) -> list[list[str]]:
        import torch

        answers: list[list[str]] = [[""] * len(sample.questions) for sample in samples]
        with _evaluating(self._network), torch.no_grad():
            for indices in _batches(samples, self.batch_size):
                batch = [samples[index] for index in indices]
                for row, text in self._batch_answers(batch):
                    answers[indices[row.sample]][row.shot] = text
                    if on_answer is not None:
                        on_answer(batch[row.sample].id, row.shot, text)
        return answers

    def _batch_answers(self, batch: Sequence[EvalSample]) -> Iterator[tuple[_Row, str]]:
        """The answers of one batch of samples that all have a picture or all have none."""
        from mirage.evaluation.generate.decoding import generated, greedy

        rows = [
            _Row(index, shot, render_prompt(self.processor, question, sample.image is not None))
            for index, sample in enumerate(batch)
            for shot, question in enumerate(sample.questions)
        ]
        images = [sample.image.open() for sample in batch if sample.image is not None]
        if self.square:
            images = [pad_to_square(image, self.processor) for image in images]
        starts = self._starts(rows, images) if self._decodes_itself(rows, images) else None
        # more than one chunk if one sample alone exceeds a batch
        for chunk in _chunks(rows, self.batch_size):
            if starts is not None:
                tokens = greedy(self._network, next(starts), self.max_new_tokens, self._end_tokens)
            else:
                pad_token = self.processor.tokenizer.pad_token_id
                inputs = self._full_inputs(chunk, images)
                tokens = generated(self._network, inputs, self.max_new_tokens, self._end_tokens, pad_token)
            texts: list[str] = self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            yield from zip(chunk, (text.strip() for text in texts), strict=True)

    def _decodes_itself(self, rows: Sequence[_Row], images: Sequence[Any]) -> bool:
        """Whether answers are read off our own decoding; the model's own `generate` is slower and right for every one.

        What the class of a model promises is tried out once, on the first batch: asked in our way (padded, prefix
        shared), a row must have the logits that the model gives when it is simply called.
        """
        from mirage.evaluation.generate.decoding import departs, why_not_plain

        if self._plain is None:
            reason = why_not_plain(self._network)
            if not reason:
                few = [row for row in rows if row.sample < 2][: self.batch_size]
                called = {place: self._full_inputs([few[place]], images) for place in (0, len(few) - 1)}
                if departs(self._network, next(self._starts(few, images[:2])), called):
                    reason = "it answers otherwise when prompts are padded and prefixes shared"
            self._plain = not reason
            if reason:
                _note(type(self._network).__name__, reason)
        return self._plain

    def _starts(self, rows: Sequence[_Row], images: Sequence[Any]) -> Iterator[Start]:
        """What decoding starts from, for each `batch_size` rows; prefixes shared where that can be shown right."""
        from mirage.evaluation.generate.decoding import full_start, prefix_cache, shared_start

        pad_token = self.processor.tokenizer.pad_token_id
        cut = self._split(rows, images)
        if cut is None:
            for chunk in _chunks(rows, self.batch_size):
                yield full_start(self._network, self._full_inputs(chunk, images), self.max_new_tokens)
            return
        prefix = prefix_cache(self._network, cut.prefixes, self._understood(cut.inputs), pad_token)
        suffixes = _chunks(cut.suffixes, self.batch_size)
        for chunk, own in zip(_chunks(rows, self.batch_size), suffixes, strict=True):
            samples = [row.sample for row in chunk]
            yield shared_start(self._network, prefix, samples, own, pad_token, self.max_new_tokens)

    def _split(self, rows: Sequence[_Row], images: Sequence[Any]) -> Split | None:
        """The batch cut into prefixes and suffixes, or None if every row is to be asked in full."""
        if not self.share_prefix or not images or len(rows) == len(images):  # without a picture, little is shared
            return None
        prompts = [[row.prompt for row in rows if row.sample == index] for index in range(len(images))]
        try:
            cut = split(self.processor, prompts, images)
            if any("token_type_ids" in name for name in self._understood(cut.inputs)):
                raise Unshareable("its attention depends on token types")
        except Unshareable as reason:
            _note(type(self._network).__name__, str(reason))
            return None
        return cut

    def _full_inputs(self, rows: Sequence[_Row], images: Sequence[Any]) -> dict[str, Any]:
        """The model's inputs for whole prompts, each with its own picture."""
        own = [images[row.sample] for row in rows] if images else []
        return self._understood(encoded(self.processor, [row.prompt for row in rows], own))

    def _understood(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs that the model's forward names: tokenizers add token types that many models do not know."""
        forward = signature(type(self._network).forward).parameters
        return {name: value for name, value in inputs.items() if name in forward}

    @cached_property
    def _end_tokens(self) -> frozenset[int]:
        """The tokens that end an answer: the model's own, the tokenizer's, and the chat template's."""
        tokenizer = self.processor.tokenizer
        end = tokenizer.convert_tokens_to_ids(end_of_answer(self.processor))
        own = self._network.generation_config.eos_token_id
        found = [*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id, end]
        return frozenset(token for token in found if token is not None)


@cache
def _note(kind: str, reason: str) -> None:
    """Logs once for each kind of model and reason."""
    log.info("%s: no prefix is shared and every shot is asked in full, because %s.", kind, reason)


def _batches(samples: Sequence[EvalSample], batch_size: int) -> Iterator[list[int]]:
    """Indices of samples of like length, longest first (so that memory runs out at once or never).

    A batch holds `batch_size` questions at most, or one sample; and pictures for all its samples or for none.
    """

    def order(index: int) -> tuple[bool, int]:
        return samples[index].image is None, -max(map(len, samples[index].questions))

    batch: list[int] = []
    rows = 0
    for index in sorted(range(len(samples)), key=order):
        shots = len(samples[index].questions)
        mixed = bool(batch) and (samples[batch[0]].image is None) != (samples[index].image is None)
        if batch and (rows + shots > batch_size or mixed):
            yield batch
            batch, rows = [], 0
        batch.append(index)
        rows += shots
    if batch:
        yield batch


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[at : at + size] for at in range(0, len(items), size))


@contextmanager
def _evaluating(network: Any) -> Iterator[None]:
    """Evaluation mode inside, and each module's own mode again afterwards (a frozen tower stays frozen)."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
