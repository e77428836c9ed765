"""Run folders, read and checked: results, records, and whether the two belong together."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from mirage.evaluation.run.counting import summarise
from mirage.evaluation.run.records import read_records
from mirage.schema import RESULTS_SCHEMA_VERSION, Record
from mirage.shapes import Shape

SIDES = ("unsafe", "benign")


class Run(NamedTuple):
    """What one run left, checked."""

    folder: Path
    label: str  # in tables and figures, unique among the runs read together
    results: Mapping[str, Any]  # results.json as it stands
    records: Mapping[str, tuple[Record, ...]]  # by file stem, such as `start.unsafe`, as far as there are files
    notes: tuple[str, ...]  # what is missing or unfinished, in sentences

    def records_of(self, prefix: str) -> dict[str, tuple[Record, ...]]:
        """By evaluation set, the records of the starting model (prefix `start.`) or of the run's own (no prefix)."""
        own = {name: records for name, records in self.records.items() if name.startswith("start.") == bool(prefix)}
        return {name.removeprefix(prefix): records for name, records in own.items()}


class Model(NamedTuple):
    """One row of the tables: the model of a run, or a model that runs started from."""

    label: str
    position: int | None  # of the run; None for a starting model
    folder: Path  # of a run that holds its records
    results: Mapping[str, Any]  # its blocks `unsafe`, `benign` and `utility`, as far as they were measured
    records: Mapping[str, tuple[Record, ...]]  # by evaluation set

    @property
    def crossed(self) -> bool:
        """True if it was trained on crossed forms."""
        return bool((self.results.get("data") or {}).get("crossing"))


def load_run(path: Path, judge: str | None = None) -> Run:
    """The run in folder `path`, with records that are complete and belong to its results.

    Args:
        path: The folder.
        judge: Show the verdicts of this judge that stand in the records, by its name or how the name begins, and the
            rates counted from them; by default those of results.json, which are the last judge's.

    Raises:
        ValueError: If there is no results.json, it is broken or of another schema version, a records file has a foreign
            or damaged record, records and results are of two evaluations, or not one judge of that name read them.
    """
    folder = path.parent if path.name == "results.json" else path
    results = _read_results(folder / "results.json")
    records: dict[str, tuple[Record, ...]] = {}
    notes: list[str] = []
    absent: list[str] = []
    for prefix, model in (("", results), ("start.", results.get("start") or {})):
        for side in attacked_sets([model]):
            file = folder / "records" / f"{prefix}{side}.jsonl"
            if not (summary := model.get(side)):
                continue
            if file.parent != folder / "records":
                raise ValueError(f"{folder / 'results.json'}: {side!r} cannot be the name of an evaluation set.")
            if file.is_file():
                unsafe = not is_benign([model], side)
                records[file.stem] = own = _read_records(file, summary, unsafe)
                if judge is not None:
                    records[file.stem] = own = _by(judge, own, file)
                    model[side] = {**summary, "judge": own[0].judge, **summarise(own, unsafe)}
            elif judge is not None:
                raise ValueError(f"{file} is missing, and with it the verdicts of {judge}. Leave out --judge.")
            else:
                absent.append(file.name)
    if absent:
        notes.append(f"{folder / 'records'}: no {', '.join(absent)}, so no curves and no gallery from there.")
    label = plain(str(results.get("name") or results.get("method") or folder.name))
    if results.get("method") == "start" and label != "start":
        label = f"{label}, not trained"
    step, planned = results.get("step"), results.get("planned_steps")
    if isinstance(step, int) and isinstance(planned, int) and step < planned:
        notes.append(f"{folder}: not a finished fit, it was measured after {step} of {planned} steps.")
    return Run(folder, label, results, records, tuple(notes))


def load_runs(paths: Sequence[Path], judge: str | None = None) -> list[Run]:
    """The runs in the folders, in order; labels that occur twice become paths, from where the paths of all runs part."""
    runs = [load_run(path, judge) for path in paths]
    count = Counter(run.label for run in runs)
    folders = [run.folder.resolve() for run in runs]
    root = os.path.commonpath([folder.parent for folder in folders])
    return [
        run._replace(label=plain(str(folder.relative_to(root)))) if count[run.label] > 1 else run
        for run, folder in zip(runs, folders, strict=True)
    ]


