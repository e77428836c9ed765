"""Utility benchmarks: from official files to samples, and from answers to the official score.

    records of the official file -> Question -> (drawn) -> Item, whose sample is asked -> score -> summary, submission

One module a benchmark; each overrides `questions` (what its files say) and `grade` (one answer against its gold).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from mirage.schema import EvalSample, Picture, short_hash
from mirage.stats import wilson


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One record of an official file, before any picture is looked for.

    Args:
        id: The file's own id, unique within the file.
        image: The picture's path below the image root, or None for text alone.
        blanks: What fills the blanks of the prompt template.
        gold: The human answers, or the one right letter; empty where the file has none (test splits).
        options: The lettered options of a multiple-choice question.
        groups: Every group that the question is reported under.
    """

    id: str
    image: str | None
    blanks: dict[str, str]
    gold: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question to ask, and what it takes to grade the answer.

    Args:
        id: The official file's own id.
        sample: The picture and, as its question, the full prompt.
        gold: The human answers, or the one right letter; empty where the file has none.
        options: The lettered options of a multiple-choice question.
        groups: Every group that the question is reported under.
    """

    id: str
    sample: EvalSample
    gold: tuple[str, ...]
    options: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


class Benchmark(ABC):
    """Base of every benchmark. Constructors take settings only; files are read once, when the items are asked for.

    Pictures are opened by whoever assembles the program: evaluation does not know how files become pictures. Before
    the items are asked for, `Benchmark.open_picture` is set once to a callable that takes the image root and a path
    below it and returns an unopened `Picture`.

    Args:
        root: Folder with the official files, under their official names.
        image_root: Folder that the pictures' paths start from; absent, it is `root`.
        limit: Ask that many questions only, drawn by `seed`. A larger limit keeps those of a smaller one.
        seed: Which questions are drawn. Without a limit it changes nothing.

    Raises:
        ValueError: If `limit` is less than 1.
    """

    metric: ClassVar[str]
    split: str  # of the official files; a setting of each benchmark
    open_picture: ClassVar[Callable[[Path, str], Picture] | None] = None

    def __init__(self, root: Path, image_root: Path | None = None, limit: int | None = None, seed: int = 0) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"{type(self).__name__}.limit is {limit}: it must be at least 1, or absent to ask all.")
        self.root, self.image_root = Path(root), Path(image_root if image_root is not None else root)
        self.limit, self.seed = limit, seed

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name for records, results and tables."""

    @property
    def source(self) -> str:
        """Benchmark and split, such as `vqav2/val2014`."""
        return f"{self.name}/{self.split}"

    @property
    @abstractmethod
    def prompt_template(self) -> str:
        """The prompt with its blanks in braces, as it is printed in the results."""

    @abstractmethod
    def questions(self) -> Sequence[Question]:
        """Every question of the official files, in file order.

        Raises:
            ValueError: If a file is missing, damaged, or of another version or shape; the sentence names file,
                expectation and remedy.
        """

    @abstractmethod
    def grade(self, answer: str, item: Item) -> float:
        """The official score in [0, 1] of one answer to an item that has gold."""

    def items(self) -> Sequence[Item]:
        """The questions to ask, in file order: all, or the `limit` that `seed` draws.

        Raises:
            ValueError: If a file cannot be used, a picture is missing, or no `open_picture` was set.
        """
        return self._items

    def score(self, answers: Sequence[str]) -> list[float | None]:
        """One score in [0, 1] for each item, in order; None where the official file has no gold.

        Raises:
            ValueError: If there is not one answer for each item.
        """
        self._one_answer_each(answers)
        return [
            self.grade(answer, item) if item.gold else None for answer, item in zip(answers, self._items, strict=True)
        ]

    def summary(self, scores: Sequence[float | None], answers: Sequence[str] | None = None) -> dict[str, Any]:
        """What the results say about this benchmark, ready for JSON.

        `n` counts the questions, `unscored` those of them without gold, and `score` is the mean over the others with
        its interval (all None if there are no others). `groups` says the same of each group's scored questions;
        `subset` records the drawn ids. Given the answers too, a benchmark adds what only they can tell (see `details`).

        Raises:
            ValueError: If there is not one score (and one answer) for each item.
        """
        self._one_answer_each(scores)
        scored = [score for score in scores if score is not None]
        members: dict[str, list[float]] = {}
        for item, score in zip(self._items, scores, strict=True):
            if score is not None:
                for group in item.groups:
                    members.setdefault(group, []).append(score)
        summary: dict[str, Any] = {
            "metric": self.metric,
            "source": self.source,
            "prompt": self.prompt_template,
            "n": len(scores),
            "unscored": len(scores) - len(scored),
            "score": _mean(scored),
            "groups": {group: {"n": len(own), "score": _mean(own)} for group, own in sorted(members.items())},
            "subset": self._subset(),
        }
        if answers is not None:
            self._one_answer_each(answers)
            summary.update(self.details(answers))
        return summary

    def details(self, answers: Sequence[str]) -> dict[str, Any]:
        """What a benchmark reports beside its score; nothing by default."""
        return {}

    def submission(self, answers: Sequence[str]) -> list[dict[str, Any]]:
        """The answers in the official upload format, ready for JSON.

        Raises:
            ValueError: If the benchmark has no evaluation server, or a subset was asked.
        """
        raise ValueError(f"{self.name} has no evaluation server to upload to: its gold answers are public, use score.")

    def _complete(self, answers: Sequence[str]) -> Sequence[str]:
        """The answers, if they are what a server accepts: one for every question of the split."""
        self._one_answer_each(answers)
        if self.limit is not None:
            raise ValueError(
                f"{self.name} was asked {len(answers)} drawn questions, and a server takes a complete split only. "
                f"Remove {type(self).__name__}.limit."
            )
        return answers

    def _one_answer_each(self, values: Sequence[Any]) -> None:
        if len(values) != len(self._items):
            raise ValueError(
                f"{self.name} has {len(self._items)} items and was given {len(values)} values: give one for each, "
                "in order."
            )

    def _subset(self) -> dict[str, Any] | None:
        if self.limit is None:
            return None
        ids = [item.id for item in self._items]
        return {"limit": self.limit, "seed": self.seed, "of": self._asked_of[1], "ids": ids}

    @cached_property
    def _asked_of(self) -> tuple[list[Question], int]:
        """The questions to ask, and how many they were drawn from."""
        questions = self.questions()
        if not questions:
            raise ValueError(f"{self.source} in {self.root} holds no question. Choose another split or file.")
        seen: set[str] = set()
        for question in questions:
            if question.id in seen:
                raise ValueError(
                    f"{self.source} in {self.root}: the id {question.id} occurs twice. Download the files again."
                )
            seen.add(question.id)
        if self.limit is None or self.limit >= len(questions):
            return list(questions), len(questions)
        # The rank of a question is its own hash: neither the order of the file nor the limit changes who comes first.
        drawn = set(sorted(seen, key=lambda id: (short_hash(self.seed, id), id))[: self.limit])
        return [question for question in questions if question.id in drawn], len(questions)

    @cached_property
    def _items(self) -> list[Item]:
        asked, _ = self._asked_of
        pictures = self._pictures(asked)
        return [
            Item(
                id=question.id,
                sample=EvalSample(
                    id=question.id,
                    source=self.source,
                    image=pictures[question.image] if question.image is not None else None,
                    question=self.prompt_template.format(**question.blanks),
                    unsafe=False,
                    category=question.groups[0] if question.groups else None,
                ),
                gold=question.gold,
                options=question.options,
                groups=question.groups,
            )
            for question in asked
        ]

    def _pictures(self, asked: Sequence[Question]) -> dict[str, Picture]:
        """Every picture of the questions, unopened, by its path; each file is known to be there."""
        names = dict.fromkeys(question.image for question in asked if question.image is not None)
        # Looked up on the class: a plain function must not turn into a method of this benchmark.
        open_picture = type(self).open_picture
        if open_picture is None and names:
            raise ValueError(
                "Benchmark.open_picture is not set: assign a callable (image root, path below it) -> Picture first."
            )
        missing = [name for name in names if not (self.image_root / name).is_file()]
        if missing:
            raise ValueError(
                f"{self.source}: {len(missing)} of {len(names)} pictures are missing below {self.image_root}, the "
                f"first is {missing[0]}. Unpack the official images there or set {type(self).__name__}.image_root."
            )
        return {name: open_picture(self.image_root, name) for name in names} if open_picture is not None else {}


def _mean(scores: Sequence[float]) -> dict[str, float | None]:
    """The mean score with an interval that holds for 0 and 1 as for all between.

    No score between 0 and 1 varies more than a yes or no of the same mean, so that Wilson's interval is wide enough.
    """
    total: Any = math.fsum(scores)  # a whole number where every score is 0 or 1
    return wilson(total, len(scores))._asdict()
