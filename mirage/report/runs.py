"""Run folders, read and checked: results, records, and whether the two belong together."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from mirage.evaluation.run.counting import shots_by_question, summarise
from mirage.schema import Record

SCHEMA_VERSION = 2
SIDES = ("unsafe", "benign")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run left, checked.

    Args:
        folder: The run folder.
        label: Its name in tables and figures, unique among the runs read together.
        results: `results.json` as it stands.
        records: By file stem (`unsafe`, `benign`, `start.unsafe`, `start.benign`); a stem without a file is absent.
        notes: What was left out while reading, in sentences.
    """

    folder: Path
    label: str
    results: Mapping[str, Any]
    records: Mapping[str, tuple[Record, ...]]
    notes: tuple[str, ...] = ()


class Start(NamedTuple):
    """The model that one or more runs started from, and a run that holds its results and records under `start`."""

    label: str
    run: Run


def load_run(path: Path) -> Run:
    """The run in folder `path`, with records that are whole and belong to its results.

    A line that a killed writer left half written is dropped, its question with it, and a note says so.

    Raises:
        ValueError: If there is no results.json, it is broken or of another schema version, a records file has a foreign
            or damaged record, or records and results are of two evaluations.
    """
    folder = path.parent if path.name == "results.json" else path
    results = _results(folder)
    records: dict[str, tuple[Record, ...]] = {}
    notes: list[str] = []
    absent: list[str] = []
    for stem in [*SIDES, *(f"start.{side}" for side in SIDES)]:
        side = stem.removeprefix("start.")
        model = results if stem == side else results.get("start") or {}
        summary = model.get(side)
        file = folder / "records" / f"{stem}.jsonl"
        if summary is None:
            continue
        if not file.is_file():
            absent.append(file.name)
            continue
        known = summary.get("fingerprint") or model.get("fingerprint")
        kept, dropped = _records(file, known)
        if dropped:
            kept, incomplete = _complete(kept)
            notes.append(
                f"{file}: dropped its last line, half written; {incomplete} questions that this left incomplete are"
                " missing from the curves and the gallery. Evaluate again to complete them."
            )
        if not kept and dropped:
            continue
        _check(file, kept, side == "unsafe", summary, whole=not dropped)
        records[stem] = kept
    if absent:
        notes.append(f"{folder / 'records'}: no {', '.join(absent)}, so no curves and no gallery from there.")
    label = str(results.get("name") or results.get("method") or folder.name)
    if results.get("method") == "start" and label != "start":
        label = f"{label}, not trained"
    step, planned = results.get("step"), results.get("planned_steps")
    if isinstance(step, int) and isinstance(planned, int) and step < planned:
        notes.append(f"{folder}: not a finished fit, it was measured after {step} of {planned} steps.")
    return Run(folder=folder, label=label, results=results, records=records, notes=tuple(notes))


def load_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in the folders, in order, each with a label of its own."""
    return labelled([load_run(path) for path in paths])


def labelled(runs: Sequence[Run]) -> list[Run]:
    """The runs with unique labels: where a name occurs twice, the folder's, then two folders', then a number."""
    labels = [run.label for run in runs]
    for parts in (1, 2):
        longer = ["/".join(run.folder.resolve().parts[-parts:]) for run in runs]
        labels = [own if labels.count(label) > 1 else label for label, own in zip(labels, longer, strict=True)]
    numbered = [f"{label} ({labels[:i].count(label) + 1})" for i, label in enumerate(labels)]
    labels = [own if labels.count(label) > 1 else label for label, own in zip(labels, numbered, strict=True)]
    return [replace(run, label=label) for run, label in zip(runs, labels, strict=True)]


def starts(runs: Sequence[Run]) -> list[Start]:
    """Each starting model once: runs whose `start` blocks agree started from the same model and share its row."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.results.get("start"):
            key = json.dumps([run.results.get("model"), run.results["start"]], sort_keys=True)
            groups.setdefault(key, []).append(run)
    found = []
    for group in groups.values():
        label = "start" if len(groups) == 1 else f"start of {', '.join(run.label for run in group)}"
        if any(run.label == label for run in runs):
            label = "starting model"
        found.append(Start(label, max(group, key=lambda run: sum(stem.startswith("start.") for stem in run.records))))
    return found


