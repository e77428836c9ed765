"""The processor of a checkpoint: tokenizer, chat template and image preparation, checked before it is used."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import TYPE_CHECKING, Any

from mirage.errors import ModelError
from mirage.models.pretrained import first_line, resolve_pretrained

if TYPE_CHECKING:
    from PIL.Image import Image

TEMPLATE_SECONDS = 10.0
QUESTION, ANSWER = "Which colour has it?", "Orange, I think."  # texts to try a template with


def load_processor(
    pretrained: str,
    *,
    revision: str | None = None,
    allow_download: bool = False,
    template_seconds: float = TEMPLATE_SECONDS,
) -> Any:
    """The processor of a checkpoint, with images prepared by PIL, its chat template checked and a pad token set.

    No code of the folder is run. A video processor is not loaded: there are no videos here, and it needs torchvision.

    Args:
        pretrained: As in `resolve_pretrained`.
        revision: Branch, tag or commit, where it is downloaded.
        allow_download: Fetch what is not a local folder.
        template_seconds: How long the chat template may run.

    Raises:
        ModelError: If a part is missing or the chat template cannot be trained with.
    """
    where = resolve_pretrained(pretrained, allow_download)
    processor = _load(where, revision or "main", local_files_only=not allow_download)
    kind = type(processor).__name__
    for part in ("tokenizer", "image_processor"):
        if getattr(processor, part, None) is None:
            raise ModelError(f"{where}: {kind} has no {part}. Use a vision-language model whose processor has both.")
    tokenizer = processor.tokenizer
    if tokenizer.eos_token is None:
        raise ModelError(
            f"{where}: the tokenizer has no eos_token, so answers would never end. Name one in its config."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not processor.chat_template:  # Hub folders keep it with either; only the processor's expands images
        processor.chat_template = tokenizer.chat_template
    check_chat_template(processor, where, template_seconds)
    return processor


def _load(where: str, revision: str, local_files_only: bool) -> Any:
    from transformers import AutoProcessor, ProcessorMixin

    get_attributes = ProcessorMixin.__dict__["get_attributes"]
    # A processor class is asked for its parts while it loads; the answer is changed for the time of this call.
    without_video = classmethod(lambda cls: _without_video(get_attributes.__func__(cls)))
    ProcessorMixin.get_attributes = without_video  # type: ignore[assignment, method-assign]
    try:
        processor = AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            where, revision=revision, local_files_only=local_files_only, trust_remote_code=False, backend="pil"
        )
    except Exception as error:  # a damaged folder raises anything from KeyError to RuntimeError
        raise ModelError(f"{where}: its processor cannot be loaded ({first_line(error)}). Repair its files.") from error
    finally:
        ProcessorMixin.get_attributes = get_attributes  # type: ignore[method-assign]
    kind = type(processor)
    if isinstance(processor, ProcessorMixin) and kind.get_attributes() != _without_video(kind.get_attributes()):
        processor.__class__ = _images_only(kind)  # type: ignore[arg-type]
    return processor


def _without_video(parts: list[str]) -> list[str]:
    return [part for part in parts if "video" not in part]


@cache
def _images_only(kind: Any) -> Any:
    """The processor class that differs from `kind` in having no video processor to save, compare or print."""

    def get_attributes(cls: type) -> list[str]:
        return _without_video(kind.get_attributes())

    def reduce(self: Any) -> tuple[Any, ...]:
        return _rebuild, (kind, self.__dict__)

    body = {"get_attributes": classmethod(get_attributes), "__reduce__": reduce, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), body)


def _rebuild(kind: type, state: dict[str, Any]) -> Any:
    """The processor that a loader worker receives: a class made at run time cannot be pickled by its name."""
    made = _images_only(kind)
    processor = made.__new__(made)
    processor.__dict__.update(state)
    return processor


def check_chat_template(processor: Any, where: str, seconds: float = TEMPLATE_SECONDS) -> str:
    """What the template writes after an answer, once it is sure that a model can be trained with it.

    Guaranteed: one image placeholder for one image and none for none, question and answer once each, the prompt a
    prefix of the conversation, and nothing but end markers and white space after the answer.

    Raises:
        ModelError: If a guarantee does not hold, or the template runs for more than `seconds`; the message names the
            processor, the folder and the remedy.
    """
    kind = type(processor).__name__
    who = f"{where}: the chat template of {kind}"
    if not processor.chat_template:
        raise ModelError(f"{where}: {kind} has no chat template. Put a chat_template.jinja there.")
    placeholder = getattr(processor, "image_token", None)
    if not placeholder:
        raise ModelError(f"{where}: {kind} has no image_token. Use a model whose processor has one.")
    question = {"type": "text", "text": QUESTION}
    asked = {"role": "user", "content": [{"type": "image"}, question]}
    answered = {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]}
    render = processor.apply_chat_template
    try:
        with time_limit(seconds):
            prompt = render([asked], add_generation_prompt=True)
            plain = render([{"role": "user", "content": [question]}], add_generation_prompt=True)
            conversation = render([asked, answered], add_generation_prompt=False)
    except Exception as error:  # templates are programs: anything may be raised
        raise ModelError(f"{who} fails ({first_line(error)}). Correct chat_template.jinja.") from error
    for text, images in ((prompt, 1), (plain, 0), (conversation, 1)):
        written = text.count(placeholder)
        if written != images:
            raise ModelError(
                f"{who} writes {written} image placeholders ({placeholder}) for {images} images. "
                "Correct it to write one for each."
            )
    for text, name in ((QUESTION, "question"), (ANSWER, "answer")):
        if conversation.count(text) != 1:
            raise ModelError(f"{who} writes the {name} {conversation.count(text)} times. Correct it to write it once.")
    if not conversation.startswith(prompt.rstrip()):
        raise ModelError(f"{who} begins a conversation otherwise than its prompt. Correct add_generation_prompt.")
    tail = str(conversation.partition(ANSWER)[2])
    leftover = tail
    for marker in sorted(processor.tokenizer.get_added_vocab(), key=len, reverse=True):
        leftover = leftover.replace(marker, "")
    if leftover.strip():
        raise ModelError(
            f"{who} writes {leftover.strip()!r} after the answer. Correct it to write only an end token there."
        )
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
