"""When a run is saved: a callback that writes checkpoints at the right moments, and the files `last` and `best`.

Everything is saved *as of the last completed optimizer step* [completed step], whatever was under way when the file was
written: a batch in flight, half an accumulation window, a validation. A resumed run repeats what was under way.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mirage.atomic import sweep_partials, write_text
from mirage.checkpoint.io import CheckpointSaveError
from mirage.fault_injection import fault_point

log = logging.getLogger(__name__)


class AtomicCheckpoint(Checkpoint):
    """Saves a checkpoint at the end of every epoch (before its validation), and when the run is asked to stop.

    `last` names the newest one and `best` the one with the best `monitor`; `--ckpt_path last` goes on from there.

    Args:
        dirpath: Where they are kept. Default: `checkpoints` in the run folder.
        every_n_steps: Save every so many optimizer steps as well; 0 saves at the ends of epochs only.
        keep_last: How many of the newest are kept, at least 2; the best one is kept besides.
        monitor: A metric that validation logs, such as `val/retain`; without one there is no `best`.
        mode: `min` if a small value of `monitor` is good, `max` if a large one is.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        every_n_steps: int = 0,
        keep_last: int = 2,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
    ) -> None:
        super().__init__()
        if keep_last < 2:
            raise ValueError(f"checkpoints: keep_last is {keep_last}. Keep 2 or more: one may be lost while written.")
        if every_n_steps < 0:
            raise ValueError(f"checkpoints: every_n_steps is {every_n_steps}. Give 0 or a number of optimizer steps.")
        self.dirpath, self.every_n_steps, self.keep_last = dirpath, every_n_steps, keep_last
        self.monitor, self.mode = monitor, mode
        self._folder = Path(dirpath or "checkpoints")
        self._written: list[str] = []
        self.best_model_path = ""  # Lightning asks under this name
        self._best_value: float | None = None
        self._step = 0  # completed optimizer steps now
        self._saved: int | None = None  # and in the newest file
        self._resting: dict[str, Any] = {}  # progress of the loops and of the data at [completed step]
        self._due = self._updating = self._window_open = self._unsavable = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = self.dirpath or os.path.join(trainer.default_root_dir, "checkpoints")
        self._folder = Path(trainer.strategy.broadcast(folder))
        if stage == "fit" and trainer.is_global_zero and self._folder.is_dir():
            for stale in sweep_partials(self._folder):
                log.warning("Deleted %s, left behind by a run that was killed.", stale)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        if self._step > 0 and trainer.fit_loop._data_fetcher is not None:
            # made by `estimated_stepping_batches` before progress was restored, the iterator stands at the beginning
            iter(trainer.fit_loop._data_fetcher)
        if self._step == 0:
            self._mark(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._rest(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self._updating = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._window_open = trainer.global_step == self._step
        if self._window_open:
            return
        self._step = trainer.global_step
        self._mark(trainer)
        self._updating = False
        # saved at the next resting place, not here: only then is it known whether a validation comes first
        self._due |= self.every_n_steps > 0 and self._step % self.every_n_steps == 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not _training(trainer):
            return
        # a resumed validation counts its interrupted first batch twice
        trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.reset_on_restart()
        if self._mark(trainer, before_validation=True):
            self._due |= trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        self._rest(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _training(trainer) and self._step > 0:
            self._mark(trainer)
            if self.monitor is not None:
                self._keep_best(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._due |= self._mark(trainer)
        self._rest(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint.update(self._resting)  # see [completed step]

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        stopped = isinstance(exception, SIGTERMException)  # on every rank, and not before training has started
        alone = trainer.world_size > 1 and not stopped  # other failures strike one rank, and saving needs all of them
        done = self._saved == self._step or (self._step == 0 and not stopped)
        if not (done or alone or self._updating or self._unsavable) and _training(trainer):
            try:
                self._save(trainer)
            except Exception as error:  # the first exception is the one to be seen
                log.warning("After %s no checkpoint could be saved: %s", type(exception).__name__, error)
        if _training(trainer) and isinstance(exception, (SIGTERMException, KeyboardInterrupt)):
            exception.add_note(self._how_to_go_on())

    def _how_to_go_on(self) -> str:
        if self._saved is None:
            return "stopped before a checkpoint was saved; give the same command again"
        newest = "last" if self.dirpath is None else self._folder / self._written[-1]
        of = "" if self._saved == self._step else f"the newest checkpoint is of step {self._saved}: "
        return f"stopped at step {self._step}; {of}go on with --ckpt_path {newest}"

    def state_dict(self) -> dict[str, Any]:
        best = Path(self.best_model_path).name
        # without what a killed process left undeleted: an interrupted run's checkpoints are those of any other
        recent = {*self._written[-self.keep_last - 1 :], best}
        written = [name for name in self._written if name in recent]
        return {"written": written, "best": best, "best_value": self._best_value, "step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._written = [name for name in state_dict["written"] if (self._folder / name).exists()]
        best = self._folder / state_dict["best"]
        if state_dict["best"] and best.exists():
            self.best_model_path, self._best_value = str(best), state_dict["best_value"]
        self._saved = state_dict["step"]

    def _mark(self, trainer: Trainer, before_validation: bool = False) -> bool:
        """From now on, what is saved resumes at this point; False if it is none: half a window."""
        if self._window_open:
            return False
        fit = trainer.fit_loop.state_dict()
        if before_validation:
            # a validation whose first batch is under way is what Lightning runs again on resume; otherwise it skips it
            for progress in (fit["epoch_loop.val_loop.batch_progress"][part] for part in ("total", "current")):
                progress["ready"] = progress["started"] = progress["completed"] + 1
        others = {"validate_loop": trainer.validate_loop, "test_loop": trainer.test_loop}
        loops = {name: loop.state_dict() for name, loop in {**others, "predict_loop": trainer.predict_loop}.items()}
        self._resting = {"loops": {"fit_loop": fit, **loops}}
        data = getattr(trainer, "datamodule", None)
        if data is not None and (position := data.state_dict()):
            self._resting[type(data).__qualname__] = position
        return True

    def _rest(self, trainer: Trainer) -> None:
        """Saves if that is due: every rank passes here, between two steps."""
        if self._due and self._saved != self._step and _training(trainer):
            self._save(trainer)
        self._due = False

    def _save(self, trainer: Trainer) -> None:
        path = self._folder / f"step-{self._step:08d}.ckpt"
        self._written = [name for name in self._written if name != path.name] + [path.name]
        with self._together(trainer):
            try:
                trainer.save_checkpoint(path, weights_only=False)
            except CheckpointSaveError:  # on the rank that writes; the others wait at the barrier that follows
                trainer.strategy.barrier("Trainer.save_checkpoint")
                raise
            if trainer.is_global_zero:
                fault_point("checkpoint.before_last", path)
                if not self.best_model_path:
                    (self._folder / "best").unlink(missing_ok=True)  # of an earlier run in the same folder
                write_text(self._folder / "last", path.name + "\n")
        self._saved = self._step
        kept = {*self._written[-self.keep_last :], Path(self.best_model_path).name}
        for name in [name for name in self._written if name not in kept]:
            try:
                trainer.strategy.remove_checkpoint(self._folder / name)
            except OSError as error:
                log.warning("%s could not be deleted: %s", self._folder / name, error)
            self._written.remove(name)

    @contextmanager
    def _together(self, trainer: Trainer) -> Iterator[None]:
        """Every rank raises what stopped the one that writes."""
        problem: Exception | None = None
        try:
            yield
        except (CheckpointSaveError, OSError) as error:
            problem = error
        message = trainer.strategy.broadcast(None if problem is None else str(problem))
        if message is not None:
            self._unsavable = True
            raise CheckpointSaveError(message) from problem

    def _keep_best(self, trainer: Trainer) -> None:
        value = trainer.callback_metrics.get(str(self.monitor))
        if value is None:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise ValueError(f"checkpoints: validation logged no {self.monitor!r}. Monitor one of these: {known}.")
        now = float(value)
        sign = 1 if self.mode == "min" else -1
        better = not math.isnan(now) and (self._best_value is None or sign * now < sign * self._best_value)
        path = self._folder / f"step-{self._step:08d}.ckpt"
        there = self._saved == self._step and path.exists()
        better, there = trainer.strategy.broadcast((better, there))  # rank 0 decides: all of them save or none does
        if not better:
            return
        if not there:
            self._save(trainer)
        with self._together(trainer):
            if trainer.is_global_zero:
                write_text(self._folder / "best", path.name + "\n")
        self.best_model_path, self._best_value = str(path), now


def _training(trainer: Trainer) -> bool:
    trial: bool = trainer.sanity_checking or trainer.fast_dev_run  # type: ignore[attr-defined]
    return trainer.state.fn == TrainerFn.FITTING and not trial
