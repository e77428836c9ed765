"""From examples to tensors: the processor's chat template, labels on the answers and on nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any, NamedTuple

import torch
from PIL import Image

from mirage.batch import Batch
from mirage.errors import DataError
from mirage.losses import IGNORED
from mirage.models.processor import adds_special_tokens, end_of_answer, pad_to_square, user_message
from mirage.schema import Example


class Conversation(NamedTuple):
    """An example as the model's text, with the character spans of what is supervised (answer and end token)."""

    text: str
    spans: tuple[tuple[int, int], ...]


class Collator:
    """Makes a `Batch` of examples. Picklable, so that loader workers can call it.

    Args:
        processor: The model's processor.
        max_length: Longest sequence in tokens, image tokens included; None for the tokenizer's own limit.
        square: Pad pictures to a square first, as LLaVA was trained.
        max_answer_tokens: Take only the first so many tokens of every answer. Where one was cut, no end is learned.
        always_a_picture: Give a batch without pictures a blank one, in padding that nothing attends to. With several
            ranks every one must use the projector in a step, or those that do wait for its gradient from the others.
    """

    def __init__(
        self, processor: Any, max_length: int | None = None, square: bool = False, max_answer_tokens: int | None = None,
        always_a_picture: bool = False,
    ) -> None:  # fmt: skip
        self.processor, self.square, self.max_answer_tokens = processor, square, max_answer_tokens
        self.max_length = max_length or processor.tokenizer.model_max_length
        self.end_token, self.always_a_picture = end_of_answer(processor), always_a_picture
        self.hashes_inputs = False  # True where a cache needs the hashes: every picture is read for them

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """The batch of `examples`, padded on the right.

        Raises:
            DataError: If an example does not fit: the image and the answer are never cut.
        """
        tokenizer = self.processor.tokenizer
        conversations = [self.conversation(example) for example in examples]
        texts = [conversation.text for conversation in conversations]
        special = adds_special_tokens(self.processor, texts[0])
        pictures = [[] if example.image is None else [self._shown(example.image.open())] for example in examples]
        encoded = self.processor(
            text=texts,
            images=pictures if any(pictures) else None,
            padding=True,
            padding_side="right",
            add_special_tokens=special,
            return_tensors="pt",
        )
        inputs = {name: value for name, value in encoded.items() if isinstance(value, torch.Tensor)}
        if self.always_a_picture and not any(pictures):
            inputs = self._with_blank_picture(inputs)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        counted = torch.zeros_like(ids, dtype=torch.bool)
        for row, (conversation, length) in enumerate(zip(conversations, mask.sum(1).tolist(), strict=True)):
            if length > self.max_length:
                remedy = "Raise data.max_length, set data.skip_too_long, or shorten the answer."
                issue = f"it has {length} tokens and the limit is {self.max_length}. {remedy}"
                raise _error(examples[row], issue)
            # Image tokens come before every answer, so places are the same counted from the end, expanded or not.
            offsets = tokenizer(conversation.text, add_special_tokens=special, return_offsets_mapping=True)[
                "offset_mapping"
            ]
            for start, end in conversation.spans:
                for place, (left, right) in enumerate(offsets):
                    if left < end and right > start and right > left:
                        counted[row, length - len(offsets) + place] = True
        text = mask.bool() & (ids != self.processor.image_token_id)
        text[:, 0] = False  # the first token's activation is an outlier in every decoder and says nothing of the text
        first_answered = int(counted.any(0).nonzero()[0])
        return Batch(
            inputs=inputs,
            labels=ids.masked_fill(~counted, IGNORED),
            text_mask=text.to(mask.dtype),
            example_ids=tuple(example.id for example in examples),
            logits_to_keep=ids.shape[1] - first_answered + 1,
            input_hashes=tuple(
                _input_hash(row[present], shown) for row, present, shown in zip(ids, mask.bool(), pictures, strict=True)
            )
            if self.hashes_inputs
            else (),
        )

    def conversation(self, example: Example) -> Conversation:
        """The example as the chat template writes it, and where its answers stand."""
        if example.image is None and "cross_attention_mask" in self.processor.model_input_names:
            # its losses would depend on the pictures beside it
            raise _error(example, "it has no picture, and models with cross attention train on pictures. Leave it out.")
        messages: list[dict[str, Any]] = []
        spans: list[tuple[int, int]] = []
        text = ""
        for question, answer in ((example.prompt, example.answer), *example.later_turns):
            messages.append(user_message(question, has_image=example.image is not None and not messages))
            prompt = self.processor.apply_chat_template(messages, add_generation_prompt=True)
            beginning = self._beginning(answer)
            messages.append({"role": "assistant", "content": [{"type": "text", "text": beginning}]})
            text = self.processor.apply_chat_template(messages)
            written = beginning.strip()  # many templates strip it
            start = text.find(written, len(prompt.rstrip()))
            if not written or start < 0:
                issue = "is changed by the chat template" if written else "is empty"
                raise _error(example, f"the answer {issue}. Remove it.")
            end = start + len(written)
            tail = text[end:]
            if beginning == answer and tail.lstrip().startswith(self.end_token):
                end += len(tail) - len(tail.lstrip()) + len(self.end_token)
            spans.append((start, end))
        placeholder = self.processor.image_token
        if text.count(placeholder) != (example.image is not None):
            remedy = "Remove it from the question and the answer."
            raise _error(example, f"the text holds the image placeholder {placeholder}. {remedy}")
        return Conversation(text, tuple(spans))

    def _beginning(self, answer: str) -> str:
        if self.max_answer_tokens is None:
            return answer
        encoded = self.processor.tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
        offsets = encoded["offset_mapping"]
        return answer if len(offsets) <= self.max_answer_tokens else answer[: offsets[self.max_answer_tokens - 1][1]]

    def _with_blank_picture(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The inputs with a picture behind the shortest row. Its place in the mask is that of padding."""
        blank = self.processor(
            text=[self.processor.image_token], images=[[Image.new("RGB", (32, 32))]], add_special_tokens=False,
            return_tensors="pt",
        )  # fmt: skip
        rows, length = inputs["input_ids"].shape
        lengths = inputs["attention_mask"].sum(1)
        row, start = int(lengths.argmin()), int(lengths.min())
        stop = start + blank["input_ids"].shape[1]
        for name, value in blank.items():
            if name not in inputs:  # the picture itself, and what is said of it
                inputs[name] = value
                continue
            fill = self.processor.tokenizer.pad_token_id if name == "input_ids" else 0
            longer = torch.full((rows, max(length, stop)), fill, dtype=value.dtype)
            longer[:, :length] = inputs[name]
            if name != "attention_mask":
                longer[row, start:stop] = value[0]
            inputs[name] = longer
        return inputs

    def text_tokens(self, example: Example) -> int:
        """How many tokens the example has, where a picture counts as its placeholder alone."""
        text = self.conversation(example).text
        return len(
            self.processor.tokenizer(text, add_special_tokens=adds_special_tokens(self.processor, text))["input_ids"]
        )

    def picture_tokens(self, picture: Any) -> int:
        """How many tokens the processor makes of a picture."""
        token, shown = self.processor.image_token, self._shown(picture)
        return len(self.processor(text=[token], images=[[shown]], add_special_tokens=False)["input_ids"][0])

    def _shown(self, picture: Any) -> Any:
        return pad_to_square(picture, self.processor) if self.square else picture


def _input_hash(ids: torch.Tensor, pictures: Sequence[Any]) -> str:
    """A hash of what the model sees of an example, up to the image processor's settings."""
    digest = sha256(ids.numpy().tobytes())
    for picture in pictures:
        digest.update(f"{picture.mode} {picture.size}".encode())
        digest.update(picture.tobytes())
    return digest.hexdigest()


def _error(example: Example, issue: str) -> DataError:
    return DataError(f"{example.where or example.source} (id {example.id}): {issue}")
