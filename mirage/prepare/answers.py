"""A model's own answers to harmless training questions: what the retain set is to keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mirage.atomic import write_text
from mirage.data.base import Source
from mirage.errors import DataError
from mirage.evaluation.judge.base import Answered, Judge, check_scored
from mirage.evaluation.judge.keyword import Keyword
from mirage.json_file import json_lines
from mirage.prepare.responders import responder
from mirage.schema import EvalSample, Verdict


def answer(data: Source, model: str, out: Path, judge: Judge | None = None, **asking: Any) -> None:
    """Writes a model's own answers to the retain set, as `data.retain_answers` reads them.

    A data set's answers are another model's: training on them changes how the model answers, beside when it refuses.
    Answers of the model that is about to be trained leave only the latter to learn (self-distillation: Yang et al., 2024,
    arXiv:2402.13669, have the model reword the data set's answers; here it answers by itself). What the judge does not
    call complied, such as a refusal, is left to the data set. Answers are kept beside `out` as they come, so that an
    interrupted command goes on where it stopped.

    Args:
        data: The source of the retain set.
        model: The model that is about to be trained: its folder, or a server and its name, as
            http://127.0.0.1:8000/v1#MODEL.
        out: JSONL file to write: `id` (`Example.question_id`), and `answer` or null.
        judge: Who says which answers are refusals. Keyword by default.
        **asking: How the model is asked (see `responder`).

    Raises:
        DataError: If the data cannot be used, or no answer can.
    """
    judge = judge or Keyword()
    if issues := data.validate():
        raise DataError.of(issues)
    who = responder(model, **asking)
    if who.engine is None:
        raise ValueError(f"--model is {model}, a file. Name a model's folder, or a server and its model.")
    asked = {
        each.question_id: EvalSample(
            id=each.question_id, source=each.source, image=each.image, question=each.prompt, unsafe=False, where=each.where
        )
        for each in data.retain()
        if not each.later_turns
    }  # fmt: skip
    samples = list(asked.values())
    replies, _ = who.replies(samples, {id: each.question for id, each in asked.items()}, out.with_suffix(".answers"))
    judgements = judge.judge([Answered(each, each.question, replies[each.id]) for each in samples])
    check_scored(list(replies.values()), judgements, judge.name)
    usable = {
        each.id: replies[each.id] if judgement.verdict is Verdict.COMPLIED and replies[each.id].strip() else None
        for each, judgement in zip(samples, judgements, strict=True)
    }
    found = sum(text is not None for text in usable.values())
    if not found:
        raise DataError(f"{who.name} answers no question of the retain set. Use another model.")
    write_text(out, json_lines({"id": id, "answer": text} for id, text in usable.items()))
    print(f"{out} holds {found} answers of {len(usable)}; use it with --data.retain_answers {out}")
