"""Official JSON files, read with one clear sentence wherever they are not what they should be."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class OfficialFile:
    """A file of a benchmark, with the words for its faults.

    Args:
        path: Where it is.
        expected: What it should be, such as `VQA v2.0 open-ended questions`.
        remedy: What to do if it is not, as a sentence.
    """

    path: Path
    expected: str
    remedy: str

    def wrong(self, found: str, where: str = "") -> ValueError:
        """The error to raise: file (and record), expectation, finding and remedy in one sentence or two."""
        place = f"{self.path}, {where}" if where else str(self.path)
        return ValueError(f"{place}: expected {self.expected}, but {found}. {self.remedy}")

    def read(self) -> Any:
        """The parsed JSON.

        Raises:
            ValueError: If the file is missing, is not UTF-8, or is not whole JSON.
        """
        try:
            return json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise self.wrong("there is no such file") from None
        except OSError as error:
            raise self.wrong(f"it cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise self.wrong("it is not UTF-8 text") from error
        except json.JSONDecodeError as error:
            raise self.wrong(f"it is not whole JSON ({error.msg}, line {error.lineno} column {error.colno})") from error

    def field(self, record: Any, name: str, kind: type[T], where: str = "") -> T:
        """The field of a record, which has the given type.

        Raises:
            ValueError: If the record is no JSON object, or lacks the field, or holds something else there.
        """
        if not isinstance(record, dict):
            raise self.wrong(f"it is a {_kind(record)} where an object is due", where)
        if name not in record:
            raise self.wrong(f"the field {name!r} is missing", where)
        value = record[name]
        # In Python true is an int, in these files it is not.
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.wrong(f"the field {name!r} is {_kind(value)}", where)
        return value

    def texts(self, record: Any, name: str, where: str = "") -> tuple[str, ...]:
        """The field of a record, which is a list of texts.

        Raises:
            ValueError: If it is anything else.
        """
        values = self.field(record, name, list, where)
        if not all(isinstance(value, str) for value in values):
            raise self.wrong(f"the field {name!r} holds something else than texts", where)
        return tuple(values)

    def ten(self, answers: tuple[str, ...], where: str) -> tuple[str, ...]:
        """The human answers, which are ten: the metric averages over every choice of nine.

        Raises:
            ValueError: If they are not ten.
        """
        if len(answers) != 10:
            raise self.wrong(f"there are {len(answers)} human answers instead of 10", where)
        return answers


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "true or false", int: "number", float: "number"}
    return names.get(type(value), "null")
