"""The processor of a checkpoint: tokenizer, chat template and image preparation, checked before it is used."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

from mirage.errors import ModelError
from mirage.models.pretrained import first_line, repairable, resolve_pretrained

if TYPE_CHECKING:
    from PIL.Image import Image

QUESTION, ANSWER = "Which colour has it?", "Orange, I think."  # texts to try a template with
CONTENT_ALONE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def load_processor(
    pretrained: str, *, revision: str | None = None, allow_download: bool = False, template_seconds: float = 10.0
) -> Any:
    """The processor of a checkpoint, with images prepared by PIL, its chat template checked and a pad token set.

    No code of the folder is run. A video processor is not loaded: there are no videos here, and it needs torchvision.

    Args:
        pretrained: As in `load_model`, like `revision` and `allow_download`.
        template_seconds: How long the chat template may run.

    Raises:
        ModelError: If a part is missing or the chat template cannot be trained with.
    """
    where = resolve_pretrained(pretrained, allow_download)
    processor = _load(where, revision or "main", local_files_only=not allow_download)
    tokenizer: Any = getattr(processor, "tokenizer", None)
    if getattr(processor, "image_processor", None) is None or getattr(tokenizer, "eos_token", None) is None:
        raise ModelError(
            f"{where}: the processor lacks an image_processor, or a tokenizer with an eos_token, which ends answers. "
            "Use a vision-language model that has both."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not processor.chat_template:  # Hub folders keep it with either; only the processor's expands images
        processor.chat_template = tokenizer.chat_template
    check_chat_template(processor, where, template_seconds)
    return processor


def _load(where: str, revision: str, local_files_only: bool) -> Any:
    from transformers import AutoProcessor, ProcessorMixin

    parts_of = ProcessorMixin.__dict__["get_attributes"]
    # A processor class is asked for its parts while it loads; the answer is changed for the time of this call, ...
    ProcessorMixin.get_attributes = classmethod(lambda cls: _without_video(parts_of.__func__(cls)))  # type: ignore
    try:
        with repairable(f"{where}: its processor"):
            processor: Any = AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]
                where, revision=revision, local_files_only=local_files_only, trust_remote_code=False, backend="pil"
            )
    finally:
        ProcessorMixin.get_attributes = parts_of  # type: ignore[method-assign]
    if isinstance(processor, ProcessorMixin):  # ... and for good for this processor, which is saved, sent and printed
        processor.get_attributes = partial(_without_video, type(processor).get_attributes())  # type: ignore[method-assign]
    return processor


def needs_torchvision(where: str) -> bool:
    """True if the processor in this folder prepares pictures with torchvision, though it is asked for PIL."""
    from transformers.image_processing_backends import TorchvisionBackend

    try:
        processor = _load(where, "main", local_files_only=True)
    except ModelError as error:
        return isinstance(error.__cause__, ImportError)
    declared = getattr(type(processor), "__backends", ())  # left on the class by transformers' decorator `requires`
    return "torchvision" in declared or isinstance(processor.image_processor, TorchvisionBackend)


def _without_video(parts: list[str]) -> list[str]:
    return [part for part in parts if "video" not in part]


def check_chat_template(processor: Any, where: str, seconds: float = 10.0) -> str:
    """What the template writes after an answer, once it is sure that a model can be trained with it.

    Guaranteed: one image placeholder for one image and none for none, question and answer once each, the prompt a
    prefix of the conversation, and nothing but end markers and white space after the answer.

    Raises:
        ModelError: If a guarantee does not hold, or the template runs for more than `seconds`; the message names the
            processor, the folder and the remedy.
    """
    who = f"{where}: the chat template of {type(processor).__name__}"
    placeholder = getattr(processor, "image_token", None)
    if not processor.chat_template or not placeholder:
        raise ModelError(f"{who} or its image_token is missing. Put a chat_template.jinja there, or use another model.")
    asked = user_message(QUESTION, has_image=True)
    answered = {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]}
    render = processor.apply_chat_template
    try:
        with time_limit(seconds):
            prompt = render([asked], add_generation_prompt=True)
            plain = render([user_message(QUESTION, has_image=False)], add_generation_prompt=True)
            conversation = str(render([asked, answered], add_generation_prompt=False))
    except Exception as error:  # templates are programs: anything may be raised
        raise ModelError(f"{who} fails ({first_line(error)}). Correct chat_template.jinja.") from error
    for text, name, part, expected in (
        (prompt, "a prompt", placeholder, 1),
        (plain, "a prompt without a picture", placeholder, 0),
        (conversation, "a conversation", placeholder, 1),
        (conversation, "a conversation", QUESTION, 1),
        (conversation, "a conversation", ANSWER, 1),
    ):
        if (count := text.count(part)) != expected:
            raise ModelError(
                f"{who} writes {part!r} {count} times into {name}, not {expected}. Correct chat_template.jinja."
            )
    if not conversation.startswith(prompt.rstrip()):
        raise ModelError(f"{who} begins a conversation otherwise than its prompt. Correct add_generation_prompt.")
    tail = conversation.partition(ANSWER)[2]
    markers = sorted(processor.tokenizer.get_added_vocab(), key=len, reverse=True)
    if leftover := re.sub("|".join(map(re.escape, markers)), "", tail).strip():
        raise ModelError(f"{who} writes {leftover!r} after the answer. Correct it to write only an end token there.")
    return tail


def end_of_answer(processor: Any) -> str:
    """The token that ends an answer: the first that the template writes after one, else the tokenizer's eos token."""
    tail = check_chat_template(processor, processor.tokenizer.name_or_path).strip()
    markers = [marker for marker in processor.tokenizer.get_added_vocab() if marker and tail.startswith(marker)]
    return str(max(markers, key=len, default=processor.tokenizer.eos_token))


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Ends a Python function called in the block with a TimeoutError once `seconds` have passed.

    A chat template is someone else's program and may loop for ever; it is compiled to Python, so a trace function
    sees each of its lines, in any thread and without leaving a process behind.
    """
    deadline = time.monotonic() + seconds
    before = sys.gettrace()

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if time.monotonic() > deadline:
            raise TimeoutError(f"it ran for more than {seconds:g} s")
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def user_message(question: str, has_image: bool) -> dict[str, Any]:
    """A question as a chat template takes it, behind its picture."""
    picture = [{"type": "image"}] if has_image else []
    return {"role": "user", "content": [*picture, {"type": "text", "text": question}]}


def adds_special_tokens(processor: Any, text: str) -> bool:
    """Whether the tokenizer is to add its own special tokens: not if the chat template has written the opening one."""
    bos = processor.tokenizer.bos_token
    return not (bos and text.startswith(bos))


class TextProcessor:
    """A tokenizer in the place of a processor, for a language model.

    Args:
        tokenizer: The tokenizer; without a chat template, a prompt is the text of its messages alone.
    """

    image_token: str | None = None

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.chat_template: str = tokenizer.chat_template or CONTENT_ALONE
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

    def __call__(self, *, text: Sequence[str], images: None, **settings: Any) -> Any:
        """The tokenizer's inputs for these texts."""
        return self.tokenizer(text, **settings)

    def apply_chat_template(self, messages: Sequence[dict[str, Any]], **settings: Any) -> Any:
        """The conversation as the tokenizer's template writes it, which takes contents as texts."""
        texts = [{**message, "content": "".join(part["text"] for part in message["content"])} for message in messages]
        return self.tokenizer.apply_chat_template(
            texts, chat_template=self.chat_template, **{"tokenize": False, **settings}
        )


def pad_to_square(image: Image, processor: Any) -> Image:
    """The image centred on a square of the processor's mean colour, as LLaVA was trained; a square one is unchanged."""
    from PIL import Image as images

    if image.width == image.height:
        return image
    mean = getattr(processor.image_processor, "image_mean", None) or (0.5, 0.5, 0.5)
    side = max(image.size)
    canvas = images.new("RGB", (side, side), tuple(int(channel * 255) for channel in mean))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas
