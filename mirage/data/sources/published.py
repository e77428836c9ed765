"""The forget and retain files that the paper's published pipeline writes, in LLaVA's conversation format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mirage.data.base import Answers, Source
from mirage.data.lazy import Lazy, items_at
from mirage.data.sources.llava import LlavaInstruct
from mirage.errors import DataError, DataIssue
from mirage.images import PIXEL_LIMIT, ImageCheck
from mirage.schema import Example


class PublishedSplit(Source):
    """The forget set (harmful answers) and the retain set of the paper's published pipeline, as it writes them.

    Forget files in the form that the pipeline gives them for RMU repeat the answer at the end of the question; the
    repetition is taken off, so that both forms give the same examples. There are no test questions in these files: take
    those from VLGuard.

    Args:
        forget_file: Conversation JSON with unsafe questions and harmful answers.
        retain_file: Conversation JSON with harmless questions and good answers.
        images: Folder that the records' `image` names are below.
        cache: Folder for the Arrow files; by default the one of Hugging Face datasets.
        image_check: How closely `validate` looks at the pictures: decode, header, exists or none.
        pixel_limit: Largest picture that is opened, in pixels.
    """

    def __init__(
        self,
        forget_file: Path,
        retain_file: Path,
        images: Path,
        cache: Path | None = None,
        image_check: ImageCheck = "header",
        pixel_limit: int = PIXEL_LIMIT,
    ) -> None:
        self._forget = LlavaInstruct(forget_file, images, cache, image_check, pixel_limit)
        self._retain = LlavaInstruct(retain_file, images, cache, image_check, pixel_limit)
        self.pictures = self._forget.pictures

    @property
    def name(self) -> str:
        """`published`."""
        return "published"

    def unsafe(self, answers: Answers) -> Sequence[Example]:
        """The forget set; it has harmful answers only."""
        if answers == "refusal":
            raise DataError(
                "The published forget file has harmful answers only. To learn refusals, use VLGuard itself."
            )
        return Lazy(len(self._forget.retain()), self._forgotten)

    def retain(self) -> Sequence[Example]:
        """The retain set."""
        return Lazy(len(self._retain.retain()), self._kept)

    def validate(self) -> Sequence[DataIssue]:
        """Every issue of both files."""
        return [*self._forget.validate(), *self._retain.validate()]

    def _forgotten(self, places: Sequence[int]) -> list[Example]:
        examples = items_at(self._forget.retain(), places)
        questions = [example.prompt.removesuffix(example.answer).rstrip() for example in examples]
        return [
            replace(example, source="published/forget", prompt=question or example.prompt)
            for example, question in zip(examples, questions, strict=True)
        ]

    def _kept(self, places: Sequence[int]) -> list[Example]:
        return [replace(example, source="published/retain") for example in items_at(self._retain.retain(), places)]