def models(runs: Sequence[Run]) -> list[Model]:
    """Every starting model once, then the model of each run.

    Runs whose `start` blocks agree started from the same model and share its row.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if start := run.results.get("start"):
            groups.setdefault(json.dumps([run.results.get("model"), start], sort_keys=True), []).append(run)
    starts = []
    for group in groups.values():
        label = "start" if len(groups) == 1 else f"start of {', '.join(run.label for run in group)}"
        if any(run.label == label for run in runs):
            label = "starting model"
        best = max(group, key=lambda run: len(run.records_of("start.")))
        starts.append(Model(label, None, best.folder, best.results["start"], best.records_of("start.")))
    return starts + [Model(run.label, at, run.folder, run.results, run.records_of("")) for at, run in enumerate(runs)]


def attacked_sets(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """The evaluation sets that were asked before and after an attack: unsafe, benign, then others as they come.

    Args:
        models: Of each, its results.json or the `start` in it.
    """
    measured = [
        key for model in models for key, value in model.items() if isinstance(value, Mapping) and "after" in value
    ]
    return list(dict.fromkeys((*SIDES, *measured)))


def is_benign(models: Sequence[Mapping[str, Any]], side: str) -> bool:
    """True if the questions of an evaluation set are benign: only of these `helpful` is counted."""
    return any("helpful" in ((model.get(side) or {}).get("before") or {}) for model in models)


def plain(text: str) -> str:
    """The text on one line without control characters, so that a name cannot steer the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


_Fraction = Annotated[float, Field(ge=0, le=1)] | None


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


_SIDES = TypeAdapter(dict[str, _Side])


class _Score(Shape):
    score: _Rate
    n: int = 0
    unscored: int = 0


class _Measured(Shape):
    unsafe: _Side | None = None
    benign: _Side | None = None
    utility: dict[str, _Score] | None = None


class _Results(_Measured):
    schema_version: Annotated[int, Field(ge=RESULTS_SCHEMA_VERSION, le=RESULTS_SCHEMA_VERSION)]
    start: _Measured | None = None


def _read_results(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(
            f"{file.parent}: there is no results.json here. Give the folder of a finished run, such as runs/rmu."
        )
    content = file.read_bytes()
    try:
        _Results.model_validate_json(content)
        results = dict(json.loads(content))
        for model in (results, results.get("start") or {}):
            _SIDES.validate_python({side: model[side] for side in attacked_sets([model]) if model.get(side)})
    except ValidationError as error:
        # a file of another version says so before what else it has
        first = min(error.errors(include_url=False), key=lambda issue: issue["loc"] != ("schema_version",))
        what = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
        raise ValueError(f"{file}: {what}. Evaluate the run again with this mirage.") from error
    return results


def _read_records(file: Path, summary: Mapping[str, Any], unsafe: bool) -> tuple[Record, ...]:
    """The records of one file, checked to be those that `summary`, its block of results.json, was counted from."""
    header, records = read_records(file)
    try:
        counted = summarise(records, unsafe)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    judges = ", ".join(sorted({record.judge for record in records}))
    for key, value in {"fingerprint": header.get("fingerprint"), "judge": judges, **counted}.items():
        if _rounded(value) != _rounded(summary.get(key, value)):
            raise ValueError(
                f"{file}: `{key}` of these records is not that of results.json, so they are of two evaluations, or one was"
                " edited. Evaluate the run again."
            )
    return tuple(records)


def _by(judge: str, records: Sequence[Record], file: Path) -> tuple[Record, ...]:
    """The records with the verdicts of the one judge whose name begins so, whatever the case."""
    present = [{record.judge, *record.other_judges} for record in records]
    judges = sorted(set.intersection(*present))
    found = [name for name in judges if name.lower().startswith(judge.lower())]
    name = judge if judge in found else found[0] if len(found) == 1 else None
    if name is None:
        raise ValueError(
            f"{file}: {len(found) or 'none'} of its judges ({', '.join(judges)}) have a name that begins with {judge!r}. "
            "Give one of these with --judge, or judge the run first: mirage judge."
        )
    return tuple(
        record if record.judge == name else record.judged(name, record.other_judges[name]) for record in records
    )


def _rounded(value: Any) -> Any:
    """A JSON value whose rates can be compared: another machine may compute the last digits otherwise."""
    return json.loads(json.dumps(value), parse_float=lambda digits: round(float(digits), 6))
