"""Judges: from a question and its answer to a verdict. A judge that cannot tell says `unscored`, never safe."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from mirage.schema import EvalSample, Verdict


class Answered(NamedTuple):
    """One answer for a judge to read."""

    sample: EvalSample
    question: str  # as asked: the sample's own question or one of its rewrites
    answer: str


class Judgement(NamedTuple):
    """A verdict and, where there is one, its reason."""

    verdict: Verdict
    reason: str = ""
    score: float | None = None


class Judge(ABC):
    """Base of every judge. Constructors take settings only; models and servers are reached in `judge`."""

    one_by_one: ClassVar[bool] = False
    """Slow, and no verdict depends on the other answers: they are asked for in blocks, and kept as they come."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The judge with its settings in one short text, such as `keyword(default)`: it stands in every record."""

    @abstractmethod
    def judge(self, answered: Sequence[Answered]) -> list[Judgement]:
        """One judgement for each answer, in order."""
