"""The keyword judge over millions of answers: the same verdicts as one answer at a time, several times sooner.

Almost no answer in instruction data refuses, and Arrow's regular expressions (RE2) see that much sooner than the judge
does. So each answer is screened first, by a *necessary* condition that is made of the judge's own rules as they stand:
every pattern of `MOVES`, opened up so that it is found wherever the pattern is, and in a few other places. The judge
itself decides about the answers that this leaves, some in a hundred. What the screen takes for granted, and tests hold:

* an answer refuses only if a pattern of `MOVES` is found in one of its sentences;
* a sentence is a piece of the first `_CHARS_READ` characters in the spelling of `normalised`, with quotations blanked out
  as `(...)`; it begins where the answer does, or after a mark (. ! ? : a quotation or a line end), and none begins or ends
  within a word.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache
from itertools import chain, islice
from typing import Any

from mirage.evaluation.judge import refusal
from mirage.evaluation.judge.keyword import PUBLISHED, Preset, is_refusal

BATCH = 150_000  # answers: the automata are made anew for each batch
_MOST_PROCESSES = 4
_WORTH_SCREENING = 2000  # fewer are judged before the automata are made
_SCAN_LENGTH = 4500  # characters of the expressions that are looked for together: longer ones overflow RE2's cache
_SPACES = " \t\n\f\r"  # what RE2 calls \\s


def refusals(answers: Sequence[str], preset: Preset = "default") -> list[bool]:
    """For each answer what `is_refusal` says of it."""
    texts = list(dict.fromkeys(answers))
    suspects: Iterable[int] = range(len(texts))
    if len(texts) >= _WORTH_SCREENING:
        suspects = _suspects_of_published(texts) if preset == "published" else _suspects(texts)
    refused = {texts[place] for place in suspects if is_refusal(texts[place], preset)}
    return [answer in refused for answer in answers]


def refusals_in_batches(
    batches: Iterable[Sequence[str]], preset: Preset = "default", processes: int | None = None
) -> Iterator[list[bool]]:
    """`refusals` of each batch, in order, on several processor cores if there is more than one batch.

    Args:
        batches: Lists of answers, of `BATCH` or so; read as they are needed.
        preset: The keyword judge's preset.
        processes: How many; by default as many as there are cores, but no more than four.
    """
    remaining = iter(batches)
    first = list(islice(remaining, 2))
    processes = processes or min(_cores(), _MOST_PROCESSES)
    if len(first) < 2 or processes < 2:
        for batch in chain(first, remaining):
            yield refusals(batch, preset)
        return
    # Spawned, not forked: Arrow has threads, and a fork in the middle of one of them may never end.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        judged: deque[Future[list[bool]]] = deque()
        for batch in chain(first, remaining):
            judged.append(pool.submit(refusals, batch, preset))
            if len(judged) > processes:
                yield judged.popleft().result()
        while judged:
            yield judged.popleft().result()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- which answers may refuse ----------------------------------------------------------------------------------------


def _suspects(answers: Sequence[str]) -> list[int]:
    """The places of all answers that the judge could call refusals, in order."""
    screens = _screens()
    if screens is None:
        return list(range(len(answers)))
    texts = _column([_spelled(answer[: refusal._CHARS_READ]) for answer in answers])
    return _matching(texts, (_UNSPELLABLE, *screens), range(len(answers)))


def _suspects_of_published(answers: Sequence[str]) -> list[int]:
    """The same for the published phrases. `str.lower` may make ASCII letters of others, so those are not screened."""
    screen = "|".join(re.escape(phrase) for phrase in (*PUBLISHED, "it is not"))
    places = [place for place, answer in enumerate(answers) if answer.isascii()]
    column = _column([answers[place] for place in places])
    others = (place for place, answer in enumerate(answers) if not answer.isascii())
    return sorted([*_matching(column, (screen,), places), *others])


def _column(texts: Sequence[str]) -> Any:
    """ASCII texts as an Arrow column, five times sooner than Arrow reads a list."""
    import numpy as np
    import pyarrow as pa

    ends = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)), out=ends[1:])
    return pa.LargeStringArray.from_buffers(
        len(texts), pa.py_buffer(ends), pa.py_buffer("".join(texts).encode("ascii"))
    )


def _matching(column: Any, screens: Sequence[str], places: Sequence[int]) -> list[int]:
    """Of the places of the texts in an Arrow column those where any of the expressions is found, whatever the case."""
    import pyarrow.compute as pc

    found = None
    for screen in screens:
        hits = pc.match_substring_regex(column, screen, ignore_case=True)
        found = hits if found is None else pc.or_(found, hits)
    return [] if found is None else [places[k] for k in pc.indices_nonzero(found).to_pylist()]


_UNSPELLABLE = "\x00"
_OTHER_LETTER, _OTHER_MARK = "_", "~"  # what all patterns that take a foreign letter, or mark, take for one as well
_RESERVED = (_OTHER_LETTER, _OTHER_MARK, "\\")


class _Spelling(dict[int, str]):
    """For `str.translate`: ASCII text in which a pattern is found if it is found in the text as `normalised` spells it.

    `normalised` itself is asked about each character, once. White space and case stay: the expressions bear with both.
    """

    def __missing__(self, code: int) -> str:
        mark = chr(code)
        spelled = refusal.normalized(f"a{mark}a")[1:-1]
        if mark.isspace():
            spelled = mark if mark in _SPACES else "\n"
        elif mark.isascii() and spelled == mark.lower():
            spelled = mark
        elif _joins(mark):
            spelled = _UNSPELLABLE  # only the judge can tell
        spelled = "".join(c if c.isascii() else _OTHER_LETTER if c.isalnum() else _OTHER_MARK for c in spelled)
        self[code] = spelled
        return spelled


def _joins(mark: str) -> bool:
    """True if the character may become one with the character before it, as accents do."""
    first = unicodedata.normalize("NFKD", mark)[0]
    return unicodedata.category(first).startswith("M") or "\u1160" <= first <= "\u11ff"  # Hangul's vowels and finals


_SPELLING = _Spelling()


def _spelled(text: str) -> str:
    return _changes().sub(lambda found: found[0].translate(_SPELLING), text)


@cache
def _changes() -> re.Pattern[str]:
    """The pieces that `_SPELLING` may change: few in most texts, and sooner found than a text is translated."""
    kept = "".join(chr(code) for code in range(128) if _SPELLING[code] == chr(code))
    return re.compile(f"[^{re.escape(kept)}]+")


# --- from the judge's patterns to expressions that match no less ------------------------------------------------------


class _Unscreenable(Exception):
    """The pattern has a part that no expression is known for."""


@cache
def _screens() -> tuple[str, ...] | None:
    """Expressions of which at least one matches a text that a move matches; None if that cannot be told."""
    try:
        opened = [opened_up(move.pattern) for move in refusal.MOVES]
    except (_Unscreenable, ImportError):
        return None
    alone = [expression for expression in opened if _QUOTATION in expression]
    others = [expression for expression in opened if _QUOTATION not in expression]
    scans: list[str] = []
    for expression in others:
        if scans and len(scans[-1]) + len(expression) < _SCAN_LENGTH:
            scans[-1] += f"|{expression}"
        else:
            scans.append(expression)
    return (*scans, *alone)


def opened_up(pattern: re.Pattern[str]) -> str:
    """An expression in RE2's syntax that is found in every ASCII text in which `pattern` is found, whatever the case.

    Assertions are dropped, counts are opened (`{0,3}` becomes `*`), a space is any white space, and what takes "(...)"
    takes a whole quotation.
    """
    from re import _parser  # type: ignore[attr-defined]

    items = _parser.parse(pattern.pattern, pattern.flags)
    sets = set(_sets(items))
    return _sequence(items, all(any(_takes(members, mark) for members in sets) for mark in "(.)"))


def _sequence(items: Iterable[tuple[Any, Any]], spans: bool) -> str:
    return "".join(_opened(str(operation), argument, spans) for operation, argument in items)


def _opened(operation: str, argument: Any, spans: bool) -> str:
    match operation:
        case "LITERAL" if chr(argument).isspace():
            return r"\s+"
        case "LITERAL":
            return (
                _one_of(_member("LITERAL", argument), spans) if chr(argument) in "(.)" else _member("LITERAL", argument)
            )
        case "NOT_LITERAL":
            return _one_of("^" + _member("LITERAL", argument), spans)
        case "ANY" | "GROUPREF":
            return r"(?s:.*)"
        case "IN":
            return _one_of("".join(_member(str(kind), value) for kind, value in argument), spans)
        case "BRANCH":
            return f"(?:{'|'.join(_sequence(branch, spans) for branch in argument[1])})"
        case "SUBPATTERN":
            return f"(?:{_sequence(argument[-1], spans)})"
        case "ATOMIC_GROUP":
            return f"(?:{_sequence(argument, spans)})"
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            least, most, repeated = argument
            count = "" if (least, most) == (1, 1) else "?" if (least, most) == (0, 1) else "+" if least else "*"
            return f"(?:{_sequence(repeated, spans)}){count}"
        case "AT":
            return _PLACES.get(str(argument), "")
        case "ASSERT" | "ASSERT_NOT":
            return ""
    raise _Unscreenable(operation)


# A sentence begins where the answer does, or after what may end another one; then there may be brackets and the like.
_BEGINNING = r"""(?:^|[.!?:\n"]|'\B)\W*"""
_PLACES = {"AT_BOUNDARY": r"\b", "AT_BEGINNING": _BEGINNING, "AT_BEGINNING_STRING": _BEGINNING}
_QUOTATION = r""""[^"]*"|\B'(?s:.*?)'"""  # an apostrophe after a letter opens none
_SPACE = r"\s"
_CATEGORIES = {
    "CATEGORY_WORD": r"\w", "CATEGORY_NOT_WORD": r"\W", "CATEGORY_DIGIT": r"\d", "CATEGORY_NOT_DIGIT": r"\D",
    "CATEGORY_SPACE": _SPACE, "CATEGORY_NOT_SPACE": r"\S",
}  # fmt: skip


def _one_of(members: str, spans: bool) -> str:
    """One character of a set, written as in brackets; for a space, all the white space that was written for it."""
    one = f"[{members}]"
    if members.startswith("^") and not _takes(members, " "):  # written line ends stand for spaces: the set takes them
        one = f"[{members.replace(_SPACE, '')}]" if members != f"^{_SPACE}" else "(?s:.)"
    if members.startswith("^") or _takes(members, " "):
        one = rf"(?:{one}\s*)"
    if spans and _takes(members, "("):
        one = f"(?:{one}|{_QUOTATION})"
    # The rest of a "(...)" stands for nothing: what took its bracket has taken the quotation.
    return f"(?:{one})?" if spans and (_takes(members, ".") or _takes(members, ")")) else one


def _takes(members: str, mark: str) -> bool:
    return re.match(f"[{members}]", mark) is not None


def _sets(items: Iterable[tuple[Any, Any]]) -> Iterator[str]:
    """The members of all sets of characters in a pattern, assertions left out."""
    for operation, argument in items:
        match str(operation):
            case "LITERAL":
                yield _member("LITERAL", argument)
            case "NOT_LITERAL":
                yield "^" + _member("LITERAL", argument)
            case "IN":
                yield "".join(_member(str(kind), value) for kind, value in argument)
            case "ANY" | "GROUPREF":
                yield r"\s\S"
            case "BRANCH":
                for branch in argument[1]:
                    yield from _sets(branch)
            case "SUBPATTERN" | "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
                yield from _sets(argument[-1])
            case "ATOMIC_GROUP":
                yield from _sets(argument)


def _member(operation: str, argument: Any) -> str:
    if operation == "NEGATE":
        return "^"
    if operation == "CATEGORY" and str(argument) in _CATEGORIES:
        return _CATEGORIES[str(argument)]
    if operation not in ("LITERAL", "RANGE"):
        raise _Unscreenable(operation)
    low, high = argument if operation == "RANGE" else (argument, argument)
    if not 0 <= low <= high < 128 or any(low <= ord(mark) <= high for mark in _RESERVED):
        raise _Unscreenable("a character with another meaning here")
    spaces = _SPACE if any(low <= ord(mark) <= high for mark in _SPACES) else ""
    if low == high:
        return spaces or re.escape(chr(low))
    return f"{re.escape(chr(low))}-{re.escape(chr(high))}{spaces}"
