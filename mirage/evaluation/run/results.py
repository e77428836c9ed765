"""results.json: what a run measured, for the model that it started from and the model as it is now."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from pydantic_core import to_json

from mirage.atomic import sweep_partials, write_text
from mirage.evaluation.run.callbacks import EvalCallback, eval_callbacks, run_folder
from mirage.schema import RESULTS_SCHEMA_VERSION

PACKAGES = ("safety-mirage", "torch", "lightning", "transformers", "peft", "torchmetrics", "datasets")


class Results(Callback):
    """Writes `results.json` after every evaluation, whole or not at all. Must be the last callback.

    `written` is the file and `latest` what it holds; both are None before the first evaluation, and `latest` is set
    on the first rank only.

    Args:
        publish: Called on the first rank with the loggers, the file and the step when a fit or an evaluation ends.
    """

    def __init__(self, publish: Callable[[Sequence[Any], Path, int], None] | None = None) -> None:
        self.publish = publish
        self.written: Path | None = None
        self.latest: dict[str, Any] | None = None
        self._began = time.perf_counter()
        self._measured: list[Any] = []  # what each callback had measured when the file was last written
        self._when: dict[str, int] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        folder = run_folder(trainer)
        if trainer.is_global_zero:
            sweep_partials(folder)  # of records and results, left behind by a run that was killed

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking and eval_callbacks(trainer):
            self._when = eval_callbacks(trainer)[0].measured_at(trainer)
            self._write(trainer, pl_module)
            if trainer.state.fn != "fit":
                self._publish(trainer)

    on_test_end = on_validation_end

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_fit_end(trainer, pl_module)
        self._publish(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        now = [callback.current for callback in eval_callbacks(trainer)]
        if any(new is not old for new, old in zip_longest(now, self._measured)):
            if self._when.get("step") != trainer.global_step:
                # the epoch that has just ended, perhaps before its time
                self._when = {"step": trainer.global_step, "epoch": max(trainer.current_epoch - 1, 0)}
            self._write(trainer, pl_module)

    def _publish(self, trainer: L.Trainer) -> None:
        if self.publish is not None and self.latest is not None and self.written is not None:
            self.publish(trainer.loggers, self.written, trainer.global_step)

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._measured = [callback.current for callback in eval_callbacks(trainer)]
        self.written = run_folder(trainer) / "results.json"  # on every rank: some trainer properties communicate
        if trainer.is_global_zero:
            # nan becomes null, which says the same and cannot be taken for a number
            text = to_json(self._results(trainer, pl_module), indent=1, inf_nan_mode="null").decode()
            write_text(self.written, text + "\n")
            self.latest = json.loads(text)

    def _results(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        module: Any = pl_module
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        callbacks = eval_callbacks(trainer)
        fits = trainer.state.fn == "fit"
        seconds: dict[str, float] = {}
        for key, value in chain.from_iterable(callback.seconds.items() for callback in callbacks):
            seconds[key] = seconds.get(key, 0.0) + value
        if fits:
            total = time.perf_counter() - self._began
            seconds["train"] = total - sum(value for key, value in seconds.items() if key != "start")
        planned = trainer.estimated_stepping_batches if fits else math.inf
        return {
            "schema_version": RESULTS_SCHEMA_VERSION,
            "method": module.name if fits or trainer.ckpt_path else "start",
            "name": Path(trainer.default_root_dir).name,
            "model": module.pretrained,
            "source": datamodule.source.name,
            "seed": datamodule.seed,
            "data": datamodule.summary() if fits else None,
            "versions": {name: _version(name) for name in PACKAGES},
            **self._when,
            # optimizer steps of the whole fit; null for an evaluation, and for a fit without an end
            "planned_steps": int(planned) if math.isfinite(planned) else None,
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
            "world_size": trainer.world_size,
            **_by_section((callback, callback.current) for callback in callbacks),
            "seconds": {key: round(value, 2) for key, value in seconds.items()},
            "start": _by_section((callback, callback.start) for callback in callbacks) or None,
        }


def _by_section(measured: Iterable[tuple[EvalCallback, dict[str, Any] | None]]) -> dict[str, Any]:
    sections: dict[str, Any] = {}
    for callback, result in measured:
        if result is not None:
            section = sections if callback.section is None else sections.setdefault(callback.section, {})
            section[callback.key] = result
    return sections


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
