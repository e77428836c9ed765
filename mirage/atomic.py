"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import BinaryIO

from rich.filesize import decimal

from mirage.fault_injection import fault_point


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that appears at `path` complete and durable, or not at all.

    The bytes go to a sibling file (so the final rename stays on one device), are flushed to the disk, and then take the
    place of `path` in one step: this is where a checkpoint becomes visible. On any exception, Ctrl-C included, the old
    file stays and nothing else is left. After SIGKILL a `.<name>.<pid>.partial` file may remain; `sweep_partials`
    removes those.

    Raises:
        FileNotFoundError: If the folder of `path` does not exist.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            fault_point("write.before_first_byte", path)
            yield file
            file.flush()
            os.fsync(file.fileno())
        fault_point("write.after_fsync", path)
        os.replace(partial, path)
        fault_point("write.after_rename", path)
        sync_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Guarantees that `path` holds `text` (UTF-8, with "?" for half a character), or what it held before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text.encode(errors="replace"))


@contextmanager
def whole_folder(to: Path, size: int = 0) -> Iterator[Path]:
    """A folder that takes the name `to` when the block ends, complete and on the disk; after an error nothing is left.

    Refused with a ValueError before the first byte if fewer than `size` bytes of the disk are free.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(to.parent).free
    if size > free:
        raise ValueError(f"{to} needs {decimal(size)} and the disk has {decimal(free)} free. Free some space.")
    partial = to.with_name(f".{to.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        yield partial
        for file in filter(Path.is_file, partial.rglob("*")):
            file.chmod(partial.stat().st_mode & 0o666)  # safetensors writes for its owner alone
            with file.open("rb") as written:
                os.fsync(written.fileno())
        sync_folder(partial)
        os.replace(partial, to)
        sync_folder(to.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def free_name(folder: Path) -> Path:
    """Where `folder` goes so that nothing in it is overwritten: the first of `<folder>.1`, `<folder>.2`, ... that is free.

    Raises:
        ValueError: If the current folder is in it, which would move with it.
    """
    real = folder.resolve()
    if Path.cwd().is_relative_to(real):
        raise ValueError(
            f"{real} holds earlier results and is the current folder. Change to another, or choose another."
        )
    return next(path for path in (real.with_name(f"{real.name}.{number}") for number in count(1)) if not path.exists())


def sync_folder(folder: Path) -> None:
    """Guarantees that the names in `folder` are on the disk: without this a power cut may undo a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_partials(folder: Path) -> list[Path]:
    """Deletes what killed writers left below `folder`, and returns its paths. For the start, before anything is written."""
    stale = [path for path in sorted(folder.rglob(".*.partial")) if not _alive(path)]
    for path in stale:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return stale


def _alive(partial: Path) -> bool:
    number = partial.name.split(".")[-2]
    if not number.isdecimal() or int(number) == os.getpid():
        return False  # a restarted container often gets the process number of the one that was killed
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # of another user, and alive
    return True
