"""Records out of JSON and JSON Lines files, one at a time, and what is wrong with a file in the words of its remedy.

A file of a gigabyte is read through a window of a few megabytes, so its size costs time but no memory. Records are
counted from 0, as in `data[412]`; lines and columns from 1, as editors do.
"""

from __future__ import annotations

import codecs
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mirage.errors import DataError, DataIssue

RECORD_LIMIT = 64 << 20  # characters of one record; a real one has a few thousand
WINDOW = 1 << 20  # bytes read at a time
_MARGIN = 16  # a token cut by the window's end ("tru", "-Infin") is reported at most this far from it
_NOT_SPACE = re.compile(r"[^ \t\r\n]")
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|(NaN|-?Infinity)', re.DOTALL)
_WRONG_ENCODINGS = {
    codecs.BOM_UTF8: "starts with a byte order mark. Save it as UTF-8 without one",
    codecs.BOM_UTF16_LE: "is UTF-16. Save it as UTF-8",
    codecs.BOM_UTF16_BE: "is UTF-16. Save it as UTF-8",
}


class UnreadableFileError(DataError):
    """A file that cannot be read to its end; `issue` says where and why."""

    def __init__(self, issue: DataIssue) -> None:
        super().__init__(str(issue))
        self.issue = issue


class Line(NamedTuple):
    """One line of a JSON Lines file."""

    number: int  # from 1
    offset: int  # bytes before it
    record: object  # as parsed; None if there is an issue
    issue: DataIssue | None = None


class _Refused(ValueError):
    """Legal for Python's parser, not for us."""


def records(path: Path, shape: str, window: int = WINDOW) -> Iterator[object]:
    """The items of the JSON list in a file, in order, each parsed when it is its turn.

    Args:
        path: A UTF-8 file whose top level is a list.
        shape: What should be in it, for the message: "a list of records like {...}".
        window: Bytes read at a time.

    Raises:
        UnreadableFileError: If the file is missing or is not such a list; it names line, column and the expected shape.
    """
    with _opened(path) as file:
        reader = _Reader(path, file, shape, window)
        if (opening := reader.peek()) != "[":
            raise reader.broken(_not_a_list(reader, opening))
        reader.take()
        more = reader.peek() != "]"
        while more:
            yield reader.value()
            mark = reader.peek()
            if mark not in (",", "]"):
                raise reader.broken("lacks a comma between two records" if mark else "is cut off")
            if more := mark == ",":
                reader.take()
                if reader.peek() == "]":
                    raise reader.broken("has a comma after the last record")
        reader.take()
        if reader.peek():
            raise reader.broken("goes on after the end of the list")


def lines(path: Path, shape: str) -> Iterator[Line]:
    """The lines of a JSON Lines file, without empty ones. A line that does not parse carries its issue.

    Raises:
        UnreadableFileError: If the file is missing, is UTF-16, or is one JSON list.
    """
    with _opened(path) as file:
        offset = 0
        for number in itertools.count(1):
            raw = file.readline(RECORD_LIMIT)
            if not raw:
                return
            if raw.strip():
                line = _line(path, number, offset, raw, shape)
                if line.issue is not None and (len(raw) == RECORD_LIMIT or (number == 1 and raw.lstrip()[:1] == b"[")):
                    raise UnreadableFileError(line.issue)
                yield line
            offset += len(raw)


def parsed_line(raw: bytes) -> object:
    """The value of one line that `lines` has read without an issue."""
    return _DECODER.decode(raw.decode())


