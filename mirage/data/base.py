"""What a data source offers: training sets, evaluation samples, and a list of its issues, all without a model."""

from __future__ import annotations

import os
from abc import ABC
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mirage.errors import DataError, DataIssue
from mirage.images import PIXEL_LIMIT, FileImage, ImageCheck, ImageError, image_issues, resolve_image
from mirage.schema import EvalSample, Example, Picture, Rewriter

Answers = Literal["refusal", "harmful"]


class Source(ABC):
    """Base of every data source. A source overrides what it has; the rest says clearly that it has none.

    A constructor takes typed settings only and reads no file; files are read by the methods, once.
    `Sequence` may be lazy (Arrow): a set of 665k examples is never a Python list.
    """

    rewriter: Rewriter | None = None
    """How questions of this source are rewritten for an attack, where general rewriters do not fit its language."""
    answer_for: Callable[[str, str], str] | None = None
    """(answer, question in another form) -> the answer to it, where the form of a question shapes the answer's."""

    @property
    def name(self) -> str:
        """Short name for ids, results and messages."""
        return type(self).__name__.lower()

    def unsafe(self, answers: Answers) -> Sequence[Example]:
        """The unsafe set: harmful questions, answered by a refusal (to learn) or a harmful answer (to unlearn)."""
        raise DataError(f"{self.name} has no unsafe set. Choose a source that has one as data.source.")

    def unsafe_questions(self) -> Sequence[Example]:
        """The unsafe set with whichever answers the source has."""
        try:
            return self.unsafe("refusal")
        except DataError:
            return self.unsafe("harmful")

    def retain(self) -> Sequence[Example]:
        """The retain set: harmless questions with good answers."""
        raise DataError(f"{self.name} has no retain set. List a source that has one under data.retain.")

    def offers(self, part: Literal["unsafe", "retain"]) -> bool:
        """False if sources of this kind have no such training set at all; no file is read to find out."""
        return getattr(type(self), part) is not getattr(Source, part)

    def held_out(self) -> Sequence[Example]:
        """Retain examples that are never trained on, for the validation loss; may be empty."""
        return ()

    def eval_samples(self, eval_set: str) -> Sequence[EvalSample]:
        """The test questions of `unsafe`, `benign`, or of another set that the source names."""
        raise self.no_eval_set(eval_set, ())

    def no_eval_set(self, eval_set: str, known: Iterable[str]) -> DataError:
        """The error that names the evaluation sets that there are."""
        listed = f"It has: {', '.join(known)}." if known else "Choose a source that has them as data.source."
        return DataError(f"{self.name} has no samples called {eval_set!r}. {listed}")

    def missing(self) -> str | None:
        """Why this source cannot be used at all on this machine, in a sentence; None if its files are there."""
        return None

    def skipped(self) -> Sequence[DataIssue]:
        """What the files hold and is not trained on, each with the reason; for the results."""
        return ()

    def picture(self, name: str) -> Picture | None:
        """The picture that examples and samples of this source call `name`, unopened; None if there can be none.

        The file need not be there: that shows when the picture is opened, which may touch nothing outside the data root.
        """
        return None

    def validate(self) -> Sequence[DataIssue]:
        """Every defect that can be detected without a model: files, records, fields, images."""
        return ()


@dataclass(eq=False, kw_only=True)
class FileSource(Source):
    """Base of the sources whose pictures are files below one folder.

    Args:
        image_check: How closely `validate` looks at the pictures: decode, header, exists or none.
        pixel_limit: Largest picture that is opened, in pixels.
    """

    image_check: ImageCheck = "header"
    pixel_limit: int = PIXEL_LIMIT
    image_root: Path | None = field(default=None, init=False)  # set in __post_init__; None if there are no pictures

    def picture(self, name: str) -> Picture | None:
        """The file below `image_root`."""
        return None if self.image_root is None else FileImage(self.image_root, name, self.pixel_limit)

    def misplaced(self, file: Path) -> list[DataIssue]:
        """An issue if the data file is there and is no regular file below `image_root`, links followed."""
        assert self.image_root is not None
        try:
            if file.exists():
                resolve_image(self.image_root, os.path.relpath(file, self.image_root))
        except ImageError as error:
            return [DataIssue(str(file), "", "the file", str(error))]
        return []

    def wrong_pictures(self, names: Iterable[str]) -> dict[str, str]:
        """What is wrong with each of the pictures that cannot be used, by name."""
        assert self.image_root is not None
        return image_issues(self.image_root, names, self.image_check, self.pixel_limit)

    def picture_issues(self, file: Path, named: Sequence[tuple[str, str]]) -> list[DataIssue]:
        """An issue for each record of `file` whose picture cannot be used; `named` are their places and image names."""
        wrong = self.wrong_pictures(name for _, name in named)
        return [DataIssue(str(file), where, "image", wrong[name]) for where, name in named if name in wrong]