def _results(folder: Path) -> dict[str, Any]:
    file = folder / "results.json"
    if not file.is_file():
        raise ValueError(
            f"{folder}: there is no results.json here. Give the folder of a finished run, such as runs/rmu; an"
            " interrupted fit writes it once it is resumed with --ckpt_path last."
        )
    try:
        results = json.loads(file.read_bytes())
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{file}, line {error.lineno}, column {error.colno}: not JSON ({error.msg}). Evaluate the run again."
        ) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({type(error).__name__}). Evaluate the run again.") from error
    version = results.get("schema_version") if isinstance(results, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{file}: schema_version is {version!r}, but this mirage reads {SCHEMA_VERSION}. Read it with the mirage"
            " that wrote it, or evaluate the run again with this one."
        )
    fault = _shape_fault(results)
    if fault:
        raise ValueError(f"{file}: {fault}. Evaluate the run again.")
    return named_utility(results)


def named_utility(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results with the source's own utility set under the source's name: older files call it `utility`."""
    source = results.get("source")

    def named(model: Mapping[str, Any]) -> dict[str, Any]:
        measured = model.get("utility") or {}
        if not source or "utility" not in measured or source in measured:
            return dict(model)
        return {**model, "utility": {source if name == "utility" else name: measured[name] for name in measured}}

    return {**named(results), "start": named(results["start"])} if results.get("start") else named(results)


def _shape_fault(results: Mapping[str, Any]) -> str | None:
    """What in the parts that tables are made of does not have its type, or None."""
    start = results.get("start")
    if start is not None and not isinstance(start, dict):
        return "start is not an object"
    for prefix, model in (("", results), ("start.", start or {})):
        for side in SIDES:
            summary = model.get(side)
            if summary is None:
                continue
            if not isinstance(summary, dict):
                return f"{prefix}{side} is not an object"
            for key, type_ in (("per_shot", list), ("per_category", dict), ("attack", dict), ("generation", dict)):
                if not isinstance(summary.get(key) or type_(), type_):
                    return f"{prefix}{side}.{key} is not {'a list' if type_ is list else 'an object'}"
            blocks = {f"{prefix}{side}.{when}": summary.get(when) for when in ("before", "after")}
            blocks |= {f"{prefix}{side}.per_shot[{i}]": block for i, block in enumerate(summary.get("per_shot") or [])}
            for name, block in blocks.items():
                measures = ("asr", "rr", "ir") if side == "unsafe" else ("asr", "rr", "ir", "helpful")
                if not isinstance(block, dict) or not all(isinstance(block.get(key), int) for key in ("n", "unscored")):
                    return f"{name} has no counts n and unscored"
                for measure in measures:
                    if not _is_rate(block.get(measure)):
                        return f"{name}.{measure} is not an object of rate, low and high (fractions or null)"
        utility = model.get("utility") or {}
        if not isinstance(utility, dict):
            return f"{prefix}utility is not an object"
        for name, score in utility.items():
            if not isinstance(score, dict) or not _is_rate(score.get("score")):
                return f"{prefix}utility.{name}.score is not an object of rate, low and high (fractions or null)"
    return None


def _is_rate(value: Any) -> bool:
    return isinstance(value, dict) and all(
        end is None or (isinstance(end, int | float) and math.isfinite(end) and 0 <= end <= 1)
        for end in (value.get(key, "absent") for key in ("rate", "low", "high"))
    )


def _records(file: Path, known: str | None) -> tuple[tuple[Record, ...], bool]:
    """The records of one file, and whether its last line is half written; `known` is the fingerprint in results.json."""
    records: list[Record] = []
    found: dict[str, int] = {}
    # Split on the line feed alone: answers may hold U+2028 and its like, which str.splitlines takes for line ends.
    numbered = [(number, line) for number, line in enumerate(file.read_bytes().split(b"\n"), start=1) if line.strip()]
    half_written = False
    for number, line in numbered:
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            if number == numbered[-1][0] and found:
                half_written = True
                break
            raise ValueError(f"{file}, line {number}: not JSON. Evaluate the run again.") from None
        if isinstance(fields, dict) and "id" not in fields:
            found.setdefault(str(fields.get("fingerprint")), number)
            continue
        try:
            record = Record.from_json(line.decode())
            texts = (record.id, record.question, record.answer, record.judge)
            if type(record.shot) is not int or not all(isinstance(text, str) for text in texts):
                raise ValueError("shot is not a whole number, or id, question, answer or judge is not a text")
            records.append(record)
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}. Evaluate the run again with this mirage.") from error
    if not found:
        raise ValueError(
            f"{file}: it has no line with a fingerprint, so nothing tells whose answers these are. Evaluate the run again."
        )
    if len(found) > 1:
        raise ValueError(
            f"{file}: mixed fingerprints, {' and '.join(f'{print} (line {n})' for print, n in found.items())}: answers"
            " of several evaluations in one file. Delete it and evaluate the run again."
        )
    if known is not None and known not in found:
        raise ValueError(
            f"{file}: its fingerprint is {next(iter(found))}, but that of results.json is {known}: the answers are of"
            " other weights, samples, attack, judge or generation settings. Evaluate the run again."
        )
    return tuple(records), half_written


def _complete(records: Sequence[Record]) -> tuple[tuple[Record, ...], int]:
    """The records of the questions that have every shot, and how many questions have not."""
    wanted = set(range(max((record.shot for record in records), default=0) + 1))
    shots: dict[str, set[int]] = {}
    for record in records:
        shots.setdefault(record.id, set()).add(record.shot)
    whole = {id for id, own in shots.items() if own == wanted}
    return tuple(record for record in records if record.id in whole), len(shots) - len(whole)


def _check(file: Path, records: Sequence[Record], unsafe: bool, summary: Mapping[str, Any], whole: bool) -> None:
    """The records are countable, and the summary counts them: every number of it that records decide.

    Of a file that lost its last line (not `whole`), the missing question may be the whole difference.
    """
    try:
        shots_by_question(records)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    judges = {record.judge for record in records} - {summary.get("judge")}
    if judges and summary.get("judge") is not None:
        raise ValueError(
            f"{file}: records judged by {sorted(judges)[0]}, but results.json says {summary['judge']}. Judge the run again"
            " with one judge."
        )
    counted: dict[str, Any] = json.loads(json.dumps(summarise(records, unsafe)))
    if whole:
        differing = _difference(counted, {key: summary.get(key) for key in counted})
        if differing:
            name, here, there = differing
            raise ValueError(
                f"{file}: its records give {name} {here}, but results.json says {there}: they are of two evaluations, or"
                " one was edited. Evaluate or judge the run again."
            )
        return
    for when in ("before", "after"):
        lost = summary[when]["n"] - counted[when]["n"]
        for measure in ("asr", "rr", "ir"):
            here, there = (
                round((block[measure]["rate"] or 0) * (block["n"] - block["unscored"]))
                for block in (counted[when], summary[when])
            )
            if not 0 <= there - here <= lost:
                raise ValueError(
                    f"{file}: its records give {here} questions of {measure} {when} the attack, but results.json says"
                    f" {there}: they are of two evaluations. Evaluate or judge the run again."
                )


def _difference(counted: Any, told: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The first number that differs: its name, as counted, and as told. Rates may differ by rounding."""
    if isinstance(counted, dict) and isinstance(told, dict):
        pairs = [(f"{name}.{key}".lstrip("."), own, told.get(key)) for key, own in counted.items()]
    elif isinstance(counted, list) and isinstance(told, list) and len(counted) == len(told):
        pairs = [(f"{name}[{i}]", own, other) for i, (own, other) in enumerate(zip(counted, told, strict=True))]
    elif isinstance(counted, float) and isinstance(told, int | float):
        return None if math.isclose(counted, told, abs_tol=1e-6) else (name, counted, told)
    else:
        return None if counted == told else (name, counted, told)
    return next((found for label, own, other in pairs if (found := _difference(own, other, label))), None)
