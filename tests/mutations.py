"""Damaged and hostile variants of a sound file, as hypothesis strategies: its bytes, or the JSON values in it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import yaml
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]

# Values that readers have stumbled over: of another type, out of range, leaving the folder, or steering what shows them.
HOSTILE_VALUES: list[Any] = [
    None, True, False, 0, -1, 2, 0.5, 1e308, float("nan"), float("inf"), 10**30, "", " ", "x", "0", "null", "a" * 3000,
    "../secret.png", "/etc/passwd", "~/x.png", "file:///etc/passwd", "http://127.0.0.1:9/x", "a/../../secret.png",
    "secret.lnk", "C:\\x", "\x00", "\x1b[2J[red]", "\ud800", "\u2028", "<image>", "{0.__class__}", "${HOME}",
    "[/red]", "hostile_module.Attack", {"class_path": "hostile_module.Attack"}, [], {}, [[]], [None], {"": ""},
    ["x", 1], {"id": None},
]  # fmt: skip
HOSTILE_BYTES = [
    b"", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800", b"\n", b"\r", b"\n\n", b",", b"]", b"}", b"[",
    b'"',     b"NaN", b"1e999", b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b'"id": "x", ', b"\xe2\x80\xa8", b"\xff\xd9",
    b"!!python/name:os.system",     b"&a [*a]", b": - ? |", b"\t", b"null", b"true", b"-0", b"{}",
]  # fmt: skip


@st.composite
def damaged_bytes(draw: Draw, sound: bytes) -> bytes:
    """The bytes with one to four places overwritten, cut out, doubled or inserted into, or cut off at one of them."""
    data = sound
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from((0, 0, 1, 1, 2, 8, 100, len(data)))))
        other = draw(st.integers(0, len(data)))
        flipped = bytes(byte ^ 0x10 for byte in data[start:end])
        doubled = data[other : other + end - start]
        piece = draw(st.sampled_from((*HOSTILE_BYTES, flipped, doubled)) | st.just(flipped) | st.binary(max_size=8))
        data = data[:start] + piece + data[end:]
    return data


@st.composite
def damaged_value(draw: Draw, sound: Any) -> Any:
    """The JSON value with one to three of the values in it replaced, removed, doubled or renamed."""
    value = copy.deepcopy(sound)
    for _ in range(draw(st.integers(1, 3))):
        if not (places := list(_places(value))):
            break
        inside, key = draw(st.sampled_from(places))
        how = draw(st.sampled_from(("replace", "replace", "replace", "remove", "double", "move")))
        if how == "replace":
            inside[key] = copy.deepcopy(draw(st.sampled_from(HOSTILE_VALUES)))
        elif how == "remove":
            del inside[key]
        elif isinstance(inside, list):
            inside.insert(draw(st.integers(0, len(inside))), copy.deepcopy(inside[key]))
        else:
            other = draw(st.sampled_from((*inside, "unknown", "", "../secret", "/etc/hosts")))
            inside[other] = inside.pop(key) if how == "move" else copy.deepcopy(inside[key])
    return value


def written(value: Any, form: str) -> bytes:
    """A sound file: `form` is json, lines (a list, one item a line), yaml or bytes."""
    if form == "bytes":
        return bytes(value)
    if form == "lines":
        text = "".join(json.dumps(line) + "\n" for line in value)
    else:
        text = json.dumps(value) if form == "json" else yaml.safe_dump(value)
    return text.encode(errors="replace")  # half a character can be in JSON, escaped, but not in YAML


def damaged(sound: Any, form: str) -> st.SearchStrategy[bytes]:
    """What may be in a file instead of what should be; the forms are those of `written`."""
    as_bytes = damaged_bytes(written(sound, form))
    return as_bytes if form == "bytes" else damaged_value(sound).map(lambda value: written(value, form)) | as_bytes


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every list and object in a JSON value, with each of its places."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])
