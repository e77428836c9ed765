"""The folder of a run: one process at a time works in it, a fresh fit sets an earlier run aside, a resumed one goes on."""

from __future__ import annotations

import csv
import io
import logging
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import SoftFileLease, Timeout
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from mirage.atomic import free_name, sync_folder, write_text
from mirage.checkpoint.callback import AtomicCheckpoint
from mirage.cli import sentence_of
from mirage.commands.outputs import check_folder
from mirage.evaluation.run.callbacks import run_folder

log = logging.getLogger(__name__)

LEASE_S = 120.0  # a lock that was not renewed for so long is stale, on whatever host; it is renewed every 5 s


class RunFolder(Callback):
    """Locks the folder of a run, and puts its config and its metrics there. Must be the first callback.

    Nothing in the folder is touched before data, model and checkpoint are loaded. Then a fresh fit moves an earlier run,
    whole, to a folder beside it; a resumed one goes on with `metrics.csv` and the TensorBoard events at its step.

    Args:
        config: What `config.yaml` will hold.
        checkpoint: The checkpoint that the run goes on from.
        requeued: What a fit that was killed before its first checkpoint left may be in the folder: its answers are used.
    """

    def __init__(self, config: str, checkpoint: str | None, requeued: bool = False) -> None:
        self.config, self.checkpoint, self.requeued = config, checkpoint, requeued
        self.folder = Path()
        self.loggers: list[Any] = []  # of the trainer, which would let them write before anything is loaded
        self._lock: SoftFileLease | None = None
        self._step = 0  # of the checkpoint

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Locks the folder, once the data are checked.

        Raises:
            ValueError: On every rank, if it cannot be written to or set aside, or another process works in it.
        """
        self.folder = run_folder(trainer)
        trainer.loggers = self.loggers

        def lock() -> None:
            check_folder(self.folder, "--trainer.default_root_dir")
            for folder in self._earlier(trainer):
                check_folder(free_name(folder).parent, "--trainer.default_root_dir")
            self._lock = locked(self.folder)

        _on_first_rank(trainer, lock)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Notes the step that the run goes on from."""
        self._step = checkpoint["global_step"]

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Makes the folder that of this run."""

        def take_over() -> None:
            for folder in self._earlier(trainer):
                self._set_aside(folder)
            if self.requeued and self.checkpoint is None:
                print(f"{self.folder} holds no checkpoint to go on from: training starts afresh.")
            write_text(self.folder / "config.yaml", self.config)

        _on_first_rank(trainer, take_over)
        for logger in [logger for logger in trainer.loggers if isinstance(logger, MetricsFile)]:
            logger.go_on_at(self._step)
            if len(trainer.loggers) == 1:  # the config names no other
                # what there is of this step and later ones is not shown by TensorBoard
                trainer.loggers.append(TensorBoardLogger(self.folder, name=None, version="", purge_step=self._step))

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Leaves the config of a `validate` or `test` beside its results."""
        if trainer.is_global_zero and trainer.state.fn != "fit":
            write_text(self.folder / "config.yaml", self.config)

    on_test_start = on_validation_start

    def release(self) -> None:
        """Lets other processes work in the folder; one in which nothing was written is deleted."""
        if self._lock is not None:
            self._lock.release()
            with suppress(OSError):
                self.folder.rmdir()

    def _earlier(self, trainer: Any) -> list[Path]:
        """The folders, of this run and of its checkpoints, that hold a run that this one does not go on with."""
        if trainer.state.fn != "fit":
            return []
        saving = [each.dirpath for each in trainer.callbacks if isinstance(each, AtomicCheckpoint)]
        folders = [self.folder, *(Path(folder) for folder in saving if folder)]
        if self.checkpoint is not None:
            checkpoint = Path(self.checkpoint).resolve()
            if any(checkpoint.is_relative_to(folder.resolve()) for folder in folders):
                return []
        marks = ["results.json", "*.ckpt", "checkpoints/*.ckpt"]
        if not self.requeued:
            marks += ["config.yaml", "checkpoints", "validate", "test"]
        return [folder for folder in folders if any(any(folder.glob(mark)) for mark in marks)]

    def _set_aside(self, folder: Path) -> None:
        held = [locked(inner.parent) for inner in folder.glob("*/.lock")]  # no validation is at work in it
        aside = folder.resolve().rename(free_name(folder))
        for left in [*aside.glob(".lock"), *aside.glob("*/.lock")]:
            left.unlink()
        for lock in held:
            lock.release()
        if folder == self.folder and self._lock is not None:
            self._lock.release()
            self._lock = locked(folder)
        sync_folder(aside.parent)
        print(f"{folder} held an earlier run, which is now {aside}.")


