"""Rewrites from files: published ones in VLGuard's format, a JSON list of records, and those of `mirage prepare`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from mirage.errors import DataError, DataIssue
from mirage.json_file import sound_records
from mirage.schema import EvalSample
from mirage.shapes import ExactShape, Shape, Text

FIELDS = ("instruction", "safe_instruction", "unsafe_instruction")


class _Pair(Shape):
    instruction: Text = ""
    safe_instruction: Text = ""
    unsafe_instruction: Text = ""


class _Published(Shape):
    id: Text
    pairs: list[_Pair] = Field(alias="instr-resp", min_length=1)


class _Paraphrases(ExactShape):
    id: Text
    question: Text
    paraphrases: list[Text]


def record_and_field(sample: EvalSample) -> tuple[str, str]:
    """The record's id and the field that a sample belongs to, as `mirage.evaluation.attack.Published` says."""
    record, slash, field = sample.id.rpartition("/")
    if slash and field in FIELDS:
        return record, field
    return sample.id, "instruction" if sample.unsafe else "safe_instruction"


def read_published(file: Path) -> dict[tuple[str, str], list[str]]:
    """The rewrites by record id and field, in the order of the file.

    Raises:
        DataError: If the file is missing or not of VLGuard's format; names the first ten faulty records.
    """
    rewrites: dict[tuple[str, str], list[str]] = {}
    issues: list[DataIssue] = []
    shape = "a JSON list of records with 'id' and 'instr-resp', as VLGuard's test.json is"
    for entry in sound_records(file, _Published, shape, issues):
        for pair in entry.value.pairs:
            for field, text in pair.model_dump(exclude_unset=True).items():
                rewrites.setdefault((entry.value.id, field), []).append(text.strip())
    if issues or not rewrites:
        raise DataError.of(issues or [f"{file}: it holds no rewrite. Set attack.file to {shape}."])
    return rewrites


def read_paraphrases(file: Path) -> dict[str, list[str]]:
    """The paraphrases of a file that `mirage prepare paraphrases` wrote, by `Example.question_id`.

    Raises:
        DataError: If the file is missing or has a faulty line; names the first ten.
    """
    issues: list[DataIssue] = []
    expected = 'lines like {"id": "...", "question": "...", "paraphrases": ["...", "..."]}'
    entries = sound_records(file, _Paraphrases, expected, issues, "lines", may_repeat=())
    by_id = {entry.value.id: entry.value.paraphrases for entry in entries}
    if issues:
        raise DataError.of(issues)
    return by_id
