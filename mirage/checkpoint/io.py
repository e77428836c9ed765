"""Checkpoints that are whole or absent, loaded without running anything that is in them, and named `last` and `best`.

A folder `checkpoints/` holds `step-00000040.ckpt` and older ones, and the small text files `last` and `best`, each
naming one of them. A checkpoint becomes visible in `mirage.atomic.replacing`, by one rename. `callback.py` decides when
one is written; `resume.py` makes a resumed run equal to an uninterrupted one.
"""

from __future__ import annotations

import errno
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from rich.filesize import decimal
from torch.utils._pytree import tree_leaves

from mirage.atomic import replacing
from mirage.fault_injection import fault_point

REST = "rest.ckpt"  # what makes a folder a checkpoint of split weights: see sharded.py
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
        """`path`, a local file, holds the checkpoint, or what it held before.

        Raises:
            CheckpointSaveError: If the disk is full or refuses, or if the checkpoint could not be loaded again because
                it holds objects other than tensors and plain values.
        """
        path = Path(path)
        storages = [value.untyped_storage() for value in tree_leaves(checkpoint) if isinstance(value, torch.Tensor)]
        needed = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())  # shared ones once
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                torch.save(checkpoint, _Halfway(file, path, max(needed // 2, 1)))  # type: ignore[arg-type]
                file.flush()
                foreign = torch.serialization.get_unsafe_globals_in_checkpoint(file.name)
                if foreign:
                    raise CheckpointSaveError(
                        f"{path}: not saved, it could not be loaded again: it holds {', '.join(sorted(foreign))}. "
                        "Only tensors and plain values belong in a state_dict or among the saved hyper-parameters."
                    )
        except (OSError, RuntimeError) as error:
            reason = error if isinstance(error, OSError) else error.__context__  # torch covers it with "unexpected pos"
            if not isinstance(reason, OSError):
                raise
            why = reason.strerror or str(reason)
            if reason.errno in (errno.ENOSPC, errno.EDQUOT):
                free = shutil.disk_usage(path.parent).free
                why = f"the disk is full: {decimal(needed)} needed, {decimal(free)} free"
            raise CheckpointSaveError(
                f"{path}: checkpoint not saved, {why}. {_others(path)} Free some space or fix access, then resume there."
            ) from reason

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """What `read_checkpoint` returns. `weights_only` is ignored: it is always True."""
        return read_checkpoint(Path(path), map_location)


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The checkpoint in `path`, every byte checked, without running anything that is in it.

    From a folder, in which split weights are saved, the weights are whole and the optimizer is left out.

    Raises:
        CheckpointNotFoundError: If there is no such file.
        CheckpointError: If it is damaged, hostile, or not a checkpoint of mirage.
    """
    _check_file(path)
    if path.is_dir():
        from mirage.checkpoint.sharded import assembled

        return assembled(path)
    if damage := _damage(path):
        raise CheckpointError(f"{path} is no whole checkpoint: {damage}. {_others(path)} {OTHER_WEIGHTS}")
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        asks_for = re.search(r"GLOBAL (\S+)", str(error))
        why = f"it asks for {asks_for[1]}: only tensors and plain values are" if asks_for else type(error).__name__
        # not chained: torch's text recommends loading the file unsafely
        raise CheckpointError(f"{path} was not loaded ({why}). {OTHER_WEIGHTS}") from None
    if not isinstance(checkpoint, dict) or not {"state_dict", "pytorch-lightning_version"} <= checkpoint.keys():
        raise CheckpointError(f"{path} is a PyTorch file, but no checkpoint of mirage. {OTHER_WEIGHTS}")
    return checkpoint


def resolve_checkpoint(path_or_word: str, run_folder: Path) -> Path:
    """The checkpoint that `last`, `best` or a path means. A file called `last` in the working folder is `./last`.

    Raises:
        CheckpointNotFoundError: If it is not there, or `last` or `best` does not hold the name of one that is.
        CheckpointError: If the path is a folder.
    """
    if path_or_word not in ("last", "best"):
        path = Path(path_or_word).expanduser()
        _check_file(path)
        return path
    pointer = run_folder / "checkpoints" / path_or_word
    name = pointer.read_text(encoding="utf-8", errors="replace").strip() if pointer.is_file() else None
    named = pointer.with_name(name) if name and re.fullmatch(r"[\w=.-]{1,200}\.ckpt", name, re.ASCII) else None
    if named is None or not named.exists():
        what = "does not exist" if name is None else f"names {name[:100]!r}, and there is no such checkpoint"
        raise CheckpointNotFoundError(
            f"You asked for the checkpoint {path_or_word!r}, but {pointer} {what}. {_others(pointer)} "
            "To start afresh, leave --ckpt_path out."
        )
    return named


def _check_file(path: Path) -> None:
    if path.is_dir() and not (path / REST).is_file():  # perhaps that of a run
        others = _others(path / "checkpoints" / "last")
        raise CheckpointError(f"{path} is a folder, not a checkpoint file. {others} {OTHER_WEIGHTS}")
    if not path.exists():
        raise CheckpointNotFoundError(f"There is no checkpoint {path}. {_others(path)}")


class _Halfway:
    """A file for torch.save, which calls `write` and `flush` alone, with a fault point when half is written."""

    def __init__(self, file: BinaryIO, path: Path, half: int) -> None:
        self._file, self._path, self._left = file, path, half
        self.flush = file.flush

    def write(self, data: memoryview | bytes) -> int:
        written = self._file.write(data)
        before, self._left = self._left, self._left - written
        if self._left <= 0 < before:
            self.flush()
            fault_point("checkpoint.after_half", self._path)
        return written


def _damage(path: Path) -> str:
    """Why these are not the bytes that were written, or an empty text. torch.load itself checks no checksum."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            claimed = sum(part.file_size for part in parts)
            if claimed > size or any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                return f"its parts claim {decimal(claimed)} in a file of {decimal(size)}"
            broken = archive.testzip()
    except Exception as error:  # zipfile raises half a dozen kinds on broken headers
        return f"it is cut off, damaged or of another format ({decimal(size)}: {error})"
    return f"its part {broken} does not match its checksum" if broken else ""


def _others(path: Path) -> str:
    """Which other checkpoints are in the folder of `path`, as a sentence."""
    names = sorted(other.name for other in path.parent.glob("*.ckpt") if other != path)
    return f"Other checkpoints in {path.parent}: {', '.join(names[-5:]) or 'none'}."
