"""Whether every training example and every test question fits the model, checked before any weights are loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from PIL import Image

from mirage.data.collate import Collator
from mirage.errors import DataError, DataIssue
from mirage.schema import EvalSample, Example

# Models that cut pictures into tiles make more tokens of large or long ones; others make the same of all.
_SHAPES = ((64, 64), (2048, 2048), (2048, 512), (512, 2048))


def too_long(
    examples: Sequence[Example],
    collate: Collator,
    forms: Callable[[Example], Sequence[Example]] | None = None,
    most_bytes_added: int = 0,
) -> Iterator[tuple[int, str]]:
    """Place of each example that `collate` would refuse in the middle of a run, with what it would say.

    That is one that is too long, has an empty answer, or holds an image placeholder in its text.

    Only of those is a picture opened. The others are passed by bounds, most of them without being tokenized: a tokenizer
    makes at most one token of a byte.

    Args:
        forms: An example in every form in which it is trained on; by default it has one.
        most_bytes_added: A bound on how much longer than the example one of its forms is.
    """
    placeholder = collate.processor.image_token
    overhead: dict[tuple[int, bool], int] = {}
    for place, example in enumerate(examples):
        texts = _texts(example)
        if any(placeholder in text for text in texts) or not all(answer.strip() for answer in texts[1::2]):
            yield from _refused(place, example, collate)
            continue
        has_picture = example.image is not None
        left = collate.max_length - (_most_picture_tokens(collate.processor, collate.square) if has_picture else 0)
        key = (len(texts), has_picture)
        if key not in overhead:
            overhead[key] = collate.text_tokens(_like(example))
        if _num_bytes(texts) + overhead[key] + most_bytes_added > left:
            for form in forms(example) if forms else [example]:
                fits = _num_bytes(_texts(form)) + overhead[key] <= left or collate.text_tokens(form) <= left
                if not fits and (refused := [*_refused(place, form, collate)]):
                    yield from refused
                    break


def unfit_questions(
    samples: Sequence[EvalSample], collate: Collator, limit: float, max_new_tokens: int
) -> Iterator[DataIssue]:
    """An issue for each sample whose question or a rewrite the model cannot be asked, by the check of training examples.

    The model takes `limit` tokens, of which `collate` leaves `max_new_tokens`, the longest answer.
    """
    asked = [(sample, shot, question) for sample in samples for shot, question in enumerate(sample.questions)]
    examples = [Example(source="", image=one.image, prompt=question, answer="a") for one, _, question in asked]
    first = {asked[place][0].id: place for place, _ in reversed([*too_long(examples, collate)])}
    for place in sorted(first.values()):
        sample, shot, question = asked[place]
        remedy = (
            f"is too long: with its picture and {max_new_tokens} tokens for the answer (max_new_tokens) it exceeds the "
            f"model's {limit} tokens. Shorten it."
        )
        if (placeholder := collate.processor.image_token) in question:
            remedy = f"holds the image placeholder {placeholder}. Remove it."
        field = f"rewrite {shot}" if shot else "the question"
        yield DataIssue(sample.where or sample.source, f"id {sample.id}", field, remedy)


@lru_cache(maxsize=2)
def _most_picture_tokens(processor: Any, square: bool) -> int:
    """The most tokens that the processor makes of a picture; asked once, since it prepares large pictures for it."""
    collate = Collator(processor, square=square)
    return max(collate.picture_tokens(Image.new("RGB", shape)) for shape in _SHAPES)


def _texts(example: Example) -> list[str]:
    """Questions and answers by turns."""
    return [text for turn in ((example.prompt, example.answer), *example.later_turns) for text in turn]


def _num_bytes(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def _like(example: Example) -> Example:
    """An example with as many turns and next to no text: what remains is the template's own."""
    turns = tuple(type(turn)("a", "a") for turn in example.later_turns)
    return Example(source="", image=example.image, prompt="a", answer="a", later_turns=turns)


def _refused(place: int, example: Example, collate: Collator) -> Iterator[tuple[int, str]]:
    try:
        collate([example])
    except DataError as error:
        yield place, str(error)
