"""A training of a second, run in a child process that may be killed: six steps of two batches each, with dropout."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO
from unittest import mock

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything

from children.processes import begin
from mirage.checkpoint.callback import AtomicCheckpoint
from mirage.checkpoint.io import AtomicCheckpointIO, resolve_checkpoint
from mirage.checkpoint.resume import ResumeCheck, RNGState
from mirage.checkpoint.stopping import StopOnSignal
from mirage.fault_injection import fault_point

BATCHES = 6  # an epoch; two make a step


class Batches:
    """Batch numbers of one epoch, from where training stands when an iterator is made."""

    def __init__(self, data: TinyData) -> None:
        self.data = data

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[int]:
        random.random(), np.random.rand(), torch.rand(())  # as real loaders do, once per iterator
        start = self.data.trainer.global_step * self.data.trainer.accumulate_grad_batches
        return iter(range(start, (start // BATCHES + 1) * BATCHES))


class TinyData(LightningDataModule):
    def train_dataloader(self) -> Batches:
        return Batches(self)

    def val_dataloader(self) -> list[int]:
        return [1000, 1001]


class Tiny(LightningModule):
    def __init__(self, log: Path, width: int = 16) -> None:
        super().__init__()
        self.log_file = log
        self.net = torch.nn.Sequential(torch.nn.Linear(8, width), torch.nn.Dropout(0.3), torch.nn.Linear(width, 1))
        self.at: dict[int, str] = {}

    def loss(self, number: int) -> torch.Tensor:
        inputs = torch.randn(4, 8, generator=torch.Generator().manual_seed(number))
        noise = random.random() + np.random.rand() + self.global_rank
        return (self.net(inputs) - noise).square().mean()

    def on_train_start(self) -> None:
        torch.rand(os.getpid() % 7 + 1)  # as what is measured before training may

    def training_step(self, number: int, batch_idx: int) -> torch.Tensor:
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        what = self.at.get(number, "")
        loss = self.loss(number)
        if what.startswith("SIG"):
            for name in what.split():
                os.kill(os.getpid(), getattr(signal, name))
        elif what:
            raise RuntimeError(what)
        with self.log_file.open("a") as file:
            file.write(json.dumps([self.global_step, number, loss.item()]) + "\n")
        return loss

    def validation_step(self, number: int, batch_idx: int) -> None:
        what = "" if self.trainer.sanity_checking else self.at.get(self.trainer.current_epoch * 10000 + number, "")
        for name in what.split():
            os.kill(os.getpid(), getattr(signal, name))
        if not self.trainer.sanity_checking:
            with self.log_file.with_name(f"validated-{self.global_rank}").open("a") as file:
                file.write(f"{self.global_step} {number}\n")
        self.log("val/loss", self.loss(number) + abs(self.global_step - 3), sync_dist=True, batch_size=1)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.at.get(-1) == f"update {self.global_step}":
            raise RuntimeError("in the update")

    def configure_optimizers(self) -> Any:
        assert self.trainer.estimated_stepping_batches == BATCHES  # makes the first iterator, as schedules do
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        return [optimizer], [
            {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step), "interval": "step"}
        ]


@contextmanager
def in_place(path: Path) -> Iterator[BinaryIO]:
    """`replacing` without the protection: the file is written where it will be read."""
    with path.open("wb") as file:
        fault_point("write.before_first_byte", path)
        yield file


def run(
    folder: Path,
    *,
    resume: str | None = None,
    fault: str = "",
    at: dict[int, str] | None = None,
    without: tuple[str, ...] = (),
    facts: dict[str, Any] | None = None,
    allow_changed: tuple[str, ...] = (),
    width: int = 16,
    rank: int | None = None,
    validate: bool = True,
    port: int = 0,
    **saving: Any,
) -> None:
    """Trains in `folder`; its last words go to `folder/stderr`, what it ends with to `folder/end-RANK.pt`."""
    begin(folder, rank, port)
    torch.set_num_threads(1)
    os.environ["MIRAGE_FAULT"] = fault
    seed_everything(7, verbose=False)
    module = Tiny(folder / f"log-{rank or 0}.jsonl", width)
    module.at = at or {}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
    torch.manual_seed(os.getpid())  # a resumed process is somewhere else
    random.seed(os.getpid())
    np.random.seed(os.getpid())
    if resume is None:
        seed_everything(11 + (rank or 0), verbose=False)
    callbacks = [
        StopOnSignal(),
        RNGState(),
        ResumeCheck(lambda: facts or {"seed": 7}, allow_changed),
        AtomicCheckpoint(**{"every_n_steps": 1, "monitor": "val/loss", **saving}),
    ]
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        strategy="auto" if rank is None else "ddp",
        devices=1 if rank is None else 2,
        max_epochs=2,
        limit_val_batches=2 if validate else 0,
        accumulate_grad_batches=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[AtomicCheckpointIO()],
        callbacks=[callback for callback in callbacks if type(callback).__name__ not in without],
    )
    path = resolve_checkpoint(resume, folder) if resume else None
    with mock.patch("mirage.checkpoint.io.replacing", in_place) if "replacing" in without else nullcontext():
        trainer.fit(module, datamodule=TinyData(), ckpt_path=path)
    end = {
        "weights": module.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "lr": trainer.lr_scheduler_configs[0].scheduler.get_last_lr(),
        "step": trainer.global_step,
    }
    torch.save(end, folder / f"end-{rank or 0}.pt")
