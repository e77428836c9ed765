"""Run folders, read and checked: results, records, and whether the two belong together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator

from mirage.evaluation.run.counting import shots_by_question, summarise
from mirage.schema import RESULTS_SCHEMA_VERSION, Record
from mirage.shapes import Shape, checked

SIDES = ("unsafe", "benign")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run left, checked.

    Args:
        folder: The run folder.
        label: Its name in tables and figures, unique among the runs read together.
        results: `results.json` as it stands.
        records: By file stem (`unsafe`, `benign`, `start.unsafe`, `start.benign`); a stem without a file is absent.
        notes: What was skipped while reading, in sentences.
    """

    folder: Path
    label: str
    results: Mapping[str, Any]
    records: Mapping[str, tuple[Record, ...]]
    notes: tuple[str, ...] = ()


class Model(NamedTuple):
    """One row of the tables: the model of a run, or a model that runs started from."""

    label: str
    run: Run  # for a starting model: a run that holds its results and records under `start`
    position: int | None  # among the runs; None for a starting model

    @property
    def results(self) -> Mapping[str, Any]:
        """Its blocks of results.json: `unsafe`, `benign` and `utility`, as far as they were measured."""
        results: Mapping[str, Any] = self.run.results if self.position is not None else self.run.results["start"]
        return results

    def side(self, side: str) -> Mapping[str, Any]:
        """What was measured on unsafe or benign questions; empty if nothing was."""
        return self.results.get(side) or {}

    def records(self, side: str) -> tuple[Record, ...]:
        """The answers to unsafe or benign questions; empty without a records file."""
        return self.run.records.get(side if self.position is not None else f"start.{side}", ())


def load_run(path: Path) -> Run:
    """The run in folder `path`, with records that are complete and belong to its results.

    A last line that a killed writer left half written is skipped together with its question, and a note says so.

    Raises:
        ValueError: If there is no results.json, it is broken or of another schema version, a records file has a foreign
            or damaged record, or records and results are of two evaluations.
    """
    folder = path.parent if path.name == "results.json" else path
    results = _read_results(folder / "results.json")
    records: dict[str, tuple[Record, ...]] = {}
    notes: list[str] = []
    absent: list[str] = []
    for prefix, model in (("", results), ("start.", results.get("start") or {})):
        for side in SIDES:
            file, summary = folder / "records" / f"{prefix}{side}.jsonl", model.get(side)
            if summary is None:
                continue
            if not file.is_file():
                absent.append(file.name)
                continue
            kept, half_written = _read_records(file, summary.get("fingerprint") or model.get("fingerprint"))
            if half_written:
                kept = tuple(record for record in kept if record.id != kept[-1].id)
                notes.append(
                    f"{file}: its last line is half written, so {summary['before']['n'] - len({r.id for r in kept})}"
                    " questions are missing from the curves and the gallery. Evaluate again to complete them."
                )
                if not kept:
                    continue
            _check_counts(file, kept, side == "unsafe", summary, half_written)
            records[f"{prefix}{side}"] = kept
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
    """The runs in the folders, in order; labels that occur twice become folders, two folders, then numbers."""
    runs = [load_run(path) for path in paths]
    labels = [run.label for run in runs]
    for depth in (1, 2):
        longer = ["/".join(run.folder.resolve().parts[-depth:]) for run in runs]
        labels = [other if labels.count(label) > 1 else label for label, other in zip(labels, longer, strict=True)]
    numbered = [f"{label} ({labels[:i].count(label) + 1})" for i, label in enumerate(labels)]
    labels = [other if labels.count(label) > 1 else label for label, other in zip(labels, numbered, strict=True)]
    return [replace(run, label=label) for run, label in zip(runs, labels, strict=True)]


