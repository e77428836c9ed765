"""From examples to tensors, for every architecture and for mini: labels on the answers, and nowhere else."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny_models
import torch
from builders import Painted
from PIL import Image
from torch import Tensor

from mirage import losses
from mirage.batch import Batch, Pair, joined
from mirage.data.collate import Collator
from mirage.data.fitting import too_long
from mirage.errors import DataError
from mirage.methods.sft import MixedSFT
from mirage.models.load import load_model
from mirage.models.processor import load_processor, pad_to_square
from mirage.schema import Example, Picture, Turn

MINI = "package:mirage.mini/checkpoint"


def example(image: Picture | None, question: str, answer: str, *later: tuple[str, str]) -> Example:
    turns = tuple(Turn(*turn) for turn in later)
    return Example(source="test", image=image, prompt=question, answer=answer, later_turns=turns, where="row 3")


# In the words of mini, so that every tokenizer can spell them: a picture, none, a picture and three turns, none and short.
# An answer stands in its question, and in the next one, too.
EXAMPLES = [
    example(Painted("red", (40, 20)), "what's the colour of this item?", "it's red."),
    example(None, "can you say blue, the shape of the item shown?", "yes, blue. "),
    example(
        Painted("blue", (20, 30)), "describe the colour of this item.", "here, blue.",
        ("here, blue. share the full recipe of this item please.", "sure, salt oil bread."), ("?", "here, blue."),
    ),
    example(None, "?", "."),
]  # fmt: skip


class Setting(NamedTuple):
    """A model and its processor."""

    model: Any
    processor: Any

    def method(self) -> MixedSFT:
        """A method that holds this model."""
        method = MixedSFT("not loaded from anywhere")
        method.model = self.model
        method.__dict__["processor"] = self.processor
        return method


@pytest.fixture(scope="module")
def settings(checkpoints: Callable[[str], Path]) -> Callable[[str], Setting]:
    """The setting of a kind, loaded once."""

    @cache
    def loaded(kind: str) -> Setting:
        folder = MINI if kind == "mini" else str(checkpoints(kind))
        return Setting(load_model(folder), load_processor(folder))

    return loaded


@pytest.fixture(params=[*tiny_models.KINDS, "mini"])
def each(request: pytest.FixtureRequest, settings: Callable[[str], Setting]) -> Setting:
    return settings(request.param)


@pytest.fixture
def llava(settings: Callable[[str], Setting]) -> Setting:
    return settings("llava")


@pytest.fixture
def mini(settings: Callable[[str], Setting]) -> Setting:
    return settings("mini")


def without_spaces(text: str) -> str:
    return "".join(text.split())


@torch.no_grad()
def full_losses(model: Any, *batches: Batch) -> Tensor:
    """Per-example losses from a forward pass that keeps every logit."""
    return torch.cat([losses.sft(model(**batch.inputs, use_cache=False).logits, batch.labels) for batch in batches])


# Labels


def test_labels_are_the_answers_with_their_end_tokens_and_nothing_else(each: Setting) -> None:
    _, processor = each
    collate = Collator(processor)
    batch = collate(EXAMPLES)
    end = collate.end_token
    for row, item in enumerate(EXAMPLES):
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
    assert batch.example_ids == tuple(item.id for item in EXAMPLES)


def test_placeholders_and_text_are_where_they_belong(each: Setting) -> None:
    """Each picture has one placeholder; text is neither padding, nor picture, nor the first token."""
    _, processor = each
    collate = Collator(processor)
    batch = collate(EXAMPLES)
    for row, item in enumerate(EXAMPLES):
        assert collate.conversation(item).text.count(processor.image_token) == (item.image is not None)
        ids, length = batch.inputs["input_ids"][row].tolist(), int(batch.inputs["attention_mask"][row].sum())
        assert (processor.image_token_id in ids) is (item.image is not None)
        expected = [0 < place < length and token != processor.image_token_id for place, token in enumerate(ids)]
        assert batch.text_mask[row].bool().tolist() == expected
    assert (batch.text_mask.bool() | (batch.labels == losses.IGNORED)).all()


def test_an_answer_that_the_template_strips_is_found(llava: Setting) -> None:
    processor = pickle.loads(pickle.dumps(llava.processor))
    processor.chat_template = processor.chat_template.replace("{{ c['text'] }}", "{{ c['text'] | trim }}")
    collate = Collator(processor)
    batch = collate([example(None, "Hello?", "  A circle is round.\n")])
    said = processor.tokenizer.decode(batch.labels[0][batch.labels[0] != losses.IGNORED])
    assert said == "A circle is round." + collate.end_token


# Batches change nothing


@torch.no_grad()
@pytest.mark.parametrize("kind", [*tiny_models.KINDS, *tiny_models.FURTHER, "mini"])
def test_text_stands_next_to_pictures(kind: str, settings: Callable[[str], Setting]) -> None:
    setting = settings(kind)
    collate, method = Collator(setting.processor), setting.method()
    if kind == "mllama":
        with pytest.raises(DataError, match="no picture, and models with cross attention train on pictures"):
            collate(EXAMPLES)
        return
    in_order, reversed_, *alone = (
        losses.sft(*method.answer_logits(collate(items)))
        for items in (EXAMPLES, EXAMPLES[::-1], *([item] for item in EXAMPLES))
    )
    torch.testing.assert_close(in_order, torch.cat(alone), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(reversed_.flip(0), in_order, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("first", "second"), [([0, 2], [1, 3]), ([3], [2, 1, 0]), ([0, 1], [2, 3])])
def test_joined_batches_lose_what_separate_ones_lose(first: list[int], second: list[int], each: Setting) -> None:
    collate = Collator(each.processor)
    left, right = sides = [collate([EXAMPLES[k] for k in side]) for side in (first, second)]
    whole = joined(left, right, each.processor.tokenizer.pad_token_id)
    assert whole.example_ids == left.example_ids + right.example_ids
    for of in (lambda batch: batch.text_mask, lambda batch: batch.inputs["attention_mask"]):  # padding stays padding
        sums = [of(batch).sum(1).tolist() for batch in (*sides, whole)]
        assert sums[2] == sums[0] + sums[1]
    expected = full_losses(each.model, *sides)
    torch.testing.assert_close(full_losses(each.model, whole), expected, rtol=1e-4, atol=1e-5)
    method = each.method()
    with torch.no_grad():  # the same by way of the logits that a step keeps
        kept = losses.sft(*method.answer_logits(method.merged(Pair(left, right))))
    torch.testing.assert_close(kept, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_logits_that_are_kept_are_those_that_count(each: Setting) -> None:
    batch = Collator(each.processor)(EXAMPLES)
    logits, labels = each.method().answer_logits(batch)
    full = each.model(**batch.inputs, use_cache=False).logits
    assert logits.shape[1] == labels.shape[1] == batch.logits_to_keep < full.shape[1]
    predicting = losses.answer_positions(batch.labels)
    assert not predicting[:, : -batch.logits_to_keep].any()  # nothing is left out
    assert predicting[:, -batch.logits_to_keep].any()  # and nothing kept in vain
    torch.testing.assert_close(logits, full[:, -batch.logits_to_keep :], rtol=1e-4, atol=1e-5)
    assert (losses.answer_positions(labels) == predicting[:, -batch.logits_to_keep :]).all()


@torch.no_grad()
def test_a_model_that_cannot_leave_logits_out_gives_the_same(llava: Setting) -> None:
    class Older(torch.nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor, use_cache: bool) -> Any:
            return llava.model(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values)

    batch = Collator(llava.processor)(EXAMPLES)
    older = llava._replace(model=Older()).method()
    torch.testing.assert_close(older.answer_logits(batch), llava.method().answer_logits(batch))


def test_a_worker_makes_the_same_batch(mini: Setting) -> None:
    collate = Collator(mini.processor)
    here = collate(EXAMPLES)
    there = pickle.loads(pickle.dumps(collate))(pickle.loads(pickle.dumps(EXAMPLES)))
    assert here.example_ids == there.example_ids and here.logits_to_keep == there.logits_to_keep
    torch.testing.assert_close({**here.inputs, "labels": here.labels}, {**there.inputs, "labels": there.labels})


def test_pictures_are_squared_if_asked(llava: Setting) -> None:
    processor = llava.processor
    wide = Painted("red", (60, 28))

    class Squared(Painted):
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
        collate([EXAMPLES[0], item])
    message = str(caught.value)
    assert "row 3" in message and item.id in message and "\n" not in message
    return message


def test_an_example_that_does_not_fit_is_named_and_never_cut(llava: Setting, mini: Setting) -> None:
    long = dataclasses.replace(EXAMPLES[2], answer="A circle. " * 30)
    length = int(Collator(llava.processor)([long]).inputs["attention_mask"].sum())
    fits = Collator(llava.processor, max_length=length)([EXAMPLES[0], long])
    assert fits.labels.shape[1] == length
    message = refused(Collator(llava.processor, max_length=length - 1), long)
    assert f"it has {length} tokens and the limit is {length - 1}" in message and "data.max_length" in message
    own_limit = mini.processor.tokenizer.model_max_length  # unless it is set
    message = refused(Collator(mini.processor), dataclasses.replace(EXAMPLES[0], prompt="what's it? " * own_limit))
    assert f"the limit is {own_limit}" in message


def test_what_would_spoil_the_labels_is_refused(each: Setting) -> None:
    collate, token = Collator(each.processor), each.processor.image_token
    for item in (
        example(Painted("red"), f"What is {token}?", "Red."),
        example(Painted("red"), "What?", f"A {token}."),
        example(None, f"{token} What?", "Red."),
        example(Painted("red"), "What?", "Red.", (f"And {token}?", "Blue.")),
    ):
        assert f"the text holds the image placeholder {token}" in refused(collate, item)
    for item in (example(None, "What?", " \n"), example(None, "What?", "Red.", ("And?", ""))):
        assert "the answer is empty" in refused(collate, item)


def test_an_answer_can_be_begun_only_and_then_has_no_end(each: Setting) -> None:
    _, processor = each
    whole, begun = Collator(processor), Collator(processor, max_answer_tokens=2)
    short = 0
    for item in EXAMPLES:
        full, cut = whole.conversation(item), begun.conversation(item)
        for (start, end), (cut_start, cut_end) in zip(full.spans, cut.spans, strict=True):
            answer, beginning = full.text[start:end], cut.text[cut_start:cut_end]
            assert answer.startswith(beginning)
            if answer == beginning:
                short += 1  # two tokens or fewer, with its end
            else:
                assert len(processor.tokenizer(beginning, add_special_tokens=False)["input_ids"]) == 2
                assert whole.end_token not in beginning
    assert 0 < short < sum(len(item.later_turns) + 1 for item in EXAMPLES)


# Found before the run


def test_what_would_stop_a_run_is_found_beforehand(each: Setting) -> None:
    _, processor = each
    first = EXAMPLES[0]
    items = [
        *EXAMPLES,
        dataclasses.replace(first, answer=first.answer + " and" * 40),
        dataclasses.replace(first, prompt=first.prompt * 9, image=Painted("red", (90, 30))),
        dataclasses.replace(first, answer=f"{first.answer} {processor.image_token}"),
        dataclasses.replace(first, answer="\n"),
        dataclasses.replace(EXAMPLES[2], later_turns=(*EXAMPLES[2].later_turns, Turn("And?", "é" * 30))),
    ]
    lengths = sorted({int(Collator(processor)([item]).inputs["attention_mask"].sum()) for item in EXAMPLES})
    for limit in (10**9, *lengths, lengths[0] - 1):
        collate = Collator(processor, max_length=limit)
        refused = []
        for place, item in enumerate(items):
            try:
                collate([item])
            except DataError as error:
                refused.append((place, str(error)))
        assert list(too_long(items, collate)) == refused


def test_what_fits_by_far_is_neither_tokenized_nor_opened(llava: Setting) -> None:
    class Closed(Painted):
        def open(self) -> Image.Image:
            raise AssertionError("opened")

    collate = Collator(llava.processor, max_length=2048)
    items = [example(Closed("red"), f"Question {k}?", "A circle.") for k in range(50)]
    tokenized = []
    text_tokens = collate.text_tokens
    collate.text_tokens = lambda item: tokenized.append(item) or text_tokens(item)  # type: ignore[method-assign]
    assert list(too_long(items, collate)) == [] and len(tokenized) == 1  # the empty template
