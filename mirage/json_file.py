"""Records out of JSON and JSON Lines files, one at a time, and what is wrong with a file in the words of its remedy.

A file of a gigabyte is read through a window of a few megabytes, so its size costs time but no memory. Records are
counted from 0, as in `data[412]`; lines and columns from 1, as editors do.
"""

from __future__ import annotations

import codecs
import errno
import itertools
import json
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Generic, Literal, NamedTuple

from mirage.errors import DataError, DataIssue
from mirage.shapes import AnyShape, checked

RECORD_LIMIT = 64 << 20  # characters of one record; a real one has a few thousand
WINDOW = 1 << 20  # characters read at a time
_NOT_SPACE = re.compile(r"[^ \t\r\n]")
_BYTE_ORDER_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_NOT_UTF8 = "is not plain UTF-8. Save it as UTF-8 without a byte order mark"
_TOO_LONG = f"has a record of more than {RECORD_LIMIT:,} characters"


class Line(NamedTuple):
    """One line of a JSON Lines file."""

    number: int  # from 1
    offset: int  # bytes before it
    record: object  # as parsed; None if there is an issue
    issue: DataIssue | None = None


class Entry(NamedTuple, Generic[AnyShape]):
    """One sound record of a file."""

    value: AnyShape
    where: str  # "record 412 (id Ads_1)" or "line 7"
    number: int  # of the record (from 0) or the line (from 1)
    offset: int  # bytes before the line


class _Refused(ValueError):
    """Legal for Python's parser, not for us."""


def sound_records(
    path: Path,
    shape: type[AnyShape],
    expected: str,
    issues: list[DataIssue],
    form: Literal["list", "lines"] = "list",
    may_be_empty: bool = False,
    may_repeat: Container[object] | None = None,
) -> Iterator[Entry[AnyShape]]:
    """The sound records of a file, in order. What is wrong with the others, or with the file, is added to `issues`.

    Args:
        path: One JSON list, or JSON Lines.
        shape: The shape of a record.
        expected: What should be in the file, for messages: "a list of records like {...}".
        issues: Receives every defect.
        form: Which of the two forms the file has.
        may_be_empty: A file without records has no defect.
        may_repeat: The ids that several records may have; by default any.
    """
    unit, numbered = "line", lines(path, expected)
    if form == "list":
        unit, numbered = "record", (Line(number, 0, record) for number, record in enumerate(records(path, expected)))
    ids: set[str] = set()
    try:
        for line in numbered:
            may_be_empty = True
            if line.issue is not None:
                issues.append(line.issue)
                continue
            id = line.record.get("id") if isinstance(line.record, dict) else None
            where = f"{unit} {line.number}" + (f" (id {id})" if form == "list" and id is not None else "")
            value, wrong = checked(shape, line.record, str(path), where)
            if isinstance(id, str) and may_repeat is not None and id not in may_repeat:
                if id in ids:
                    remedy = f"{id!r} is that of an earlier {unit}. Give it its own, or remove one of them."
                    wrong.append(DataIssue(str(path), where, "id", remedy))
                ids.add(id)
            issues += wrong
            if value is not None and not wrong:
                yield Entry(value, where, line.number, line.offset)
    except DataError as error:  # of the file itself
        issues += error.issues
    else:
        if not may_be_empty:
            issues.append(DataIssue(str(path), "", "the file", f"has no records. Expected {expected}."))


def json_lines(objects: Iterable[object]) -> str:
    """JSON Lines: one object a line."""
    return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in objects)


