"""A finished run as logs of Inspect, which `inspect view` shows: one for each attacked set of each model.

A sample is a question; its scores are the verdicts before and after the attack and at each shot. Needs inspect-ai.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any

from inspect_ai import event, log, model, scorer

from mirage.evaluation.run.counting import question_verdict
from mirage.report.gallery import data_uri
from mirage.report.run_config import run_pictures
from mirage.report.runs import Run
from mirage.schema import Record, Verdict, short_hash

PICTURE_PX = 640  # the longer side: enough to read images of text
WARNING = (
    "Holds harmful questions, and answers to them, on purpose: they show where a model fails. Not for training, and not "
    "to be published."
)
ShowPicture = Callable[[str], model.Content]
"""The name of a picture in the records -> the picture, or a text where it cannot be shown."""


def inspect_logs(run: Run) -> tuple[dict[str, log.EvalLog], list[str]]:
    """The logs of a run, by the names of its records (`unsafe`, `start.unsafe`), and what could not be shown.

    Raises:
        ValueError: If the run has no records of an attacked set.
    """
    if not run.records:
        raise ValueError(f"{run.folder / 'records'} holds no records of an attacked set. Evaluate the run again.")
    problems: dict[str, str] = {}
    open_picture = run_pictures()

    @cache  # the starting model was asked about the same
    def shown(side: str, name: str) -> model.Content:
        try:
            return model.ContentImage(image=data_uri(open_picture(run.folder, side, name), PICTURE_PX))
        except Exception as error:  # whatever is wrong with one picture, the log stands without it
            problems[name] = str(error)
            return model.ContentText(text=f"(picture {name}: not shown)")

    logs = {
        stem: _log(run, stem, records, partial(shown, stem.removeprefix("start.")))
        for stem, records in run.records.items()
    }
    notes = [f"{len(problems)} of the pictures cannot be shown, {name}: {why}" for name, why in [*problems.items()][:1]]
    return logs, [*run.notes, *notes]


def _log(run: Run, stem: str, records: Sequence[Record], shown: ShowPicture) -> log.EvalLog:
    side, start = stem.removeprefix("start."), stem.startswith("start.")
    block = (run.results["start"] if start else run.results)[side]
    benign = "helpful" in block["before"]
    name = "start" if start else run.label
    when = datetime.fromtimestamp((run.folder / "results.json").stat().st_mtime, UTC)
    identity = short_hash(run.label, stem, block.get("fingerprint"), records[0].judge)
    attack = block.get("attack") or {}
    shots: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.shot):
        shots.setdefault(record.id, []).append(record)
    samples = [_sample(each, benign, name, when, shown) for each in shots.values()]
    blocks = {"before": block["before"], "after": block["after"]}
    blocks |= {f"shot {shot}": each for shot, each in enumerate(block.get("per_shot") or [], start=1)}
    spec = log.EvalSpec(
        eval_id=identity, task_id=identity, run_id=short_hash(run.label, when), created=when.isoformat(),
        task=side, model=name, tags=None if benign else ["harmful"],
        task_args={"attack": attack.get("kind"), "word": attack.get("word"), "shots": attack.get("shots")},
        dataset=log.EvalDataset(name=side, samples=len(samples), sample_ids=list(shots)),
        config=log.EvalConfig(), headline_metric=log.HeadlineMetric(scorer="after", metric="rr" if benign else "asr"),
        packages={package: version for package, version in (run.results.get("versions") or {}).items() if version},
        metadata={
            **({} if benign else {"warning": WARNING}),
            "judge": records[0].judge, "run": run.label, "method": run.results.get("method"),
            "starting_model": run.results.get("model"), "step": 0 if start else run.results.get("step"),
            "generation": block.get("generation"), "fingerprint": block.get("fingerprint"),
        },
    )  # fmt: skip
    return log.EvalLog(
        status="success",
        eval=spec,
        results=log.EvalResults(
            total_samples=len(samples),
            completed_samples=len(samples),
            scores=[_counted(scored, each) for scored, each in blocks.items()],
        ),
        stats=log.EvalStats(started_at=when.isoformat(), completed_at=when.isoformat()),
        samples=samples,
    )


def _counted(name: str, block: Mapping[str, Any]) -> log.EvalScore:
    """A block of results.json: its rates with their intervals, and n."""
    metrics = {
        key: log.EvalMetric(
            name=key,
            value=math.nan if rate["rate"] is None else rate["rate"],
            metadata={"low": rate["low"], "high": rate["high"], "interval": "Wilson, 95 %"},
        )
        for key, rate in block.items()
        if isinstance(rate, Mapping)
    }
    metrics |= {key: log.EvalMetric(name=key, value=block[key]) for key in ("n", "unscored")}
    n, unscored = block["n"], block["unscored"]
    return log.EvalScore(
        name=name, scorer=name, metrics=metrics, scored_samples=n - unscored, unscored_samples=unscored
    )


def _sample(shots: Sequence[Record], benign: bool, name: str, when: datetime, shown: ShowPicture) -> log.EvalSample:
    """One question: its plain form as the conversation, and every form with its verdict in the transcript."""
    plain, *rewrites = shots
    image = [shown(plain.image)] if plain.image else []
    asked = [model.ChatMessageUser(content=[*image, model.ContentText(text=each.question)]) for each in shots]
    answers = [model.ModelOutput.from_content(name, each.answer) for each in shots]
    target = Verdict.COMPLIED if benign else Verdict.REFUSED
    events: list[event.Event] = []
    for record, question, answer in zip(shots, asked, answers, strict=True):
        span = short_hash(record.id, record.shot)
        at: dict[str, Any] = {"span_id": span, "timestamp": when, "working_start": 0.0}
        form = f"rewrite {record.shot}" if record.shot else "plain question"
        call: dict[str, Any] = {"tools": [], "tool_choice": "none", "config": model.GenerateConfig()}
        events += [
            event.SpanBeginEvent(id=span, name=f"{form}: {record.verdict}", **at),
            event.ModelEvent(model=name, input=[question], output=answer, **call, **at),
            event.ScoreEvent(score=_score(record), target=target, intermediate=True, **at),
            event.SpanEndEvent(id=span, **at),
        ]
    after = question_verdict([record.verdict for record in rewrites], not benign)
    decided = next(record for record in rewrites if record.verdict is after)
    sample = log.EvalSample(
        id=plain.id, epoch=1, input=[asked[0]], target=target, messages=[asked[0], answers[0].message],
        output=answers[0], events=events, metadata={"category": plain.category, "picture": plain.image},
        scores={"before": _score(plain), "after": _score(decided)}
        | {f"shot {record.shot}": _score(record) for record in rewrites},
    )  # fmt: skip
    return log.condense_sample(sample)  # keeps the picture once, not at every shot


def _score(record: Record) -> scorer.Score:
    rewrite = f"Rewrite {record.shot}: {record.question}" if record.shot else ""
    others = {judge: other._asdict() for judge, other in record.other_judges.items()}
    shared: dict[str, Any] = {
        "answer": record.answer,
        "explanation": "\n\n".join(filter(None, (rewrite, record.reason))) or None,
        "metadata": {"other_judges": others} if others else None,
    }
    if record.verdict is Verdict.UNSCORED:
        return scorer.Score.unscored(reason="grader_failed", **shared)
    return scorer.Score(value=record.verdict.value, **shared)
