"""Utility benchmarks: from official files to samples, and from scores to what the results say.

    official file -> Question -> subset -> EvalSample, which is asked -> score of each answer -> summary, submission

One module a benchmark; each defines `questions` (what its files say) and `grade` (one answer against its gold).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from mirage.images import FileImage
from mirage.schema import EvalSample, short_hash
from mirage.stats import wilson


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One record of an official file: what is asked, and what it takes to grade the answer.

    Args:
        id: The file's own id, unique within the file.
        image: The picture's path below the image root, or None for text alone.
        prompt: The question as it is asked: the prompt template with its blanks filled.
        gold: The human answers, or the one right letter; empty where the file has none (test splits).
        options: The lettered options of a multiple-choice question.
        groups: Every group that the question is reported under.
    """

    id: str
    image: str | None
    prompt: str
    gold: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


class Benchmark(ABC):
    """Base of every benchmark. Constructors take settings only; files are read once, when the questions are asked for.

    Args:
        root: Folder with the official files, under their official names.
        image_root: Folder that the pictures' paths start from; absent, it is `root` (ScienceQA: `root/images`).
        limit: Ask that many questions only, sampled by `seed`. A larger limit keeps those of a smaller one.
        seed: Which questions are sampled. Without a limit it changes nothing.

    Raises:
        ValueError: If `limit` is less than 1.
    """

    name: str
    """Short name for records, results and tables."""
    split: str
    """Of the official files; a setting of each benchmark."""
    metric: ClassVar[str]
    """What the score is, as the results say it."""
    prompt_template: str
    """The prompt with its blanks in braces, as the results print it."""
    image_folder: ClassVar[str] = "."

    def __init__(self, root: Path, image_root: Path | None = None, limit: int | None = None, seed: int = 0) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"{type(self).__name__}.limit is {limit}: it must be at least 1, or absent to ask all.")
        self.root = Path(root)
        self.image_root = Path(image_root) if image_root is not None else self.root / self.image_folder
        self.limit, self.seed = limit, seed

    @property
    def source(self) -> str:
        """Benchmark and split, such as `vqav2/val2014`."""
        return f"{self.name}/{self.split}"

    @abstractmethod
    def questions(self) -> Sequence[Question]:
        """Every question of the official files, in file order.

        Raises:
            ValueError: If a file is missing, damaged, or of another version or shape; the sentence names file,
                expectation and remedy.
        """

    @abstractmethod
    def grade(self, answer: str, question: Question) -> float:
        """The official score in [0, 1] of one answer to a question that has gold."""

    @cached_property
    def asked(self) -> Sequence[Question]:
        """The questions to ask, in file order: all, or the `limit` that `seed` samples.

        Raises:
            ValueError: If a file cannot be used.
        """
        return list(self._asked_of[0].values())

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
                id=question.id,
                source=self.source,
                image=FileImage(self.image_root, question.image) if question.image is not None else None,
                question=question.prompt,
                unsafe=False,
                category=question.groups[0] if question.groups else None,
            )
            for question in self.asked
        ]

    def score(self, id: str, answer: str) -> float | None:
        """The official score in [0, 1] of the answer to question `id`; None where the file has no gold."""
        question = self._asked_of[0][id]
        return self.grade(answer, question) if question.gold else None

    def summary(self, scores: Sequence[float | None], answers: Sequence[str]) -> dict[str, Any]:
        """What the results say about this benchmark, ready for JSON.

        `n` counts the questions, `unscored` those of them without gold, and `score` is the mean over the others with
        its interval (all None if there are no others). `groups` says the same of each group's scored questions;
        `subset` records the sampled ids. A benchmark adds what only the answers show (see `details`).

        Raises:
            ValueError: If there is not one score and one answer for each question.
        """
        self._one_each(scores)
        self._one_each(answers)
        members: dict[str, list[float]] = {}
        for question, score in zip(self.asked, scores, strict=True):
            for group in question.groups if score is not None else ():
                members.setdefault(group, []).append(score)  # type: ignore[arg-type]  # not None, see above
        scored = [score for score in scores if score is not None]
        subset = {"limit": self.limit, "seed": self.seed, "of": self._asked_of[1], "ids": [q.id for q in self.asked]}
        return {
            "metric": self.metric,
            "source": self.source,
            "prompt": self.prompt_template,
            "n": len(scores),
            "unscored": len(scores) - len(scored),
            "score": _mean(scored),
            "groups": {group: {"n": len(each), "score": _mean(each)} for group, each in sorted(members.items())},
            "subset": subset if self.limit is not None else None,
            **self.details(answers),
        }

    def details(self, answers: Sequence[str]) -> dict[str, Any]:
        """What a benchmark reports beside its score; nothing by default."""
        return {}

    def submission(self, answers: Sequence[str]) -> list[dict[str, Any]]:
        """The answers in the official upload format, ready for JSON.

        Raises:
            ValueError: If the benchmark has no evaluation server, or a subset was asked.
        """
        raise ValueError(f"{self.name} has no evaluation server to upload to: its gold answers are public, use score.")

    def _complete(self, answers: Sequence[str]) -> list[tuple[str, str]]:
        """Id and answer of every question, if they are what a server accepts: the whole split."""
        self._one_each(answers)
        if self.limit is not None:
            raise ValueError(
                f"{self.name} was asked a subset of {len(answers)} questions, and a server takes a complete split only. "
                f"Remove {type(self).__name__}.limit."
            )
        return [(question.id, answer) for question, answer in zip(self.asked, answers, strict=True)]

    def _one_each(self, values: Sequence[Any]) -> None:
        if len(values) != len(self.asked):
            raise ValueError(
                f"{self.name} has {len(self.asked)} questions and was given {len(values)} values: give one for each, "
                "in order."
            )

    @cached_property
    def _asked_of(self) -> tuple[dict[str, Question], int]:
        """The questions to ask by id, and how many they were sampled from."""
        questions: dict[str, Question] = {}
        for question in self.questions():
            if questions.setdefault(question.id, question) is not question:
                raise ValueError(
                    f"{self.source} in {self.root}: the id {question.id} occurs twice. Download the files again."
                )
        if not questions:
            raise ValueError(f"{self.source} in {self.root} holds no question. Choose another split or file.")
        if self.limit is None:
            return questions, len(questions)
        # The rank of a question is its own hash: neither the order of the file nor the limit changes who comes first.
        kept = set(sorted(questions, key=lambda id: (short_hash(self.seed, id), id))[: self.limit])
        return {id: question for id, question in questions.items() if id in kept}, len(questions)


def _mean(scores: Sequence[float]) -> dict[str, float | None]:
    """The mean score with an interval that holds for 0 and 1 as for all between.

    No score between 0 and 1 varies more than a yes or no of the same mean, so that Wilson's interval is wide enough.
    """
    total: Any = math.fsum(scores)  # a whole number where every score is 0 or 1
    return wilson(total, len(scores))._asdict()