def models(runs: Sequence[Run]) -> list[Model]:
    """Every starting model once, then the model of each run.

    Runs whose `start` blocks agree started from the same model and share its row.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.results.get("start"):
            key = json.dumps([run.results.get("model"), run.results["start"]], sort_keys=True)
            groups.setdefault(key, []).append(run)
    starts = []
    for group in groups.values():
        label = "start" if len(groups) == 1 else f"start of {', '.join(run.label for run in group)}"
        if any(run.label == label for run in runs):
            label = "starting model"
        best = max(group, key=lambda run: sum(stem.startswith("start.") for stem in run.records))
        starts.append(Model(label, best, None))
    return starts + [Model(run.label, run, index) for index, run in enumerate(runs)]


def _fraction(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError("is not a fraction between 0 and 1.")
    return value


_Fraction = Annotated[float, AfterValidator(_fraction)] | None


class _Rate(Shape):
    rate: _Fraction
    low: _Fraction
    high: _Fraction


class _Block(Shape):
    n: int
    unscored: int
    asr: _Rate
    rr: _Rate
    ir: _Rate
    helpful: _Rate | None = None


class _Side(Shape):
    before: _Block
    after: _Block
    per_shot: list[_Block] | None = None
    per_category: dict[str, dict[str, _Block]] | None = None
    attack: dict[str, Any] | None = None
    generation: dict[str, Any] | None = None


class _Score(Shape):
    score: _Rate
    n: int = 0
    unscored: int = 0


class _Measured(Shape):
    unsafe: _Side | None = None
    benign: _Side | None = None
    utility: dict[str, _Score] | None = None


class _Results(_Measured):
    start: _Measured | None = None


def _refused(place: object, what: str) -> ValueError:
    return ValueError(f"{place}: {what.removesuffix('.')}. Evaluate the run again.")


def _read_results(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(
            f"{file.parent}: there is no results.json here. Give the folder of a finished run, such as runs/rmu; an"
            " interrupted fit writes it once it is resumed with --ckpt_path last."
        )
    try:
        results: Any = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        place = (
            f"{file}, line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else file
        )
        raise _refused(place, "not JSON") from error
    version = results.get("schema_version") if isinstance(results, dict) else None
    if version == 1:
        raise ValueError(
            f"{file} was written by an earlier mirage (results schema 1): evaluate the run again with this one."
        )
    if version != RESULTS_SCHEMA_VERSION:
        raise ValueError(
            f"{file}: schema_version is {version!r}, but this mirage reads {RESULTS_SCHEMA_VERSION}. Read it with the"
            " mirage that wrote it, or evaluate the run again with this one."
        )
    _, issues = checked(_Results, results, str(file), "")
    if issues:
        missing = issues[0].remedy.startswith("is missing")
        raise _refused(file, f"{issues[0].field} {'is missing' if missing else issues[0].remedy}")
    return dict(results)


def _read_records(file: Path, fingerprint: str | None) -> tuple[tuple[Record, ...], bool]:
    """The records of one file, and whether its last line is half written; `fingerprint` is that of results.json."""
    records: list[Record] = []
    headers: dict[str, int] = {}  # fingerprint -> the first line that has it
    half_written = False
    # Split on the line feed alone: answers may hold U+2028 and its like, which str.splitlines takes for line ends.
    numbered = [(number, line) for number, line in enumerate(file.read_bytes().split(b"\n"), start=1) if line.strip()]
    for number, line in numbered:
        place = f"{file}, line {number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            half_written = number == numbered[-1][0] and bool(headers)
            if not half_written:
                raise _refused(place, "not JSON") from None
            break
        if isinstance(fields, dict) and "id" not in fields:
            headers.setdefault(str(fields.get("fingerprint")), number)
            continue
        try:
            records.append(Record.from_json(line.decode()))
        except ValueError as error:
            raise _refused(place, str(error)) from error
    if not headers:
        raise _refused(file, "it has no line with a fingerprint, so nothing says which model gave these answers")
    if len(headers) > 1:
        lines = " and ".join(f"{header} (line {number})" for header, number in headers.items())
        raise _refused(file, f"mixed fingerprints, {lines}: answers of several evaluations in one file. Delete it")
    if fingerprint not in (None, *headers):
        raise _refused(
            file,
            f"its fingerprint is {min(headers)}, but that of results.json is {fingerprint}: the answers are of other"
            " weights, samples, attack, judge or generation settings",
        )
    return tuple(records), half_written


def _check_counts(
    file: Path, records: Sequence[Record], unsafe: bool, summary: Mapping[str, Any], half_written: bool
) -> None:
    """Checks that results.json holds what the records add up to: every number that is counted from them.

    Raises:
        ValueError: Naming the number that differs, a shot that is missing or recorded twice, or a second judge.
    """
    try:
        shots_by_question(records)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    judges = {record.judge for record in records} - {summary.get("judge")}
    if judges and summary.get("judge") is not None:
        raise _refused(file, f"records judged by {min(judges)}, but results.json says {summary['judge']}")
    counted = summarise(records, unsafe)
    if half_written:  # the lost questions may be the whole difference
        here, there, lost = _questions(counted), _questions(summary), summary["before"]["n"] - counted["before"]["n"]
    else:
        here, there, lost = dict(_numbers(counted)), dict(_numbers({key: summary.get(key) for key in counted})), 0
    for name in {**here, **there}:
        if not _agree(here.get(name), there.get(name), lost):
            raise _refused(
                file,
                f"its records give {name} {here.get(name)}, but results.json says {there.get(name)}: they are of two"
                " evaluations, or one was edited",
            )


def _questions(summary: Mapping[str, Any]) -> dict[str, Any]:
    """How many questions each rate before and after the attack stands for."""
    blocks = {when: summary[when] for when in ("before", "after")}
    return {
        f"{when}.{measure} questions": round((block[measure]["rate"] or 0) * (block["n"] - block["unscored"]))
        for when, block in blocks.items()
        for measure in ("asr", "rr", "ir")
    }


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a JSON value by name, such as `per_shot[1].rr.rate`."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, f"{name}.{key}".lstrip("."))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for i, item in enumerate(value):
            yield from _numbers(item, f"{name}[{i}]")
    elif value is not None:
        yield name, value


def _agree(here: Any, there: Any, lost: int) -> bool:
    """Rates may differ by rounding, counts by the questions lost."""
    if isinstance(here, int | float) and isinstance(there, int | float):
        return -1e-6 <= there - here <= lost + 1e-6
    return bool(here == there)
