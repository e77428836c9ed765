"""Verdicts kept as they come, where judging is slow: an interrupted judge goes on where it stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mirage.evaluation.judge.base import Answered, Judge, JudgeError, Judgement, check_any_scored
from mirage.evaluation.run.records import AnswerLog
from mirage.schema import Verdict

BLOCK = 64  # answers judged, and kept, at a time

Key = tuple[str, int]  # a question's id and the shot, or the turn


def to_log(judgement: Judgement) -> str:
    """A judgement as the text that a log keeps: verdict and score in the first line, then the reason."""
    score = "" if judgement.score is None else f" {judgement.score!r}"
    return f"{judgement.verdict}{score}\n{judgement.reason}"


def from_log(text: str) -> Judgement:
    """The judgement that `to_log` wrote."""
    first, _, reason = text.partition("\n")
    verdict, _, score = first.partition(" ")
    return Judgement(Verdict(verdict), reason, float(score) if score else None)


def judged_now(answered: Mapping[Key, Answered], judge: Judge, log: AnswerLog) -> dict[Key, Judgement]:
    """The judge's verdicts, all but the unscored ones kept: those are asked for again by the next attempt."""
    judged = dict(zip(answered, judge.judge([*answered.values()]), strict=True))
    for key, judgement in judged.items():
        if judgement.verdict is not Verdict.UNSCORED:
            log.add(*key, to_log(judgement))
    return judged


def judged_and_kept(answered: Sequence[tuple[Key, Answered]], judge: Judge, log: AnswerLog | None) -> list[Judgement]:
    """One judgement for each answer, in order: from the log where it has one, else from the judge and into the log.

    After a block of which nothing could be scored the judge is taken to be down, and the rest is unscored, too. A judge
    that looks at all answers together (`one_by_one` is false) is asked about all of them, every time.
    """
    if log is None or not judge.one_by_one:
        return judge.judge([one for _, one in answered])
    judged = {key: from_log(log.known[key]) for key, _ in answered if key in log.known}
    todo = [(key, one) for key, one in answered if key not in judged]
    for start in range(0, len(todo), BLOCK):
        block = dict(todo[start : start + BLOCK])
        new = judged_now(block, judge, log)
        judged |= new
        try:
            check_any_scored([one.answer for one in block.values()], [*new.values()], judge.name)
        except JudgeError as error:
            judged |= {key: Judgement(Verdict.UNSCORED, f"not asked: {error}") for key, _ in todo[start + BLOCK :]}
            break
    return [judged[key] for key, _ in answered]