def records(path: Path, shape: str, window: int = WINDOW) -> Iterator[object]:
    """The items of the JSON list in a file, in order, each parsed when it is its turn.

    Args:
        path: A UTF-8 file whose top level is a list.
        shape: What should be in it, for the message: "a list of records like {...}".
        window: Characters read at a time.

    Raises:
        DataError: If the file is missing or is not such a list; it names line, column and the expected shape.
    """
    # A byte that is not UTF-8 is read as a lone surrogate, which no UTF-8 text can hold.
    with _opened(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        text = _Window(path, file, shape, window)
        if (opening := text.next()) != "[":
            what = f"has no list at its top level but starts with {opening!r}" if opening else "is empty"
            raise text.error(_NOT_UTF8 if opening == "\ufeff" else what)
        mark = text.next(skip=1)
        while mark != "]":
            yield text.value()
            if (mark := text.next()) == ",":
                text.position += 1
        if text.next(skip=1):
            raise text.error("goes on after the end of the list")


def lines(path: Path, shape: str) -> Iterator[Line]:
    """The lines of a JSON Lines file, without empty ones. A line that does not parse carries its issue.

    Raises:
        DataError: If the file is missing, is one JSON list, is not UTF-8 by its first bytes, or has an endless line.
    """
    with _opened(path, "rb") as file:
        offset = 0
        for number in itertools.count(1):
            raw: bytes = file.readline(RECORD_LIMIT)
            if not raw:
                return
            fatal = _TOO_LONG if len(raw) == RECORD_LIMIT else ""
            if number == 1 and raw.startswith(_BYTE_ORDER_MARKS):
                fatal = _NOT_UTF8
            elif number == 1 and raw.lstrip().startswith(b"["):
                fatal = "starts a JSON list, not JSON Lines"
            if fatal:
                raise DataError.of([_issue(path, number, 1, fatal, shape)])
            if raw.strip():
                yield _parsed(path, number, offset, raw, shape)
            offset += len(raw)


def parsed_line(raw: bytes) -> object:
    """The value of one line that `lines` has read without an issue."""
    return _DECODER.decode(raw.decode().rstrip("\r\n"))


def _parsed(path: Path, number: int, offset: int, raw: bytes, shape: str) -> Line:
    try:
        return Line(number, offset, parsed_line(raw))
    except UnicodeDecodeError as error:
        what, column = _NOT_UTF8, len(raw[: error.start].decode()) + 1
    except (ValueError, RecursionError) as error:
        what, column = _parser_says(error), getattr(error, "pos", 0) + 1
    return Line(number, offset, None, _issue(path, number, column, what, shape, "the line"))


class _Window:
    """The part of a file's text that is being parsed; it knows where in the file it starts."""

    def __init__(self, path: Path, file: IO[str], shape: str, size: int) -> None:
        self.path, self.file, self.shape, self.size = path, file, shape, size
        self.text, self.position = "", 0
        self.line, self.column = 1, 1  # of text[0]
        self.ended = False

    def next(self, skip: int = 0) -> str:
        """The next character that is not white space, after `skip` others; nothing at the end of the file."""
        self.position += skip
        while not (match := _NOT_SPACE.search(self.text, self.position)):
            self.position = len(self.text)
            if self.ended:
                return ""
            self._read_on()
        self.position = match.start()
        return match[0]

    def value(self) -> object:
        """The JSON value that comes next, whole however many windows it spans, and followed by a comma or `]`."""
        self.next()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.position)
                after = _NOT_SPACE.search(self.text, end)
                if after and after[0] in ",]":  # otherwise the value may be a number that the window cuts
                    self.position = end
                    return value
                what, end = "is not JSON here (expecting ',' or ']')", after.start() if after else len(self.text)
            except json.JSONDecodeError as error:
                unclosed = error.msg.startswith("Unterminated string")
                what, end = "is cut off" if unclosed else _parser_says(error), error.pos
            except (ValueError, RecursionError) as error:
                raise self.error(_parser_says(error)) from None
            if end >= len(self.text.rstrip()):
                what = "is cut off"
            if self.ended:
                raise self.error(what, end)
            if len(self.text) - self.position > RECORD_LIMIT:
                raise self.error(_TOO_LONG if what == "is cut off" else what, end)
            self._read_on()

    def error(self, what: str, position: int | None = None) -> DataError:
        """The error that says what is wrong at a position (by default: here)."""
        line, column = self._place(self.position if position is None else position)
        return DataError.of([_issue(self.path, line, column, what, self.shape)])

    def _read_on(self) -> None:
        """More text, as much again as is waiting; what has been parsed is forgotten."""
        self.line, self.column = self._place(self.position)
        waiting = self.text[self.position :]
        more = self.file.read(max(self.size, len(waiting)))
        self.text, self.position, self.ended = waiting + more, 0, not more
        try:
            more.encode()
        except UnicodeEncodeError as error:
            raise self.error(_NOT_UTF8, len(waiting) + error.start) from None

    def _place(self, position: int) -> tuple[int, int]:
        if newlines := self.text.count("\n", 0, position):
            return self.line + newlines, position - self.text.rfind("\n", 0, position)
        return self.line, self.column + position


def _opened(path: Path, mode: str = "r", **options: str) -> IO[Any]:
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # opening a pipe may wait for ever
            raise OSError(errno.EINVAL, "it is no regular file")
        return path.open(mode, **options)  # type: ignore[call-overload,no-any-return]
    except OSError as error:
        remedy = f"cannot be read ({error.strerror}). Correct the path in the configuration, or put the file there."
        raise DataError.of([DataIssue(str(path), "", "the file", remedy)]) from None


def _issue(path: Path, line: int, column: int, what: str, shape: str, field: str = "the file") -> DataIssue:
    return DataIssue(str(path), f"line {line}, column {column}", field, f"{what}. Expected {shape}.")


def _parser_says(error: ValueError | RecursionError) -> str:
    match error:
        case json.JSONDecodeError():
            return f"is not JSON here ({error.msg[:1].lower()}{error.msg[1:]})"
        case _Refused():
            return str(error)
        case RecursionError():
            return "is nested too deeply"
    return "holds a number of thousands of digits"  # more than Python agrees to convert


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise _Refused(f"has a record with the field {twice!r} twice")
    return fields


def _no_constant(name: str) -> object:
    raise _Refused(f"has a record with {name}, which is not JSON")


# Python's own parser keeps the last of two equal fields and reads NaN; both hide a broken file.
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
