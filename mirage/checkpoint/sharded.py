"""Checkpoints of split weights: a folder to which every rank writes its share, whole or absent as a file is.

Torch's distributed checkpoint writes `__RANK_0.distcp` and `.metadata`; `rest.ckpt` beside them holds what is no tensor of
model or optimizer, and the size and checksum of every file. Torch's own reader unpickles `.metadata` and whatever is no
tensor without limits, which can run code: here the first is read by a list of harmless classes, and there is no second.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
import xxhash
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from mirage.atomic import sync_folder
from mirage.checkpoint.io import REST, CheckpointError, CheckpointSaveError, read_checkpoint
from mirage.fault_injection import fault_point
from mirage.models.sharding import gathered

METADATA = ".metadata"
WEIGHTS, OPTIMIZER = "state_dict.", "optimizer."  # what the names of tensors begin with
_PLAIN = {
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath"},
    "torch": {"Size", "device", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "TensorStorageMetadata", "ChunkStorageMetadata", "TensorProperties", "MetadataIndex", "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    },
}  # fmt: skip


class ShardedStrategy(ModelParallelStrategy):
    """`trainer.strategy: ModelParallelStrategy`: weights, gradients and optimizer state split over all ranks (FSDP2)."""

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """`filepath`, a folder, holds the checkpoint, or is not there; every rank writes its share.

        Raises:
            CheckpointSaveError: On every rank whose share, or on the first rank if its rest could not be written.
        """
        path, pid = self.broadcast((Path(filepath), os.getpid()))
        partial = path.with_name(f".{path.name}.{pid}.partial")
        optimizers = checkpoint.pop("optimizer_states", [])
        tensors = {WEIGHTS + name: value for name, value in checkpoint["state_dict"].items()}
        for optimizer in optimizers:
            tensors |= _flat(optimizer["state"])
        groups = [{"param_groups": optimizer["param_groups"]} for optimizer in optimizers]
        try:
            dcp.save(tensors, storage_writer=_Writer(partial))
            own = [name for name in os.listdir(partial) if name.startswith(f"__{self.global_rank}_")]
            shares = gathered({name: _facts(partial / name) for name in own})
            if self.is_global_zero:
                files = {name: facts for share in shares for name, facts in share.items()}
                rest = {**checkpoint, "state_dict": {}, "optimizer_states": groups, "files": files}
                rest["files"][METADATA] = _facts(partial / METADATA)
                self.checkpoint_io.save_checkpoint(rest, partial / REST)
                _put_in_place(partial, path)
        except (OSError, CheckpointException, CheckpointSaveError) as error:
            if self.is_global_zero:
                shutil.rmtree(partial, ignore_errors=True)
            failures = getattr(error, "failures", {})
            why = "; ".join(f"rank {rank}: {cause}" for rank, (cause, _) in failures.items()) or str(error)
            raise CheckpointSaveError(
                f"{path}: checkpoint not saved, {why}. Free some space or fix access, then resume from the one before."
            ) from error

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """All but the tensors; of the weights, names and shapes. `load_model_state_dict` reads them."""
        path = Path(self.broadcast(checkpoint_path))
        self._reader = Reader(path)
        checkpoint = self._reader.rest(self.global_rank, self.world_size)
        known = self._reader.tensors(WEIGHTS)
        return {**checkpoint, "state_dict": {name: torch.empty(one.size, device="meta") for name, one in known.items()}}

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        assert self.model is not None and self.lightning_module is not None
        saved = checkpoint["state_dict"]
        present: dict[str, Any] = get_model_state_dict(self.model)
        fitting = {name: value for name, value in present.items() if name in saved and value.shape == saved[name].shape}
        dcp.load({WEIGHTS + name: value for name, value in fitting.items()}, storage_reader=self._reader)
        self.lightning_module.load_state_dict({**saved, **fitting}, strict=strict)  # refuses what does not fit

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        assert self.model is not None
        for optimizer, groups in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            state: Any = get_optimizer_state_dict(self.model, optimizer)["state"]
            dcp.load(_flat(state), storage_reader=self._reader)
            set_optimizer_state_dict(self.model, optimizer, optim_state_dict={"state": state, **groups})


class _Writer(dcp.FileSystemWriter):
    def write_data(self, plan: Any, planner: Any) -> Any:
        written = super().write_data(plan, planner)
        fault_point("share.written", self.path)
        return written


class Reader(dcp.FileSystemReader):
    """Reads the tensors of a checkpoint folder without running anything that is in it.

    Raises:
        CheckpointError: If it is no such folder, damaged or hostile.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.folder = path

    def rest(self, rank: int = 0, world_size: int = 1) -> dict[str, Any]:
        """What `rest.ckpt` holds, once all files are known to be what was written; each rank checks its share of them."""
        if not (self.folder / REST).is_file():
            raise CheckpointError(
                f"{self.folder} is no checkpoint folder of ModelParallelStrategy. Use the strategy that the run had."
            )
        rest = read_checkpoint(self.folder / REST)
        files: dict[str, list[Any]] = rest.pop("files")
        paths = {name: self.folder / Path(name).name for name in sorted(files)[rank::world_size]}
        wrong = [name for name, path in paths.items() if not path.is_file() or _facts(path) != files[name]]
        if damaged := [name for names in (gathered(wrong) if world_size > 1 else [wrong]) for name in names]:
            raise CheckpointError(
                f"{self.folder} is no whole checkpoint: {', '.join(damaged)} is missing or does not match its checksum."
            )
        self._files = {Path(name).name for name in files}
        return rest

    def tensors(self, prefix: str) -> dict[str, Any]:
        """Shape and type of every tensor whose name begins so, by the rest of its name."""
        known = self.read_metadata().state_dict_metadata
        return {name.removeprefix(prefix): known[name] for name in known if name.startswith(prefix)}

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (self.folder / METADATA).open("rb") as file:
            try:
                metadata = _Unpickler(file).load()
                tensors = all(isinstance(each, TensorStorageMetadata) for each in metadata.state_dict_metadata.values())
                inside = all(each.relative_path in self._files for each in metadata.storage_data.values())
            except Exception as error:
                raise CheckpointError(f"{self.folder / METADATA} was not loaded ({error}).") from None
        if not (tensors and inside):
            raise CheckpointError(f"{self.folder / METADATA} names what is no tensor, or is in another folder.")
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _PLAIN.get(module, ()):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def assembled(path: Path) -> dict[str, Any]:
    """The checkpoint in a folder with whole weights, for a process that holds all of them; without the optimizer.

    Raises:
        CheckpointError: If it is damaged or hostile.
    """
    reader = Reader(path)
    checkpoint = reader.rest()
    weights = {name: torch.empty(one.size, dtype=one.properties.dtype) for name, one in reader.tensors(WEIGHTS).items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it is meant to be here
        dcp.load({WEIGHTS + name: value for name, value in weights.items()}, storage_reader=reader, no_dist=True)
    del checkpoint["optimizer_states"]
    return {**checkpoint, "state_dict": weights}


def _flat(state: dict[str, Any]) -> dict[str, Any]:
    return {f"{OPTIMIZER}{name}.{kind}": value for name, kinds in state.items() for kind, value in kinds.items()}


def _put_in_place(partial: Path, path: Path) -> None:
    sync_folder(partial)
    if path.exists():  # of an attempt that was killed before `last` named it
        shutil.rmtree(path)
    os.replace(partial, path)
    sync_folder(path.parent)


def _facts(path: Path) -> list[Any]:
    """Size in bytes and checksum."""
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, xxhash.xxh3_64).hexdigest()]  # type: ignore[arg-type]
