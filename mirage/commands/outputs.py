"""Whether a command's output can be written, checked before the work is done."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory


def check_folder(out: Path, option: str = "--out") -> None:
    """Guarantees that files can be written to the folder `out`, which need not exist; leaves nothing behind.

    Raises:
        ValueError: If they cannot; it names `option`.
    """
    try:
        there = next(path for path in (out, *out.parents) if path.exists())
        if not there.is_dir():
            raise ValueError(f"{there} is a file, not a folder. Choose another {option}.")
        with TemporaryDirectory(dir=there):  # the rights alone do not suffice: /proc grants them, and makes nothing
            pass
    except OSError as error:
        raise ValueError(f"{out} cannot be written to ({error.strerror}). Choose another {option}.") from error


def check_file(out: Path, option: str = "--out") -> None:
    """Guarantees that a file `out` can be written, in place of an earlier one; leaves nothing behind.

    Raises:
        ValueError: If it cannot; it names `option`.
    """
    check_folder(out.parent, option)
    if out.exists() and not out.is_file():
        raise ValueError(f"{out} is not a file. Choose another {option}.")


def check_new_folder(out: Path, option: str = "--out") -> None:
    """Guarantees that a folder `out` can be made beside its name and then take it; leaves nothing behind.

    Raises:
        ValueError: If it cannot, or `out` is there and not an empty folder; it names `option`.
    """
    check_folder(out if out.exists() else out.parent, option)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} exists and is not an empty folder. Choose another one for {option}.")