class _Reader:
    """A window on a file's text, which knows the line and column of its start."""

    def __init__(self, path: Path, file: BinaryIO, shape: str, window: int) -> None:
        self.path, self.file, self.shape, self.window = path, file, shape, window
        self.text, self.position = "", 0
        self.line, self.column = 1, 1  # of text[0]
        self.ended = False
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self._fill()

    def peek(self) -> str:
        """The next character that is not white space, or nothing at the end of the file."""
        while True:
            if match := _NOT_SPACE.search(self.text, self.position):
                self.position = match.start()
                return match[0]
            self.position = len(self.text)
            if self.ended:
                return ""
            self._fill()

    def take(self) -> None:
        """Past the character that was peeked."""
        self.position += 1

    def value(self) -> object:
        """The JSON value that comes next, whole however many windows it spans."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                last = len(self.text.rstrip()) if self.ended else len(self.text) - _MARGIN
                cut = error.pos >= last or error.msg.startswith("Unterminated string")
                if not cut or self.ended:
                    raise self.broken("is cut off" if cut else _parser_says(error), error.pos) from None
            except (ValueError, RecursionError) as error:
                place = self._refused_at() if isinstance(error, _Refused) else None
                raise self.broken(_parser_says(error), place) from None
            else:
                if self.ended or end <= len(self.text) - _MARGIN:
                    self.position = end
                    return value
            if len(self.text) - self.position > RECORD_LIMIT:
                raise self.broken(f"has a record of more than {RECORD_LIMIT:,} characters")
            self._fill()

    def broken(self, what: str, position: int | None = None) -> UnreadableFileError:
        """The error that says what is wrong at a position (by default: here)."""
        line, column = self._place(self.text, self.position if position is None else position)
        return UnreadableFileError(_file_issue(self.path, line, column, what, self.shape))

    def _fill(self) -> None:
        """More text, as much again as is waiting; what has been read is forgotten."""
        self.line, self.column = self._place(self.text, self.position)
        self.text, self.position = self.text[self.position :], 0
        chunk = self.file.read(max(self.window, len(self.text)))
        if self.line == self.column == 1 and not self.text and (wrong := _wrong_encoding(chunk)):
            raise self.broken(wrong)
        waiting = len(self.decoder.getstate()[0])
        self.ended = not chunk
        try:
            self.text += self.decoder.decode(chunk, final=self.ended)
        except UnicodeDecodeError as error:
            before = self.text + error.object[: error.start].decode(errors="replace")
            line, column = self._place(before, len(before))
            what = "is cut off inside a character" if self.ended and waiting else "is not UTF-8 text"
            raise UnreadableFileError(_file_issue(self.path, line, column, what, self.shape)) from None

    def _place(self, text: str, position: int) -> tuple[int, int]:
        newlines = text.count("\n", 0, position)
        if not newlines:
            return self.line, self.column + position
        return self.line + newlines, position - text.rfind("\n", 0, position)

    def _refused_at(self) -> int:
        for match in _TOKENS.finditer(self.text, self.position):
            if match.group(1):
                return match.start()
        return self.position


def _line(path: Path, number: int, offset: int, raw: bytes, shape: str) -> Line:
    def broken(what: str, column: int = 1) -> Line:
        return Line(number, offset, None, _file_issue(path, number, column, what, shape, "the line"))

    if number == 1 and (wrong := _wrong_encoding(raw)):
        return broken(wrong)
    if len(raw) == RECORD_LIMIT:
        return broken(f"has more than {RECORD_LIMIT:,} bytes")
    try:
        text = raw.decode().rstrip("\r\n")
        record = _DECODER.decode(text)
    except UnicodeDecodeError as error:
        return broken("is not UTF-8 text", len(raw[: error.start].decode()) + 1)
    except (ValueError, RecursionError) as error:
        listed = number == 1 and text.lstrip().startswith("[") and isinstance(error, json.JSONDecodeError)
        what = "starts a JSON list, not JSON Lines" if listed else _parser_says(error)
        return broken(what, getattr(error, "pos", 0) + 1)
    if number == 1 and isinstance(record, list):
        return broken("is a JSON list, not JSON Lines")
    return Line(number, offset, record)


def _not_a_list(reader: _Reader, opening: str) -> str:
    if not opening:
        return "is empty"
    if opening != "{":
        return "is not JSON"
    first = reader.value()
    if reader.peek() == "{":
        return "is JSON Lines (one record a line), not one JSON list"
    keys = ", ".join(map(repr, list(first)[:4])) if isinstance(first, dict) else ""
    return f"has an object at its top level (with {keys or 'no fields'}), not a list"


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
        remedy = "Correct the path in the configuration, or put the file there."
        raise UnreadableFileError(DataIssue(str(path), "", "the file", f"{what}. {remedy}")) from None


def _wrong_encoding(head: bytes) -> str | None:
    return next((what for mark, what in _WRONG_ENCODINGS.items() if head.startswith(mark)), None)


def _file_issue(path: Path, line: int, column: int, what: str, shape: str, field: str = "the file") -> DataIssue:
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
    raise _Refused(f"holds {name}, which is not JSON")


# Python's own parser keeps the last of two equal fields and reads NaN; both hide a broken file.
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
