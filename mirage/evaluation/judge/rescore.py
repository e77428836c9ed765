"""Reading records again with another judge. Nothing is generated: the answers stay what they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from mirage.atomic import write_text
from mirage.evaluation.judge.base import Answered, Judge, check_scored
from mirage.evaluation.judge.kept import judged_and_kept
from mirage.evaluation.run.counting import summarise
from mirage.evaluation.run.records import AnswerLog, read_records, write_records
from mirage.schema import EvalSample, Record, short_hash

SamplesOf = Callable[[str], Sequence[EvalSample]]


Rejudged = tuple[Path, dict[str, Any], list[Record]]
"""A records file, with its new header and records, not written yet."""


def answered(records: Sequence[Record], samples: Sequence[EvalSample] | None = None) -> list[Answered]:
    """The answers of `records`, each with its question as it was asked.

    Args:
        records: Of one eval set.
        samples: The eval set, for pictures and truths, joined by id. Without it samples have neither.

    Raises:
        ValueError: If a record's sample is missing, or asks something else.
    """
    if samples is None:
        plain = {record.id: record.question for record in records if record.shot == 0}
        samples = [
            EvalSample(
                id=record.id, source="records", image=None, question=plain.get(record.id, record.question),
                unsafe=record.unsafe, category=record.category,
            )
            for record in records
        ]  # fmt: skip
    by_id = {sample.id: sample for sample in samples}
    remedy = "Give the source, with the settings, that the run was made from."
    for record in records:
        if record.id not in by_id:
            raise ValueError(f"The data source has no sample {record.id!r}. {remedy}")
        if record.shot == 0 and record.question != by_id[record.id].question:
            raise ValueError(f"The data source asks something else than the records do under {record.id!r}. {remedy}")
    return [Answered(by_id[record.id], record.question, record.answer) for record in records]


def judged(
    records: Sequence[Record], judge: Judge, samples: Sequence[EvalSample] | None = None, log: AnswerLog | None = None
) -> list[Record]:
    """The same records with the verdicts of `judge`; with a log, those that it has, and new ones into it.

    Raises:
        ValueError: If the judge needs what records do not hold (truths, pictures), and there are no samples.
        JudgeError: If it scores nothing.
    """
    if samples is None and judge.needs_truth:
        raise ValueError(
            f"The judge {judge.name} compares with the truth, and records do not hold it. Give the run's data source with "
            "--data, or choose another judge."
        )
    if samples is None and judge.needs_pictures and any(record.image is not None for record in records):
        raise ValueError(
            f"{judge.name} looks at pictures, and records hold only their names. Give the run's data source with --data, "
            "or set --judge.see_picture false."
        )
    keyed = [((record.id, record.shot), one) for record, one in zip(records, answered(records, samples), strict=True)]
    judgements = judged_and_kept(keyed, judge, log)
    check_scored([record.answer for record in records], judgements, judge.name)
    return [
        replace(record, judge=judge.name, **judgement._asdict())
        for record, judgement in zip(records, judgements, strict=True)
    ]


def rejudge(folder: Path, judge: Judge, samples_of: SamplesOf | None = None) -> dict[str, Any]:
    """The results of the run in `folder` by the verdicts of `judge`, written to its records and its results.json.

    Both sides of the starting and of the aligned model are read again, each records file and results.json is replaced
    whole, results.json last; utility and whatever else stands in it are left as they were. Killed in between, the same
    call goes on: records carry the fingerprint of their answers, which no judge changes, and the verdicts of a slow judge
    are kept as they come.

    `validate` of a checkpoint knows the starting model's results, while its answers lie in the folder of the fit, the one
    above. They are read there, and written beside the others.

    Raises:
        ValueError: If this is no finished run, or records and results are not of the same answers.
    """
    path = folder / "results.json"
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        models = {"": results, "start.": results.get("start") or {}}
    except FileNotFoundError:
        raise ValueError(f"{folder}: there is no results.json here. Give the folder of a finished run.") from None
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read ({error}). Evaluate the run again.") from error
    again: list[Rejudged] = []
    for prefix, model in models.items():
        for side, summary in model.items():
            if isinstance(summary, dict) and {"before", "after"} <= summary.keys():
                one = _rejudged(folder / "records" / f"{prefix}{side}.jsonl", summary, judge, side, samples_of)
                _, header, records = one
                identity = {key: header[key] for key in ("answers", "fingerprint", "judge")}
                model[side] = summary | identity | summarise(records, records[0].unsafe)
                again.append(one)
    if not again:
        raise ValueError(f"{path} has no questions under attack (unsafe, benign): there is nothing to judge.")
    for file, header, records in again:
        write_records(file, records, header)
    write_text(path, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    for file, *_ in again:
        _log_of(file).unlink(missing_ok=True)
    return results


def _rejudged(file: Path, summary: dict[str, Any], judge: Judge, side: str, samples_of: SamplesOf | None) -> Rejudged:
    source = file
    if not file.is_file() and file.name.startswith("start."):
        source = file.parents[2] / "records" / file.name  # the fit's, whose checkpoint was validated
    if not source.is_file():
        raise ValueError(f"{file} is missing, so {side} cannot be judged again. Evaluate the run again.")
    header, records = read_records(source)
    answers = _answers_of(header)
    if not records or answers != _answers_of(summary):
        raise ValueError(
            f"{source} holds other answers than those that results.json counts: it is of another run or of another "
            "evaluation. Evaluate the run again."
        )
    if (n := len({record.id for record in records})) != (counted := summary["before"].get("n")):
        raise ValueError(
            f"{source} holds {n} questions, but results.json counts {counted}: it was cut. Evaluate the run again."
        )
    samples = samples_of(str(header.get("eval_set", side))) if samples_of else None
    identity = {"answers": answers, "fingerprint": short_hash(answers, judge.name), "judge": judge.name}
    with closing(AnswerLog(_log_of(file), str(identity["fingerprint"]))) as log:
        try:
            records = judged(records, judge, samples, log)
        finally:
            if not log.known:
                log.path.unlink()
    return file, header | identity, records


def _log_of(file: Path) -> Path:
    """Where the verdicts on a records file are kept until all files are judged."""
    return file.with_name(f".{file.stem}.judged.jsonl")


def _answers_of(holder: dict[str, Any]) -> str | None:
    """What identifies the answers, whoever judged them: the fingerprint of the evaluation that wrote them."""
    identity = holder.get("answers", holder.get("fingerprint"))
    return None if identity is None else str(identity)
