"""Reading records again with another judge. Nothing is generated: the answers stay what they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from mirage.atomic import write_text
from mirage.evaluation.judge.base import Answered, Judge
from mirage.evaluation.judge.exact import Exact
from mirage.evaluation.judge.kept import judged_and_kept
from mirage.evaluation.judge.unscored import check_scored
from mirage.evaluation.run.counting import summarise
from mirage.evaluation.run.records import AnswerLog, read_records, write_records
from mirage.schema import EvalSample, Record, short_hash

SamplesOf = Callable[[str], Sequence[EvalSample]]


class Rejudged(NamedTuple):
    """One records file, read again; not written yet."""

    file: Path
    header: dict[str, Any]
    records: list[Record]

    @property
    def identity(self) -> dict[str, Any]:
        """What records and results share: whose answers these are, and who judged them."""
        return {key: self.header[key] for key in ("answers", "fingerprint", "judge")}


def answered(records: Sequence[Record], samples: Sequence[EvalSample] | None = None) -> list[Answered]:
    """The answers of `records`, each with its question as it was asked.

    Args:
        records: Of one eval_set.
        samples: The eval_set, for pictures and truths, joined by id. Without it samples have neither.

    Raises:
        ValueError: If a record's sample is missing, or asks something else.
    """
    if samples is None:
        plain = {record.id: record.question for record in records if record.shot == 0}
        found = {
            record.id: EvalSample(
                id=record.id, source="records", image=None, question=plain.get(record.id, record.question),
                unsafe=record.unsafe, category=record.category,
            )
            for record in records
        }  # fmt: skip
    else:
        found = {sample.id: sample for sample in samples}
        for record in records:
            if record.id not in found:
                raise ValueError(
                    f"The data source has no sample {record.id!r}. Give the source that the run was made from."
                )
            if record.shot == 0 and record.question != found[record.id].question:
                raise ValueError(
                    f"The data source asks something else than the records do under {record.id!r}: it has changed. "
                    "Give the source, with the settings, that the run was made from."
                )
    return [Answered(found[record.id], record.question, record.answer) for record in records]


def judged(
    records: Sequence[Record], judge: Judge, samples: Sequence[EvalSample] | None = None, log: AnswerLog | None = None
) -> list[Record]:
    """The same records with the verdicts of `judge`; with a log, those that it has, and new ones into it.

    Raises:
        ValueError: If the judge needs what records do not hold (truths, pictures), and there are no samples.
        JudgeError: If it scores nothing.
    """
    if samples is None:
        _refuse_blind(judge, records)
    answers = answered(records, samples)
    keyed = [((record.id, record.shot), one) for record, one in zip(records, answers, strict=True)]
    judgements = judged_and_kept(keyed, judge, log)
    check_scored([record.answer for record in records], judgements, judge.name)
    return [
        replace(record, verdict=judgement.verdict, judge=judge.name, reason=judgement.reason)
        for record, judgement in zip(records, judgements, strict=True)
    ]


def _refuse_blind(judge: Judge, records: Sequence[Record]) -> None:
    if isinstance(judge, Exact):
        raise ValueError(
            "The exact judge compares with the truth, and records do not hold it. Give the run's data source with --data, "
            "or choose another judge."
        )
    if getattr(judge, "see_picture", False) and any(record.image is not None for record in records):
        raise ValueError(
            f"{judge.name} looks at pictures, and records hold only their names. Give the run's data source with --data, "
            "or set --judge.see_picture false."
        )


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
                file = folder / "records" / f"{prefix}{side}.jsonl"
                one = _rejudged(file, summary, judge, side, samples_of)
                unsafe = one.records[0].unsafe
                model[side] = summary | one.identity | summarise(one.records, unsafe)
                again.append(one)
    if not again:
        raise ValueError(f"{path} has no questions under attack (unsafe, benign): there is nothing to judge.")
    for one in again:
        write_records(one.file, one.records, one.header)
    write_text(path, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    for one in again:
        _log_of(one.file).unlink(missing_ok=True)
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
    if (n := len({record.id for record in records})) != summary["before"].get("n"):
        raise ValueError(
            f"{source} holds {n} questions, but results.json counts {summary['before'].get('n')}: it was cut. Evaluate the "
            "run again."
        )
    eval_set = str(header.get("eval_set", side))
    samples = samples_of(eval_set) if samples_of else None
    with closing(AnswerLog(_log_of(file), short_hash(answers, judge.name))) as log:
        try:
            records = judged(records, judge, samples, log)
        finally:
            if not log.known:
                log.path.unlink()
    own = {"answers": answers, "fingerprint": short_hash(answers, judge.name), "judge": judge.name}
    return Rejudged(file, header | own, records)


def _log_of(file: Path) -> Path:
    """Where the verdicts on a records file are kept until all files are judged."""
    return file.with_name(f".{file.stem}.judged.jsonl")


def _answers_of(holder: dict[str, Any]) -> str | None:
    """What identifies the answers, whoever judged them: the fingerprint of the evaluation that wrote them."""
    found = holder.get("answers", holder.get("fingerprint"))
    return None if found is None else str(found)
