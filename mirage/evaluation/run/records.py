"""Answers and records on disk: answers are kept as they come, records appear whole."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from pydantic import StrictInt, StrictStr, TypeAdapter

from mirage.atomic import write_text
from mirage.schema import Record

_KEPT = TypeAdapter(tuple[StrictStr, StrictInt, StrictStr])  # a sample's id, the shot, and the answer


def file_name(name: str) -> str:
    """`name`, if files can be called after it: those of an eval set's records, which stand beside `start.<name>.jsonl`.

    Raises:
        ValueError: If it is a path, hidden, not printable, or too long.
    """
    path = "/" in name or "\\" in name or name.startswith((".", "start."))
    if path or not name.isprintable() or not 0 < len(name.encode()) <= 150:
        raise ValueError(
            f"{name!r} cannot be the name of an eval set, whose records are in a file of that name: use letters, digits, "
            "- and _."
        )
    return name


class AnswerLog:
    """Answers kept line by line while an evaluation runs, so that an interrupted one goes on where it stopped.

    The first line is the fingerprint of everything that decides an answer (weights, samples with their rewrites, generation
    settings). Lines under another fingerprint are never used; a half line at the end, left by a killed writer, is dropped.

    Args:
        path: The file, one per rank.
        fingerprint: What the answers must have been computed with.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path, self.fingerprint = path, fingerprint
        self.known = self._read()
        lines = [json.dumps([id, shot, text], ensure_ascii=False) for (id, shot), text in self.known.items()]
        write_text(path, "\n".join([json.dumps({"fingerprint": fingerprint}), *lines]) + "\n")
        self._file: TextIO = path.open("a", encoding="utf-8", errors="replace")

    def _read(self) -> dict[tuple[str, int], str]:
        if not self.path.is_file():
            return {}
        # up to the last line break, and not by splitlines: answers may hold U+2028
        lines = self.path.read_bytes().decode(errors="replace").split("\n")[:-1]
        try:
            if json.loads(lines[0]) == {"fingerprint": self.fingerprint}:
                return {(id, shot): answer for id, shot, answer in map(_KEPT.validate_json, lines[1:])}
        except (ValueError, RecursionError, IndexError):
            pass  # damaged: ask again rather than trust it
        return {}

    def add(self, id: str, shot: int, answer: str) -> None:
        """Keeps one answer. It survives a killed process as soon as this returns, though not a power cut."""
        self.known[id, shot] = answer
        self._file.write(json.dumps([id, shot, answer], ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file and leaves it for the next attempt."""
        self._file.close()


def write_records(path: Path, records: Iterable[Record], header: dict[str, Any]) -> None:
    """`path` holds the header (with the fingerprint) and then one record a line, whole or not at all."""
    write_text(path, "\n".join([json.dumps(header), *(record.to_json() for record in records)]) + "\n")


def read_records(path: Path) -> tuple[dict[str, Any], list[Record]]:
    """The header and the records of a file that `write_records` wrote.

    Raises:
        ValueError: Naming file and line, if it is not such a file, or an earlier mirage wrote it.
    """
    try:
        first, *lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
        header = dict(json.loads(first))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a records file. Evaluate the run again.") from error
    if "probe_set" in header:
        raise ValueError(f"{path} was written by an earlier mirage (results schema 1): evaluate the run again.")
    records = []
    for number, line in enumerate(lines, start=2):
        try:
            records.append(Record.from_json(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}. Evaluate the run again.") from error
    return header, records
