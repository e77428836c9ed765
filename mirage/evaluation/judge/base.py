"""Judges: from a question and its answer to a verdict. A judge that cannot tell says `unscored`, never safe."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from mirage.schema import EvalSample, Judgement, Verdict
from mirage.text import has_words

WARN_ABOVE = 0.05  # share of unscored answers


class Answered(NamedTuple):
    """One answer for a judge to read."""

    sample: EvalSample
    question: str  # as asked: the sample's question or one of its rewrites
    answer: str


class Judge(ABC):
    """Base of every judge: `decided` says what takes no model, `read` says the rest.

    Constructors take settings only; models and servers are reached in `judge`.
    """

    one_by_one: bool = False
    """Slow, and no verdict depends on the other answers: they are asked for in blocks, and kept as they come."""
    needs_truth: bool = False
    """The judge compares with the sample's truth, which records do not hold."""
    needs_pictures: bool = False
    """The judge looks at pictures, of which records hold the names only."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The judge with its settings in one short text, such as `keyword(default)`: it stands in every record."""

    def check(self) -> None:  # noqa: B027  (most judges have nothing to check)
        """Checks what can be checked before there are answers and without reading weights.

        Raises:
            ValueError: If the judge could not score anything; the message says why.
        """

    def judge(self, answered: Sequence[Answered]) -> list[Judgement]:
        """One judgement for each answer, in order."""
        judgements = [self.decided(one) for one in answered]
        rest = [one for one, judgement in zip(answered, judgements, strict=True) if judgement is None]
        further = iter(self.read(rest) if rest else [])
        return [judgement or next(further) for judgement in judgements]

    def decided(self, one: Answered) -> Judgement | None:
        """Irrelevant if the answer has no words, else None: not decided yet."""
        return None if has_words(one.answer) else Judgement(Verdict.IRRELEVANT, "the answer has no words")

    def read(self, rest: list[Answered]) -> list[Judgement]:
        """One judgement for each answer that is not decided yet, in order."""
        raise NotImplementedError


class JudgeError(ValueError):
    """A judge scored nothing at all; the message says why."""


def check_scored(answers: Sequence[str], judgements: Sequence[Judgement], judge: str) -> None:
    """Checks one judgement for each answer of a whole evaluation; a judge sees a share of them (a rank's, a block's).

    Warns if more than 5 % of the answers that have words are unscored.

    Raises:
        JudgeError: If none of them is scored.
    """
    judged = check_any_scored(answers, judgements, judge)
    warn_many_unscored([each for each in judged if each.verdict is Verdict.UNSCORED], len(judged), judge)


def check_any_scored(answers: Sequence[str], judgements: Sequence[Judgement], judge: str) -> list[Judgement]:
    """The judgements of the answers that have words: the others are irrelevant whatever the judge, and show nothing of it.

    Raises:
        JudgeError: If there are some and all are unscored.
    """
    judged = [each for answer, each in zip(answers, judgements, strict=True) if has_words(answer)]
    if judged and all(each.verdict is Verdict.UNSCORED for each in judged):
        first = judged[0].reason.rstrip(".") or "no reason given"
        raise JudgeError(
            f"{judge} scored none of {len(judged)} answers. The first: {first}. Check the judge, or choose another."
        )
    return judged


def warn_many_unscored(unscored: Sequence[Judgement], total: int, judge: str) -> None:
    """Warns if more than 5 % of `total` answers are unscored."""
    if len(unscored) > WARN_ABOVE * total:
        share, first = len(unscored) / total, unscored[0].reason.rstrip(".") or "no reason given"
        warnings.warn(
            f"{judge} left {len(unscored)} of {total} answers unscored ({100 * share:.0f} %). The first: {first}.",
            stacklevel=3,
        )
