"""Utility benchmarks: from official files to samples, and from scores to what the results say.

    official file -> Question -> subset -> EvalSample, which is asked -> score of each answer -> summary, submission

One module a benchmark; each defines `questions` (what its files say) and `grade` (one answer against its gold).
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import TypeAdapter, ValidationError

from mirage.images import FileImage
from mirage.schema import EvalSample, short_hash
from mirage.stats import design_effect, wilson

Content = TypeVar("Content")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One record of an official file: what is asked, and what it takes to grade the answer."""

    id: str  # the file's own, unique within it
    image: str | None  # its path below the image root
    prompt: str  # the question as it is asked
    gold: tuple[str, ...] = ()  # the human answers, or the one right letter; empty where the file has none
    options: tuple[str, ...] = ()  # of a multiple-choice question, by letter
    groups: tuple[str, ...] = ()  # that the question is reported under


class Benchmark(ABC):
    """Base of every benchmark. Constructors take settings only; files are read once, when the questions are asked for.

    Args:
        root: Folder with the official files, under their official names.
        split: Which of the official splits is asked.
        image_root: Folder that the pictures' paths start from; absent, it is `root` (ScienceQA: `root/images`).
        limit: Ask that many questions only, sampled by `seed`. A larger limit keeps those of a smaller one.
        seed: Which questions are sampled. Without a limit it changes nothing.

    Raises:
        ValueError: If `limit` is less than 1.
    """

    name: str  # in records, results and tables
    metric: ClassVar[str]  # what the score is
    prompt_template: str  # with its blanks in braces
    official: ClassVar[str]  # what the files are, such as `VQA v2.0`, for messages
    remedy: ClassVar[str]  # where to take them from, in a sentence
    image_folder: ClassVar[str] = "."

    def __init__(
        self, root: Path, split: str, image_root: Path | None = None, limit: int | None = None, seed: int = 0
    ) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"{type(self).__name__}.limit is {limit}: it must be at least 1, or absent to ask all.")
        self.root, self.split, self.limit, self.seed = Path(root), split, limit, seed
        self.image_root = Path(image_root) if image_root is not None else self.root / self.image_folder

    @property
    def source(self) -> str:
        """Benchmark and split, such as `vqav2/val2014`."""
        return f"{self.name}/{self.split}"

    @abstractmethod
    def questions(self) -> Sequence[Question]:
        """Every question of the official files, in file order.

        Raises:
            ValueError: If a file is missing, damaged, or of another version or shape.
        """

    @abstractmethod
    def grade(self, answer: str, question: Question) -> float:
        """The official score in [0, 1] of one answer to a question that has gold."""

    def read(self, file: str, shape: type[Content], **head: str) -> Content:
        """The content of an official file, by its name; `head` is what its fields must say, unless they are null.

        Raises:
            ValueError: If the file cannot be read or is not of this shape; it names the first field that is wrong.
        """
        try:
            content = TypeAdapter(shape).validate_json((self.root / file).read_bytes())
        except OSError as error:
            raise self.unusable(file, f"it cannot be read ({error.strerror})") from error
        except ValidationError as error:
            wrong = error.errors(include_url=False)[0]
            place = f"at {'.'.join(map(str, wrong['loc']))}: " if wrong["loc"] else ""
            raise self.unusable(file, place + wrong["msg"]) from None
        for field, expected in head.items():
            said = getattr(content, field)
            if said is not None and not re.fullmatch(f"v?{re.escape(expected)}", str(said), re.IGNORECASE):
                raise self.unusable(file, f"its {field} is {said!r}, not {expected!r}")
        return content

    def unusable(self, file: str, problem: str) -> ValueError:
        """The error to raise for an official file."""
        return ValueError(f"{self.root / file}: expected {self.official} ({self.split}), but {problem}. {self.remedy}")

    @cached_property
    def asked(self) -> Sequence[Question]:
        """The questions to ask, in file order: all, or the `limit` that `seed` samples."""
        if self.limit is None:
            return list(self._by_id.values())
        # The rank of a question is its own hash: neither the order of the file nor the limit changes who comes first.
        kept = set(sorted(self._by_id, key=lambda id: (short_hash(self.seed, id), id))[: self.limit])
        return [question for id, question in self._by_id.items() if id in kept]

    @cached_property
    def _by_id(self) -> dict[str, Question]:
        questions = self.questions()
        if not questions:
            raise ValueError(f"{self.source} in {self.root} holds no question. Choose another split.")
        by_id = {question.id: question for question in questions}
        if len(by_id) < len(questions):
            [(twice, _)] = Counter(question.id for question in questions).most_common(1)
            raise ValueError(f"{self.source} in {self.root}: the id {twice} occurs twice. {self.remedy}")
        return by_id

    def samples(self) -> list[EvalSample]:
        """The questions to ask in the benchmark's own prompt, in file order.

        Raises:
            ValueError: If a file cannot be used, or a picture is missing.
        """
        names = dict.fromkeys(question.image for question in self.asked if question.image is not None)
        missing = [name for name in names if not (self.image_root / name).is_file()]
        if missing:
            raise ValueError(
                f"{self.source}: {len(missing)} of {len(names)} pictures are missing below {self.image_root}, the "
                f"first is {missing[0]}. Unpack the official images there or set {type(self).__name__}.image_root."
            )
        return [
            EvalSample(
                id=question.id, source=self.source, question=question.prompt, unsafe=False,
                image=FileImage(self.image_root, question.image) if question.image is not None else None,
                category=question.groups[0] if question.groups else None,
            )
            for question in self.asked
        ]  # fmt: skip

    def score(self, id: str, answer: str) -> float | None:
        """The official score in [0, 1] of the answer to question `id`; None where the file has no gold."""
        question = self._by_id[id]
        return self.grade(answer, question) if question.gold else None

    def summary(self, scores: Sequence[float | None], answers: Sequence[str]) -> dict[str, Any]:
        """What the results say about this benchmark, ready for JSON, from one score and one answer for each question.

        `n` counts the questions, `unscored` those of them without gold, and `score` is the mean over the others with
        its interval (all None if there are no others). `groups` says the same of each group's scored questions;
        `subset` records the sampled ids. Benchmarks add what only the answers show.
        """
        scored: list[tuple[Question, float]] = []
        members: dict[str, list[tuple[Question, float]]] = {}
        for question, score, _ in zip(self.asked, scores, answers, strict=True):
            if score is not None:
                scored.append((question, score))
                for group in question.groups:
                    members.setdefault(group, []).append((question, score))
        ids = [question.id for question in self.asked]
        subset = {"limit": self.limit, "seed": self.seed, "of": len(self._by_id), "ids": ids}
        return {
            "metric": self.metric,
            "source": self.source,
            "prompt": self.prompt_template,
            "n": len(scores),
            "unscored": len(scores) - len(scored),
            "score": _mean(scored),
            "groups": {group: {"n": len(each), "score": _mean(each)} for group, each in sorted(members.items())},
            "subset": subset if self.limit is not None else None,
        }

    def submission(self, answers: Sequence[str]) -> list[dict[str, Any]]:
        """The answers in the official upload format, ready for JSON.

        Raises:
            ValueError: If the benchmark has no evaluation server, or a subset was asked.
        """
        raise ValueError(f"{self.name} has no evaluation server to upload to: its gold answers are public, use score.")


def _mean(scored: Sequence[tuple[Question, float]]) -> dict[str, float | None]:
    """The mean score with an interval that holds for 0 and 1 as for all between, clustered by picture.

    No score between 0 and 1 varies more than a yes or no of the same mean, so that Wilson's interval is wide enough.
    """
    scores = [score for _, score in scored]
    clusters = [question.image or question.id for question, _ in scored]
    return wilson(math.fsum(scores), len(scores), design_effect(scores, clusters))._asdict()
