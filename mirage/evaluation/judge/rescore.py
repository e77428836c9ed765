"""Reading records again with another judge. Nothing is generated: the answers stay what they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from mirage.atomic import write_text
from mirage.errors import DataError
from mirage.evaluation.judge.base import Answered, Judge, check_scored
from mirage.evaluation.judge.kept import judged_and_kept
from mirage.evaluation.run.counting import summarise
from mirage.evaluation.run.records import AnswerLog, read_records, write_records
from mirage.schema import EvalSample, Record, short_hash
from mirage.shapes import Shape, checked


class _Count(Shape):
    n: int


class _Summary(Shape):
    before: _Count
    after: _Count


NO_SAMPLES = (
    "needs a sample's picture or truth, and records do not hold it. Give the run's data source with --data, or a judge "
    "that reads words alone: Keyword, or a model with --judge.see_picture false."
)
SamplesOf = Callable[[str], Sequence[EvalSample]]


def judged(
    records: Sequence[Record], judge: Judge, samples: Sequence[EvalSample] | None = None, log: AnswerLog | None = None
) -> list[Record]:
    """The same records, of one eval set, with the verdicts of `judge`; those of other judges stay beside them.

    The `samples` have the pictures and truths. With a log, a slow judge's verdicts are taken from it, new ones kept in it.

    Raises:
        ValueError: If the judge needs what records do not hold (truths, pictures) and there are no samples, or if a
            record's sample is missing or asks something else.
        JudgeError: If it scores nothing.
    """
    if samples is None and needs_samples(records, judge):
        raise ValueError(f"{judge.name} {NO_SAMPLES}")
    if samples is None:  # the plain question last: it counts
        samples = [
            EvalSample(
                id=each.id,
                source="records",
                image=None,
                question=each.question,
                unsafe=each.unsafe,
                category=each.category,
            )
            for each in sorted(records, key=lambda record: -record.shot)
        ]
    known = {sample.id: sample for sample in samples}
    keyed = []
    for record in records:
        sample = known.get(record.id)
        if sample is None or (record.shot == 0 and record.question != sample.question):
            raise ValueError(
                f"The data source has no sample {record.id!r}, or it asks something else there than the records do. Give "
                "the source, with the settings, that the run was made from."
            )
        keyed.append(((record.id, record.shot), Answered(sample, record.question, record.answer)))
    judgements = judged_and_kept(keyed, judge, log)
    check_scored([record.answer for record in records], judgements, judge.name)
    return [record.judged(judge.name, judgement) for record, judgement in zip(records, judgements, strict=True)]


def needs_samples(records: Sequence[Record], judge: Judge) -> bool:
    """True if the judge needs truths, or pictures where there are some: records hold neither."""
    return judge.needs_truth or (judge.needs_pictures and any(record.image is not None for record in records))


def rejudge(folder: Path, judge: Judge, samples_of: SamplesOf | None = None) -> dict[str, Any]:
    """The results of the run in `folder` by the verdicts of `judge`, written to its records and its results.json.

    Both sides of the starting and of the aligned model are read again; each file is replaced whole, results.json last, and
    utility is left as it was. Killed in between, the same call goes on: records carry the fingerprint of their answers,
    which no judge changes, and the verdicts of a slow judge are kept as they come. A validated checkpoint's starting
    answers lie in the folder of its fit, the one above: they are read there, and written beside the others.

    `samples_of` an eval set is called for a judge that needs what records do not hold.

    Raises:
        ValueError: If this is no finished run, records and results are not of the same answers, or as `judged`.
    """
    path = folder / "results.json"
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        models = {"": results, "start.": results.get("start") or {}}
        if not isinstance(models["start."], dict):
            raise ValueError("its start is no object")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{folder}: there is no results.json, or it cannot be read ({error}). Give the folder of a finished run."
        ) from error
    again: dict[Path, tuple[dict[str, Any], list[Record]]] = {}
    for prefix, model in models.items():
        for side, summary in model.items():
            if isinstance(summary, dict) and {"before", "after"} <= summary.keys():
                if Path(side).name != side:
                    raise ValueError(f"{path}: {side!r} leaves the folder of the records. Evaluate the run again.")
                file = folder / "records" / f"{prefix}{side}.jsonl"
                if issues := checked(_Summary, summary, str(path), f"{prefix}{side}")[1]:
                    raise DataError.of(issues)
                header, records = again[file] = _rejudged(file, summary, judge, side, samples_of)
                identity = {key: header[key] for key in ("answers", "fingerprint", "judge")}
                model[side] = summary | identity | summarise(records, records[0].unsafe)
    if not again:
        raise ValueError(f"{path} has no questions under attack (unsafe, benign): there is nothing to judge.")
    for file, (header, records) in again.items():
        write_records(file, records, header)
    write_text(path, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    for file in again:
        _log_of(file).unlink(missing_ok=True)
    return results


def _rejudged(
    file: Path, summary: dict[str, Any], judge: Judge, side: str, samples_of: SamplesOf | None
) -> tuple[dict[str, Any], list[Record]]:
    """The new header and records of a records file, which are not written yet."""
    source = file
    if not file.is_file() and file.name.startswith("start."):
        source = file.parents[2] / "records" / file.name  # the fit's, whose checkpoint was validated
    if not source.is_file():
        raise ValueError(f"{file} is missing, so {side} cannot be judged again. Evaluate the run again.")
    header, records = read_records(source)
    # what identifies the answers, whoever judged them: the fingerprint of the evaluation that wrote them
    answers, counted = (told.get("answers", told.get("fingerprint")) for told in (header, summary))
    n, expected = len({record.id for record in records}), summary["before"].get("n")
    if not records or answers != counted or n != expected:
        raise ValueError(
            f"{source} holds {n} questions, but results.json counts {expected}: it was cut, or it is of other answers. "
            "Evaluate the run again."
        )
    wanted = samples_of is not None and needs_samples(records, judge)
    samples = samples_of(str(header.get("eval_set", side))) if samples_of and wanted else None
    fingerprint = short_hash(answers, judge.name)
    with closing(AnswerLog(_log_of(file), fingerprint)) as log:
        try:
            records = judged(records, judge, samples, log)
        finally:
            if not log.known:
                log.path.unlink()
    return header | {"answers": answers, "fingerprint": fingerprint, "judge": judge.name}, records


def _log_of(file: Path) -> Path:
    """Where the verdicts on a records file are kept until all files are judged."""
    return file.with_name(f".{file.stem}.judged.jsonl")
