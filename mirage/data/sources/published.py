"""The forget and retain files that the paper's published pipeline writes, in LLaVA's conversation format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mirage.data.base import Answers, FileSource
from mirage.data.sources.llava import LlavaInstruct
from mirage.errors import DataError, DataIssue
from mirage.schema import Example


class _Forget(LlavaInstruct):
    name = "published/forget"

    def _examples(self, places: Sequence[int]) -> list[Example]:
        return [
            replace(each, prompt=each.prompt.removesuffix(each.answer).rstrip() or each.prompt)
            for each in super()._examples(places)
        ]


class _Retain(LlavaInstruct):
    name = "published/retain"


@dataclass(eq=False)
class PublishedSplit(FileSource):
    """The forget set (harmful answers) and the retain set of the paper's published pipeline, as it writes them.

    Forget files in the form that the pipeline gives them for RMU repeat the answer at the end of the question; the
    repetition is taken off, so that both forms give the same examples. There are no test questions in these files: take
    those from VLGuard.

    Args:
        forget_file: Conversation JSON with unsafe questions and harmful answers.
        retain_file: Conversation JSON with harmless questions and good answers.
        images: Folder that the records' `image` names are below.
        cache: Folder for the Arrow files; by default the one of Hugging Face datasets.
    """

    forget_file: Path
    retain_file: Path
    images: Path
    cache: Path | None = None
    name = "published"

    def __post_init__(self) -> None:
        self.image_root = Path(self.images)
        settings: dict[str, Any] = {"image_check": self.image_check, "pixel_limit": self.pixel_limit}
        self._forget = _Forget(self.forget_file, self.images, self.cache, **settings)
        self._retain = _Retain(self.retain_file, self.images, self.cache, **settings)

    def unsafe(self, answers: Answers) -> Sequence[Example]:
        """The forget set; it has harmful answers only."""
        if answers == "refusal":
            raise DataError(
                "The published forget file has harmful answers only. To learn refusals, use VLGuard itself."
            )
        return self._forget.retain()

    def retain(self) -> Sequence[Example]:
        """The retain set."""
        return self._retain.retain()

    def validate(self) -> Sequence[DataIssue]:
        """Every issue of both files."""
        return [*self._forget.validate(), *self._retain.validate()]
