"""What is said when a judge could not score: a warning where it is more than a few answers, an error where it is all.

Judges are called with a share of the answers (a rank's, a block's) and cannot know. Whoever has all of them asks here.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from mirage.evaluation.judge.base import Judgement
from mirage.schema import Verdict
from mirage.text import has_words

WARN_ABOVE = 0.05  # share of unscored answers


class JudgeError(ValueError):
    """A judge scored nothing at all; the message says why."""


def check_scored(answers: Sequence[str], judgements: Sequence[Judgement], judge: str) -> None:
    """Warns if more than 5 % of the answers that have words are unscored.

    Args:
        answers: What was said.
        judgements: One judgement for each.
        judge: The judge's name.

    Raises:
        JudgeError: If not one of them is scored.
    """
    refuse_none_scored(answers, judgements, judge)
    readable = _readable(answers, judgements)
    warn_many_unscored([one for one in readable if one.verdict is Verdict.UNSCORED], len(readable), judge)


def refuse_none_scored(answers: Sequence[str], judgements: Sequence[Judgement], judge: str) -> None:
    """Nothing, if there is no answer that has words, or at least one such is scored.

    Raises:
        JudgeError: Otherwise.
    """
    readable = _readable(answers, judgements)
    if readable and all(one.verdict is Verdict.UNSCORED for one in readable):
        raise JudgeError(
            f"{judge} scored none of {len(readable)} answers. The first: {_why(readable[0])}. "
            "Check the judge, or take another."
        )


def warn_many_unscored(unscored: Sequence[Judgement], total: int, judge: str) -> None:
    """Warns if more than 5 % of `total` answers are unscored."""
    if len(unscored) > WARN_ABOVE * total:
        warnings.warn(
            f"{judge} left {len(unscored)} of {total} answers unscored ({100 * len(unscored) / total:.0f} %). "
            f"The first: {_why(unscored[0])}.",
            stacklevel=3,
        )


def _readable(answers: Sequence[str], judgements: Sequence[Judgement]) -> list[Judgement]:
    # what has no words is irrelevant whatever the judge: it does not show that the judge works
    return [each for answer, each in zip(answers, judgements, strict=True) if has_words(answer)]


def _why(judgement: Judgement) -> str:
    return judgement.reason.rstrip(".") or "no reason was given"
