"""The retain set of `mirage prepare`: which examples, in which order, and as a folder that the `Jsonl` source reads."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mirage.atomic import replacing
from mirage.data.mixture import Mixture, RetainSet
from mirage.errors import DataError
from mirage.images import FileImage, resolve_image
from mirage.prepare.responders import file_hash
from mirage.schema import Example, Picture, short_hash

PICTURES = "pictures"


def mixed(first: Sequence[Example], others: Sequence[RetainSet], size: int | None, seed: int) -> Mixture | None:
    """The retain set: `first` whole (or `size` sampled from it), filled up to `size` from the others by their weights.

    Without a size, all of `first` and as much of the others as their weights allow. None if the size is 0.

    Raises:
        ValueError: If the size is negative.
        DataError: If there is nothing to sample from, or not enough.
    """
    if size == 0:
        return None
    if size is not None and size < 0:
        raise ValueError(f"--retain_size is {size}: it must be 0 or more.")
    sets = [first, *(other.source.retain() for other in others)]
    if not any(map(len, sets)):
        raise DataError("There is no retain set. List a source that has one under --retain, or set --retain_size 0.")
    counts = [len(first) if size is None else min(len(first), size)]
    if others and size != counts[0]:
        weights, rest = [other.weight for other in others], None if size is None else size - counts[0]
        counts += Mixture(sets[1:], weights, rest).counts
    if size is not None and sum(counts) < size:
        raise DataError(
            f"--retain_size is {size}, and the retain set of the source has {len(first)} examples. "
            "Lower it, or list further sources under --retain."
        )
    taken = [(each, count) for each, count in zip(sets, counts, strict=False) if count]
    return Mixture([each for each, _ in taken], [count for _, count in taken], sum(counts), seed)


def retain_lines(examples: Sequence[Example], out: Path) -> Iterator[dict[str, Any]]:
    """Lines of `retain.jsonl`, each after its picture was put below `out`. An id that returns gets `#2`, `#3`, ..."""
    seen: Counter[str] = Counter()
    for index in range(len(examples)):
        example = examples[index]
        seen[example.id] += 1
        line: dict[str, Any] = {"id": example.id if seen[example.id] == 1 else f"{example.id}#{seen[example.id]}"}
        if example.image is not None:
            line["image"] = placed_picture(example.image, example.source, out)
        line |= {"prompt": example.prompt, "answer": example.answer}
        if example.later_turns:
            line["later"] = [{"prompt": turn.question, "answer": turn.answer} for turn in example.later_turns]
        yield line


def placed_picture(picture: Picture, source: str, out: Path) -> str:
    """Where below `out` the picture is now: a hard link to the same file, a copy on another device, or a new PNG."""
    folder = out / PICTURES / _plain(source)
    stem = Path(picture.name).stem[:60]
    original = resolve_image(picture.root, picture.name) if isinstance(picture, FileImage) else None
    if original is not None:  # named by content: two roots may hold two pictures of one name
        path = folder / _plain(f"{stem}-{file_hash(original)[:12]}{original.suffix}")
    else:
        path = folder / _plain(f"{stem}-{short_hash(picture.name)[:12]}.png")
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if original is None:
            with replacing(path) as file:
                picture.open().save(file, format="PNG")
        else:
            _link_or_copy(original, path)
    return path.relative_to(out).as_posix()


def _link_or_copy(original: Path, path: Path) -> None:
    try:
        os.link(original, path)
    except OSError:  # another device, or a file system without links
        with replacing(path) as file, original.open("rb") as source:
            shutil.copyfileobj(source, file)


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".") or "unnamed"
