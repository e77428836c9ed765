"""From examples to tensors, for every architecture and for mini: labels on the answers, and nowhere else."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import pytest
import tiny_models
import torch
from PIL import Image
from torch import Tensor

from mirage import losses
from mirage.batch import Batch, Pair, joined
from mirage.data.collate import Collator
from mirage.data.fitting import too_long
from mirage.errors import DataError
from mirage.methods.sft import MixedSFT
from mirage.mini import questions as world
from mirage.mini.words import UNIFORM
from mirage.models.load import load_model
from mirage.models.processor import load_processor, pad_to_square
from mirage.schema import Example, Picture, Turn

MINI = "package:mirage.mini/checkpoint"
KINDS = [*tiny_models.KINDS, "mini"]
every_kind = pytest.mark.parametrize("kind", KINDS)


@dataclass(frozen=True)
class Painted:
    """A picture of one colour."""

    name: str
    size: tuple[int, int] = (28, 28)

    def open(self) -> Image.Image:
        return Image.new("RGB", self.size, self.name)


def example(image: Picture | None, question: str, answer: str, *later: tuple[str, str]) -> Example:
    turns = tuple(Turn(*turn) for turn in later)
    return Example(source="test", image=image, prompt=question, answer=answer, later_turns=turns, where="row 3")


ENGLISH = [
    example(Painted("red", (40, 20)), "What colour is it?", "It is red."),
    example(None, "And good day to you, what is a circle?", "A circle is round. "),
    example(
        Painted("blue", (20, 30)), "Describe.", "Blue, or a colour like it.", ("And then?", "A circle."), ("?", "!")
    ),
    example(None, "x", "y"),
]


def questions_of_mini() -> list[Example]:
    """As `ENGLISH`: a picture, none, a picture and three turns, none and short; in the words of mini."""
    a, b, c, d, e = world.asks(5, unsafe=None, openers=UNIFORM, seed=4)
    later = ((d.question, d.answer), (e.question, e.answer))
    return [
        example(a.drawing, a.question, a.answer),
        example(None, b.question, b.answer + " "),
        example(c.drawing, c.question, c.answer, *later),
        example(None, "can?", "yes,"),
    ]


class World(NamedTuple):
    """A model, its processor, and examples in its language."""

    model: Any
    processor: Any
    examples: list[Example]

    def method(self) -> MixedSFT:
        """A method that holds this model, for its `answers`."""
        method = MixedSFT("not loaded from anywhere")
        method.model = self.model
        method.__dict__["processor"] = self.processor
        return method


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], World]:
    """The world of a kind, built once."""
    root = tmp_path_factory.mktemp("checkpoints")

    @cache
    def built(kind: str) -> World:
        folder = MINI if kind == "mini" else str(tiny_models.build(kind, root / kind))
        examples = questions_of_mini() if kind == "mini" else ENGLISH
        return World(load_model(folder), load_processor(folder), examples)

    return built


def without_spaces(text: str) -> str:
    return "".join(text.split())


def separately(world: World, batches: list[Batch]) -> Tensor:
    return torch.cat([full_losses(world, batch) for batch in batches])


@torch.no_grad()
def full_losses(world: World, batch: Batch) -> Tensor:
    """Per-example losses from a forward pass that keeps every logit."""
    return losses.sft(world.model(**batch.inputs, use_cache=False).logits, batch.labels)


# Labels


@every_kind
def test_labels_are_the_answers_with_their_end_tokens_and_nothing_else(
    kind: str, worlds: Callable[[str], World]
) -> None:
    _, processor, examples = worlds(kind)
    collate = Collator(processor)
    batch = collate(examples)
    end = collate.end_token
    for row, item in enumerate(examples):
        answers = [item.answer, *(turn.answer for turn in item.later_turns)]
        counted = batch.labels[row] != losses.IGNORED
        said = processor.tokenizer.decode(batch.labels[row][counted])
        assert without_spaces(said) == "".join(without_spaces(answer) + end for answer in answers)
        assert (batch.labels[row][counted] == batch.inputs["input_ids"][row][counted]).all()
        assert not counted[batch.inputs["attention_mask"][row] == 0].any()
        # each answer in one piece, between its question and the next
        pieces = torch.diff(counted.int(), prepend=torch.zeros(1, dtype=torch.int)).eq(1).sum()
        assert pieces == len(answers)
        rest = processor.tokenizer.decode(batch.inputs["input_ids"][row][~counted])
        for question in [item.prompt, *(turn.question for turn in item.later_turns)]:
            assert without_spaces(question) in without_spaces(rest)
    assert batch.example_ids == tuple(item.id for item in examples)


@every_kind
def test_each_picture_has_one_placeholder_and_text_has_none(kind: str, worlds: Callable[[str], World]) -> None:
    _, processor, examples = worlds(kind)
    collate = Collator(processor)
    for item in examples:
        assert collate.conversation(item).text.count(processor.image_token) == (item.image is not None)
    batch = collate(examples)
    holds_picture = (batch.inputs["input_ids"] == processor.image_token_id).any(1).tolist()
    assert holds_picture == [item.image is not None for item in examples]


@every_kind
def test_text_is_neither_padding_nor_picture_nor_the_first_token(kind: str, worlds: Callable[[str], World]) -> None:
    _, processor, examples = worlds(kind)
    batch = Collator(processor)(examples)
    for row in range(len(examples)):
        length = int(batch.inputs["attention_mask"][row].sum())
        for place, token in enumerate(batch.inputs["input_ids"][row].tolist()):
            expected = 0 < place < length and token != processor.image_token_id
            assert bool(batch.text_mask[row, place]) is expected
    assert (batch.text_mask.bool() | (batch.labels == losses.IGNORED)).all()


def test_an_answer_that_the_template_strips_is_found(worlds: Callable[[str], World]) -> None:
    processor = pickle.loads(pickle.dumps(worlds("llava").processor))
    processor.chat_template = processor.chat_template.replace("{{ c['text'] }}", "{{ c['text'] | trim }}")
    collate = Collator(processor)
    batch = collate([example(None, "Hello?", "  A circle is round.\n")])
    said = processor.tokenizer.decode(batch.labels[0][batch.labels[0] != losses.IGNORED])
    assert said == "A circle is round." + collate.end_token


# Batches change nothing


@every_kind
def test_text_stands_next_to_pictures(kind: str, worlds: Callable[[str], World]) -> None:
    world = worlds(kind)
    collate = Collator(world.processor)
    alone = separately(world, [collate([item]) for item in world.examples])
    torch.testing.assert_close(full_losses(world, collate(world.examples)), alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(full_losses(world, collate(world.examples[::-1])), alone.flip(0), rtol=1e-4, atol=1e-5)


@every_kind
@pytest.mark.parametrize(("first", "second"), [([0, 2], [1, 3]), ([3], [2, 1, 0]), ([0, 1], [2, 3])])
def test_joined_batches_lose_what_separate_ones_lose(
    kind: str, first: list[int], second: list[int], worlds: Callable[[str], World]
) -> None:
    world = worlds(kind)
    collate = Collator(world.processor)
    left, right = sides = [collate([world.examples[k] for k in side]) for side in (first, second)]
    whole = joined(left, right, world.processor.tokenizer.pad_token_id)
    assert whole.example_ids == left.example_ids + right.example_ids
    assert {len(tensor) for tensor in (whole.labels, whole.text_mask, whole.inputs["input_ids"])} == {
        len(whole.example_ids)
    }
    for name in ("attention_mask", "text"):  # padding stays padding
        masks = [side.text_mask if name == "text" else side.inputs[name] for side in (*sides, whole)]
        sums = [mask.sum(1).tolist() for mask in masks]
        assert sums[2] == sums[0] + sums[1]
    expected = separately(world, sides)
    torch.testing.assert_close(full_losses(world, whole), expected, rtol=1e-4, atol=1e-5)
    method = world.method()
    with torch.no_grad():  # the same by way of the logits that a step keeps
        kept = losses.sft(*method.answer_logits(method.merged(Pair(left, right))))
    torch.testing.assert_close(kept, expected, rtol=1e-4, atol=1e-5)


@every_kind
@torch.no_grad()
def test_the_logits_that_are_kept_are_those_that_count(kind: str, worlds: Callable[[str], World]) -> None:
    world = worlds(kind)
    batch = Collator(world.processor)(world.examples)
    logits, labels = world.method().answer_logits(batch)
    full = world.model(**batch.inputs, use_cache=False).logits
    assert logits.shape[1] == labels.shape[1] == batch.logits_to_keep < full.shape[1]
    predicting = losses.answer_positions(batch.labels)
    assert not predicting[:, : -batch.logits_to_keep].any()  # nothing is left out
    assert predicting[:, -batch.logits_to_keep].any()  # and nothing kept in vain
    torch.testing.assert_close(logits, full[:, -batch.logits_to_keep :], rtol=1e-4, atol=1e-5)
    assert (losses.answer_positions(labels) == predicting[:, -batch.logits_to_keep :]).all()


def test_a_model_that_cannot_leave_logits_out_gives_the_same(worlds: Callable[[str], World]) -> None:
    world = worlds("llava")
    batch = Collator(world.processor)(world.examples)
    plain, other = world.method(), world.method()
    other.__dict__["_keeps_logits"] = False
    with torch.no_grad():
        torch.testing.assert_close(other.answer_logits(batch)[0], plain.answer_logits(batch)[0])


def test_a_worker_makes_the_same_batch(worlds: Callable[[str], World]) -> None:
    _, processor, examples = worlds("mini")
    collate = Collator(processor)
    here, there = collate(examples), pickle.loads(pickle.dumps(collate))(pickle.loads(pickle.dumps(examples)))
    assert here.example_ids == there.example_ids and here.logits_to_keep == there.logits_to_keep
    assert (here.labels == there.labels).all()
    assert all((here.inputs[name] == there.inputs[name]).all() for name in here.inputs)


def test_pictures_are_squared_if_asked(worlds: Callable[[str], World]) -> None:
    processor = worlds("llava").processor
    wide = Painted("red", (60, 28))

    @dataclass(frozen=True)
    class Squared:
        name: str

        def open(self) -> Image.Image:
            return pad_to_square(wide.open(), processor)

    squared = Collator(processor, square=True)([example(wide, "What?", "Red.")])
    expected = Collator(processor)([example(Squared("red"), "What?", "Red.")])
    plain = Collator(processor)([example(wide, "What?", "Red.")])
    assert (squared.inputs["pixel_values"] == expected.inputs["pixel_values"]).all()
    assert (squared.inputs["pixel_values"] != plain.inputs["pixel_values"]).any()


# Refusals


def refused(collate: Collator, item: Example) -> str:
    with pytest.raises(DataError) as caught:
        collate([ENGLISH[0], item])
    message = str(caught.value)
    assert "row 3" in message and item.id in message and "\n" not in message
    return message


def test_an_example_that_does_not_fit_is_named_and_never_cut(worlds: Callable[[str], World]) -> None:
    processor = worlds("llava").processor
    long = dataclasses.replace(ENGLISH[2], answer="A circle. " * 30)
    length = int(Collator(processor)([long]).inputs["attention_mask"].sum())
    fits = Collator(processor, max_length=length)([ENGLISH[0], long])
    assert fits.labels.shape[1] == length
    message = refused(Collator(processor, max_length=length - 1), long)
    assert f"it has {length} tokens and the limit is {length - 1}" in message and "data.max_length" in message


def test_the_limit_is_the_tokenizers_own_unless_set(worlds: Callable[[str], World]) -> None:
    _, processor, examples = worlds("mini")
    limit = processor.tokenizer.model_max_length
    question = dataclasses.replace(examples[0], prompt=examples[0].prompt * limit)
    with pytest.raises(DataError, match=f"{question.id}.*the limit is {limit}"):
        Collator(processor)([question])


@every_kind
def test_a_placeholder_in_the_text_is_refused(kind: str, worlds: Callable[[str], World]) -> None:
    _, processor, _ = worlds(kind)
    token = processor.image_token
    for item in (
        example(Painted("red"), f"What is {token}?", "Red."),
        example(Painted("red"), "What?", f"A {token}."),
        example(None, f"{token} What?", "Red."),
        example(Painted("red"), "What?", "Red.", (f"And {token}?", "Blue.")),
    ):
        assert f"the text holds the image placeholder {token}" in refused(Collator(processor), item)


def test_an_empty_answer_is_refused(worlds: Callable[[str], World]) -> None:
    for item in (example(None, "What?", " \n"), example(None, "What?", "Red.", ("And?", ""))):
        assert "the answer is empty" in refused(Collator(worlds("llava").processor), item)


@every_kind
def test_an_answer_can_be_begun_only_and_then_has_no_end(kind: str, worlds: Callable[[str], World]) -> None:
    _, processor, examples = worlds(kind)
    whole, begun = Collator(processor), Collator(processor, max_answer_tokens=2)
    short = 0
    for item in examples:
        full, cut = whole.conversation(item), begun.conversation(item)
        for (start, end), (cut_start, cut_end) in zip(full.spans, cut.spans, strict=True):
            answer, beginning = full.text[start:end], cut.text[cut_start:cut_end]
            assert answer.startswith(beginning)
            if answer == beginning:
                short += 1  # two tokens or fewer, with its end
            else:
                assert len(processor.tokenizer(beginning, add_special_tokens=False)["input_ids"]) == 2
                assert whole.end_token not in beginning
    assert 0 < short < sum(len(item.later_turns) + 1 for item in examples)


# Found before the run


@every_kind
def test_what_would_stop_a_run_is_found_beforehand(kind: str, worlds: Callable[[str], World]) -> None:
    _, processor, examples = worlds(kind)
    first = examples[0]
    items = [
        *examples,
        dataclasses.replace(first, answer=first.answer + " and" * 40),
        dataclasses.replace(first, prompt=first.prompt * 9, image=Painted("red", (90, 30))),
        dataclasses.replace(first, answer=f"{first.answer} {processor.image_token}"),
        dataclasses.replace(first, answer="\n"),
        dataclasses.replace(examples[2], later_turns=(*examples[2].later_turns, Turn("And?", "é" * 30))),
    ]
    lengths = sorted({int(Collator(processor)([item]).inputs["attention_mask"].sum()) for item in examples})
    for limit in (10**9, *lengths, lengths[0] - 1):
        collate = Collator(processor, max_length=limit)
        refused = []
        for place, item in enumerate(items):
            try:
                collate([item])
            except DataError as error:
                refused.append((place, str(error)))
        assert list(too_long(items, collate)) == refused


def test_what_fits_by_far_is_neither_tokenized_nor_opened(worlds: Callable[[str], World]) -> None:
    class Closed(Painted):
        def open(self) -> Image.Image:
            raise AssertionError("opened")

    collate = Collator(worlds("llava").processor, max_length=2048)
    items = [example(Closed("red"), f"Question {k}?", "A circle.") for k in range(50)]
    tokenized = []
    text_tokens = collate.text_tokens
    collate.text_tokens = lambda item: tokenized.append(item) or text_tokens(item)  # type: ignore[method-assign]
    assert list(too_long(items, collate)) == [] and len(tokenized) == 1  # the empty template
