"""RMU on mini for some steps, in this process or as one of two ranks that share a cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from children.processes import begin
from mirage.data.crossing import Crossing
from mirage.data.module import AlignmentData
from mirage.data.sources.mini import Mini
from mirage.methods.rmu import RMU

STEPS = 20


class Losses(Callback):
    """The loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.values.append(outputs["loss"].item())


def train(
    folder: Path, steps: int = STEPS, crossing: bool = False, devices: int = 1, **given: Any
) -> tuple[RMU, list[float]]:
    """The method after training in `folder`, beside which the cache lies, and the losses of this rank."""
    L.seed_everything(3, verbose=False)
    settings = {"layer": 2, "train_layers": [1, 2], "steering_coefficient": 5.0, "learning_rate": 1e-3, **given}
    method = RMU("package:mirage.mini/checkpoint", warmup_ratio=0.0, **settings)
    forms = Crossing(forms_per_example=2) if crossing else None
    examples = Mini(num_unsafe=14, num_safe=9, num_eval=4)
    data = AlignmentData(examples, batch_size=4, gamma=1.5, num_workers=0, crossing=forms, method=method)
    losses = Losses()
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_steps=steps, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        default_root_dir=folder, callbacks=[losses], use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(method, datamodule=data)
    return method, losses.values


def rank(folder: Path, rank: int, port: int, fault: str = "", **given: Any) -> None:
    """One of two ranks; its losses go to `folder/losses-RANK.pt`."""
    begin(folder, rank, port)
    os.environ["MIRAGE_FAULT"] = fault
    torch.set_num_threads(1)
    _, values = train(folder, devices=2, **given)
    torch.save(values, folder / f"losses-{rank}.pt")
