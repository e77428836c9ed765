"""Verdicts kept as they come, where judging is slow: an interrupted judge goes on where it stopped."""

from __future__ import annotations

from collections.abc import Sequence

from mirage.evaluation.judge.base import Answered, Judge, Judgement
from mirage.evaluation.run.records import AnswerLog
from mirage.schema import Verdict
from mirage.text import has_words

BLOCK = 64  # answers judged, and kept, at a time

Key = tuple[str, int]  # a question's id and the shot, or the turn


def to_log(judgement: Judgement) -> str:
    """A judgement as the text that a log keeps."""
    return f"{judgement.verdict}\n{judgement.reason}"


def from_log(text: str) -> Judgement:
    """The judgement that `to_log` wrote."""
    verdict, _, reason = text.partition("\n")
    return Judgement(Verdict(verdict), reason)


def judged_and_kept(answered: Sequence[tuple[Key, Answered]], judge: Judge, log: AnswerLog | None) -> list[Judgement]:
    """One judgement for each answer, in order: from the log where it has one, else from the judge and into the log.

    Unscored ones are not kept: they are asked again by the next attempt. After a block of which nothing could be scored
    the judge is taken to be down, and the rest is unscored, too. A judge that looks at all answers together
    (`one_by_one` is false) is asked about all of them, every time.
    """
    if log is None or not judge.one_by_one:
        return judge.judge([one for _, one in answered])
    found: dict[Key, Judgement] = {}
    for key, _ in answered:
        if key in log.known:
            found[key] = from_log(log.known[key])
    todo = [(key, one) for key, one in answered if key not in found]
    down: Judgement | None = None
    for start in range(0, len(todo), BLOCK):
        block = todo[start : start + BLOCK]
        if down is not None:
            found |= {key: down for key, _ in block}
            continue
        judgements = judge.judge([one for _, one in block])
        for (key, _), judgement in zip(block, judgements, strict=True):
            found[key] = judgement
            if judgement.verdict is not Verdict.UNSCORED:
                log.add(*key, to_log(judgement))
        readable = [each for (_, one), each in zip(block, judgements, strict=True) if has_words(one.answer)]
        if readable and all(each.verdict is Verdict.UNSCORED for each in readable):
            down = Judgement(
                Verdict.UNSCORED, f"not asked: the judge had scored none of {len(readable)} ({readable[0].reason})"
            )
    return [found[key] for key, _ in answered]
