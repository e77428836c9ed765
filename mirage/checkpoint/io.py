"""Checkpoints that are whole or absent, loaded without running anything that is in them, and named `last` and `best`.

A folder `checkpoints/` holds `step-00000040.ckpt` and older ones, and the small text files `last` and `best`, each
naming one of them. A checkpoint becomes visible in `mirage.atomic.replacing`, by one rename. `callback.py` decides when
one is written; `resume.py` makes a resumed run equal to an uninterrupted one.
"""

from __future__ import annotations

import errno
import pickle
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from mirage.atomic import replacing
from mirage.fault_injection import fault_point

WORDS = ("last", "best")
OTHER_WEIGHTS = "Other people's weights are given as a Hugging Face folder with safetensors: --model.pretrained DIR."


class CheckpointError(ValueError):
    """A file that is there and is damaged, hostile, or no checkpoint of mirage."""


class CheckpointNotFoundError(FileNotFoundError):
    """A checkpoint was asked for and there is none."""


class CheckpointSaveError(RuntimeError):
    """A checkpoint could not be written; the one before it is untouched."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes each checkpoint whole and durable or not at all; reads tensors and plain values only, whoever asks."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """`path` holds the checkpoint, or what it held before.

        Raises:
            CheckpointSaveError: If the disk is full or refuses, or if the checkpoint could not be loaded again because
                it holds objects other than tensors and plain values.
        """
        if storage_options is not None:
            raise TypeError("AtomicCheckpointIO writes local files and takes no storage_options.")
        path = Path(path)
        needed = sum(_storage_sizes(checkpoint).values())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                _write(checkpoint, file, path, needed)
                file.flush()
                foreign = torch.serialization.get_unsafe_globals_in_checkpoint(file.name)
                if foreign:
                    raise CheckpointSaveError(
                        f"{path}: not saved, it could not be loaded again: it holds {', '.join(sorted(foreign))}. "
                        "Only tensors and plain values belong in a state_dict or among the saved hyper-parameters."
                    )
        except OSError as error:
            raise CheckpointSaveError(_why_not_saved(error, path, needed)) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """What `read_checkpoint` returns. `weights_only` is ignored: it is always True."""
        return read_checkpoint(Path(path), map_location)


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The checkpoint in `path`, every byte checked, without running anything that is in it.

    Raises:
        CheckpointNotFoundError: If there is no such file.
        CheckpointError: If it is damaged, hostile, or not a checkpoint of mirage.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a checkpoint file. {OTHER_WEIGHTS}")
    if not path.exists():
        raise CheckpointNotFoundError(f"There is no checkpoint {path}. {_beside(path.parent)}")
    damage = _damage(path)
    if damage:
        raise CheckpointError(f"{path} is no whole checkpoint: {damage}. {_beside(path.parent, path)} {OTHER_WEIGHTS}")
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        # not chained: torch's text recommends loading the file unsafely
        asks_for = re.search(r"GLOBAL (\S+)", str(error))
        what = f" (it asks for {asks_for[1]})" if asks_for else ""
        raise CheckpointError(
            f"{path} holds objects other than tensors and plain values{what} and was not loaded. {OTHER_WEIGHTS}"
        ) from None
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}). {OTHER_WEIGHTS}") from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "pytorch-lightning_version"} <= checkpoint.keys():
        raise CheckpointError(f"{path} is a PyTorch file, but no checkpoint of mirage. {OTHER_WEIGHTS}")
    return checkpoint


def resolve_checkpoint(path_or_word: str, run_folder: Path) -> Path:
    """The checkpoint file that `last`, `best` or a path means. A file called `last` in the working folder is `./last`.

    Raises:
        CheckpointNotFoundError: If it is not there.
        CheckpointError: If it is a folder, or if `last` or `best` does not hold a file name.
    """
    if path_or_word not in WORDS:
        path = Path(path_or_word).expanduser()
        if path.is_dir():
            inside = [word for word in WORDS if (path / "checkpoints" / word).is_file()]
            if inside:
                named = (path / "checkpoints" / inside[0]).read_text().strip()
                raise CheckpointError(f"{path} is a run folder. Give one of its files: {path / 'checkpoints' / named}.")
            raise CheckpointError(f"{path} is a folder, not a checkpoint file. {OTHER_WEIGHTS}")
        if not path.exists():
            raise CheckpointNotFoundError(f"There is no checkpoint {path}. {_beside(path.parent)}")
        return path
    folder = run_folder / "checkpoints"
    pointer = folder / path_or_word
    if not pointer.is_file():
        raise CheckpointNotFoundError(
            f"You asked for the checkpoint {path_or_word!r}, but {run_folder} has none. {_beside(folder)} "
            "To start afresh, leave --ckpt_path out."
        )
    name = pointer.read_text(encoding="utf-8", errors="replace").strip()
    if not re.fullmatch(r"[\w=.-]+\.ckpt", name):
        raise CheckpointError(f"{pointer} does not hold the name of a checkpoint. {_beside(folder)}")
    if not (folder / name).exists():
        raise CheckpointNotFoundError(f"{pointer} names {name}, which is gone. {_beside(folder)}")
    return folder / name


class _Watched:
    """A file for torch.save that remembers why a write failed: torch replaces the reason by `unexpected pos`."""

    def __init__(self, file: BinaryIO, path: Path, half: int) -> None:
        self.error: BaseException | None = None
        self.flush = file.flush
        self._file, self._path, self._left = file, path, half

    def write(self, data: memoryview | bytes) -> int:
        try:
            written = self._file.write(data)
            before, self._left = self._left, self._left - written
            if self._left <= 0 < before:
                self._file.flush()
                fault_point("checkpoint.after_half", self._path)
            return written
        except BaseException as error:
            self.error = self.error or error
            raise


def _write(checkpoint: dict[str, Any], file: BinaryIO, path: Path, needed: int) -> None:
    watched = _Watched(file, path, max(needed // 2, 1))
    try:
        torch.save(checkpoint, watched)  # type: ignore[arg-type]  # `write` and `flush` are all it calls
    except BaseException:
        if watched.error is not None:
            raise watched.error from None
        raise


def _why_not_saved(error: OSError, path: Path, needed: int) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path.parent).free
        why = f"the disk is full: {_size(needed)} needed, {_size(free)} free"
    else:
        why = error.strerror or str(error)
    return (
        f"{path}: checkpoint not saved, {why}. {_beside(path.parent)} Free some space or fix access, then resume there."
    )


def _damage(path: Path) -> str:
    """Why these are not the bytes that were written, or an empty text. torch.load itself checks no checksum."""
    size = path.stat().st_size
    if size == 0:
        return "it is empty"
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                cut = file.read(4) == b"PK\x03\x04"
            return "its end is missing" if cut else "it is of another format"
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            claimed = sum(part.file_size for part in parts)
            if claimed > size or any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                return f"its parts claim {_size(claimed)} in a file of {_size(size)}"
            broken = archive.testzip()
    except Exception as error:  # zipfile raises half a dozen kinds on broken headers
        return f"its table of contents is broken ({error})"
    return f"its part {broken} does not match its checksum" if broken else ""


def _beside(folder: Path, but: Path | None = None) -> str:
    """Which checkpoints are in `folder`, as a sentence."""
    names = sorted(path.name for path in folder.glob("*.ckpt") if path != but)
    shown = ", ".join(names[-5:])
    return (
        f"In {folder} there is: {shown}." if names else f"There is no{'' if but is None else ' other'} one in {folder}."
    )


def _storage_sizes(value: Any) -> dict[int, int]:
    """Address and size in bytes of every distinct tensor storage in nested containers."""
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        return {storage.data_ptr(): storage.nbytes()}
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple | set) else ()
    return {address: size for item in inside for address, size in _storage_sizes(item).items()}


def _size(count: int) -> str:
    power = min(max(len(str(count)) - 1, 0) // 3, 4)
    return f"{count / 1000**power:.{1 if power else 0}f} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"
