"""Tensors kept on disk by key, a file each, shared by the processes of a machine and by later runs."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mirage.atomic import replacing, sweep_partials

_log = logging.getLogger(__name__)
_ENDING = ".safetensors"
_KEPT = 0.9  # of the limit, once it is reached: files are deleted many at a time


class TensorStore:
    """A cache in a folder: what cannot be read or written is computed again by the caller, and nothing else happens.

    Every file appears whole or not at all, so processes may write the same one, or be killed while they do. Once the
    files take the limit, those that have not been used since this run began are deleted, the longest unused first. Files
    of this run stay: with data above the limit, each walk through them would otherwise delete what the next one needs.

    Args:
        folder: Where the files lie; it is made.
        limit: The most that they may take together, in bytes. Never more than half of what is free on the disk is taken.
        writers: How many processes write into the folder.
    """

    def __init__(self, folder: Path, limit: float, writers: int = 1) -> None:
        self.folder, self.limit, self.writers = folder, limit, writers
        self._started = time.time() - 1  # clocks of file systems are coarse
        self._room = 0.0  # bytes that this process may write before the files are counted again
        self._given_up = self._warned = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            sweep_partials(folder)
        except OSError as error:
            self._give_up(f"cannot be written to ({error}): nothing more is kept there")

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors under a key, mapped into memory; None if there are none, or none that can be read."""
        path = self.folder / f"{key}{_ENDING}"
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            if not self._warned:
                _log.warning("%s cannot be read (%s): it is computed again.", path, error)
            self._warned = True
            return None
        with suppress(OSError):  # it may be another's, or deleted by now
            os.utime(path)
        return tensors

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keeps the tensors, unless the limit is reached or the folder cannot be written to."""
        if self._given_up:
            return
        content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        try:
            if self._room < len(content):
                self._make_room(len(content))
            if self._room < len(content):
                full = f"is full ({self.limit / 2**30:.3g} GiB)"
                self._give_up(f"{full}: the rest is computed each time. Raise the limit or free disk space")
                return
            with replacing(self.folder / f"{key}{_ENDING}") as file:
                file.write(content)
        except OSError as error:
            self._give_up(f"cannot be written to ({error}): nothing more is kept there")
            return
        self._room -= len(content)

    def _make_room(self, needed: int) -> None:
        """Counts the files, and deletes the longest unused if they leave no room. Other processes may do so too."""
        files = []
        for path in self.folder.glob(f"*{_ENDING}"):
            with suppress(FileNotFoundError):
                files.append((path.stat().st_mtime, path.stat().st_size, path))
        taken = sum(size for _, size, _ in files)
        if taken + needed > self.limit:
            for used, size, path in sorted(files):
                if used >= self._started or taken + needed <= _KEPT * self.limit:
                    break
                path.unlink(missing_ok=True)
                taken -= size
        self._room = min(self.limit - taken, shutil.disk_usage(self.folder).free / 2) / self.writers

    def _give_up(self, why: str) -> None:
        _log.warning("%s %s.", self.folder, why)
        self._given_up = True