def _on_first_rank(trainer: Any, work: Callable[[], None]) -> None:
    """Calls `work` on the first rank. Its errors of the input are raised on all, none of which waits for it."""
    problem: ValueError | OSError | None = None
    if trainer.is_global_zero:
        try:
            work()
        except (ValueError, OSError) as error:
            problem = error
    message = trainer.strategy.broadcast(problem and (sentence_of(problem) or str(problem)))
    if message is not None:
        raise ValueError(message) from problem


def locked(folder: Path, lease_s: float = LEASE_S) -> SoftFileLease:
    """A lock that this process holds on `folder`, which is made if it does not exist, until it releases it or ends.

    `.lock` in the folder names host and process. A lock whose process is gone is taken over: one of this host at once, one
    of another host on a shared file system if it is not renewed for `lease_s` seconds. A process that was suspended for
    longer, and finds its lock taken over, ends.

    Raises:
        ValueError: Naming host, process and since when, if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / ".lock"
    lock = SoftFileLease(path, lease_duration=lease_s, heartbeat_interval=lease_s / 24, on_compromise=_lost)
    seen = _renewed(path)
    try:
        with suppress(Timeout):
            lock.acquire(blocking=False)
        if not lock.is_locked:
            print(f"{folder} is locked by {_holder(path)}. Waiting for a sign of life, at most {lease_s:.0f} s.")
            lock.acquire(timeout=lease_s + 5, cancel_check=lambda: _renewed(path) not in (None, seen))
    except (Timeout, ValueError) as error:  # ValueError: of a mirage with another lease
        raise ValueError(
            f"{folder} is in use by {_holder(path)}. Wait for it or end it, or choose another --trainer.default_root_dir."
        ) from error
    with path.open("a", encoding="utf-8") as file:  # readers of the lock skip what they do not know
        file.write(f"since={datetime.now().astimezone().isoformat(' ', 'seconds')}\n")
    return lock


def _renewed(lock: Path) -> int | None:
    """When the lock was last written or renewed, by the clock of its file system; None if there is none."""
    try:
        return lock.stat().st_mtime_ns
    except OSError:
        return None


def _holder(lock: Path) -> str:
    try:
        lines = lock.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "another process"
    fields = dict(line.partition("=")[::2] for line in lines)
    host, since = fields.get("host", "unknown").partition("?")[0], fields.get("since", "just now")
    return f"process {fields.get('pid', 'unknown')} on host {host} since {since}"


def _lost(loss: Any) -> None:
    if loss.reason == "owner-changed":
        print(
            f"mirage: {loss.lock_file} was taken over by another process: this one ends.", file=sys.stderr, flush=True
        )
        os._exit(1)  # at once and without a checkpoint: the folder is no longer this run's
    log.warning("%s could not be renewed (%s): another process may start in this folder.", loss.lock_file, loss.reason)


class MetricsFile(Logger):
    """`metrics.csv`: one line for each time that metrics were logged, there as soon as they are logged.

    Unlike Lightning's CSVLogger it goes on with the file of a resumed run, and is never half rewritten.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._columns: list[str] = []
        self._earlier: list[dict[str, str]] = []  # by the process that is resumed

    name = version = ""

    @rank_zero_only
    def go_on_at(self, step: int) -> None:
        """Cuts an existing file back to the lines before optimizer step `step`."""
        self._earlier = [row for row in self._rows() if row.get("step", "").isdecimal() and int(row["step"]) < step]
        if self._earlier:
            self._write(self._earlier)
        else:
            self.path.unlink(missing_ok=True)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Appends a line. A line of the resumed process about the same goes: a validation, say, that is run again."""
        row = {"step": str(step), **{name: str(value) for name, value in metrics.items()}}
        again = [old for old in self._earlier if old["step"] == row["step"] and old.keys() == row.keys()]
        if again or not row.keys() <= {*self._columns}:
            self._write([*(old for old in self._rows() if old not in again), row])
        else:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """They are in config.yaml."""

    def _rows(self) -> list[dict[str, str]]:
        """The lines as name -> value, without a half one that a killed process left."""
        if not self.path.is_file():
            return []
        text = self.path.read_text(encoding="utf-8", errors="replace")
        reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
        return [{name: value for name, value in row.items() if name and value} for row in reader]

    def _write(self, rows: list[dict[str, str]]) -> None:
        self._columns = sorted({name for row in rows for name in row})
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())
