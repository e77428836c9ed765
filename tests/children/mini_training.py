"""A training of a few steps, or a validation, of the mini setting in a child process, alone or as one of two ranks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import torch

from children.processes import begin
from mirage.batch import Pair
from mirage.checkpoint.callback import AtomicCheckpoint
from mirage.checkpoint.io import AtomicCheckpointIO
from mirage.data.lazy import Lazy
from mirage.data.loading import shard
from mirage.data.module import AlignmentData
from mirage.data.sources.mini import Mini
from mirage.evaluation.attack import Rewrite
from mirage.evaluation.judge.exact import Exact
from mirage.evaluation.run import callbacks
from mirage.evaluation.run.callbacks import OneWordAttack
from mirage.evaluation.run.results import Results
from mirage.methods.base import LossTerms
from mirage.methods.sft import MixedSFT
from mirage.schema import EvalSample

SHOTS = {"unsafe": 3, "benign": 1}


class Breaks(MixedSFT):
    """In one step of one rank a loss is not finite, or the gradient alone is."""

    def __init__(self, kind: str, rank: int, step: int) -> None:
        super().__init__("package:mirage.mini/checkpoint", learning_rate=1e-3, warmup_ratio=0.0)
        self.kind, self.rank, self.step, self.culprits = kind, rank, step, ""

    def loss_terms(self, pair: Pair) -> LossTerms:
        terms = super().loss_terms(pair)
        if not self.kind or self.trainer.global_step != self.step or self.global_rank != self.rank:
            return terms
        assert pair.unsafe is not None and terms.unsafe_B is not None
        self.culprits = ", ".join(pair.unsafe.example_ids)
        if self.kind == "gradient":
            terms.unsafe_B.register_hook(lambda gradient: gradient * math.nan)
            return terms
        return terms._replace(unsafe_B=terms.unsafe_B * float(self.kind))


class Unchecked(Breaks):
    """Without the protection: nobody looks whether losses and gradients are finite."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self._window.clear()


def as_distributed_sampler(samples: list[EvalSample], *rest: Any, world_size: int, **settings: Any) -> Any:
    """`ask` without the protection: shares as Lightning's sampler makes them, evened out by asking some samples twice."""
    padded = [*samples, *samples[: -len(samples) % world_size]]
    return _ask(padded, *rest, world_size=world_size, **settings)


def repeating(*share: Any) -> Lazy[Any]:
    """`shard` without the protection: what evens the shares out counts like the rest."""
    examples = shard(*share)
    return Lazy(len(examples), lambda places: [(examples[place][0], 1.0) for place in places])


_ask = callbacks.ask


def run(
    folder: Path, *, rank: int | None = None, port: int = 0, breaks: str = "", samples: int = 7, batch_size: int = 2,
    protected: bool = True,
) -> None:  # fmt: skip
    """With `breaks`, four steps whose third breaks on rank 1; otherwise a validation of the starting model.

    The weights that are left, and the ids of what broke, go to `folder/end-RANK.pt`; metrics of a validation likewise.
    """
    begin(folder, rank, port)
    torch.set_num_threads(1)
    L.seed_everything(3, verbose=False)
    method = (Breaks if protected else Unchecked)(breaks, rank=1, step=2)
    source = Mini(num_unsafe=16, num_safe=16, num_eval=samples)
    data = AlignmentData(source, batch_size=batch_size, gamma=1.0, num_workers=0, method=method)
    attacks = [
        OneWordAttack(name, Rewrite(word, shots=SHOTS[name]), Exact(), max_new_tokens=6, batch_size=batch_size)
        for name, word in (("unsafe", "what's"), ("benign", "share"))
    ]
    trainer = L.Trainer(
        accelerator="cpu", strategy="auto" if rank is None else "ddp", devices=1 if rank is None else 2, max_steps=4,
        limit_val_batches=0 if breaks else None, use_distributed_sampler=False, num_sanity_val_steps=0, logger=False,
        log_every_n_steps=50, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[AtomicCheckpoint(every_n_steps=1)] if breaks else [*attacks, Results()],
        plugins=[AtomicCheckpointIO()],
    )  # fmt: skip
    end: dict[str, Any] = {}
    try:
        if breaks:
            trainer.fit(method, datamodule=data)
        elif protected:
            trainer.validate(method, datamodule=data, verbose=False)
        else:
            with (
                mock.patch("mirage.evaluation.run.callbacks.ask", as_distributed_sampler),
                mock.patch("mirage.data.module.shard", repeating),
            ):
                trainer.validate(method, datamodule=data, verbose=False)
        end["metrics"] = {name: float(value) for name, value in trainer.callback_metrics.items()}
    finally:
        trained = {name: value for name, value in method.state_dict().items() if name.startswith("model.")}
        torch.save({**end, "weights": trained, "culprits": method.culprits}, folder / f"end-{rank or 0}.pt")
