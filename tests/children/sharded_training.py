"""Trainings of a second or two on mini, alone or as one of several ranks, in a child process that may be killed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from children.processes import begin
from mirage.checkpoint.callback import AtomicCheckpoint
from mirage.checkpoint.io import AtomicCheckpointIO, resolve_checkpoint
from mirage.checkpoint.resume import ResumeCheck, RNGState
from mirage.checkpoint.sharded import ShardedStrategy
from mirage.data.module import AlignmentData
from mirage.data.sources.mini import Mini
from mirage.evaluation.attack import OneWord
from mirage.evaluation.generate.huggingface import HuggingFaceEngine
from mirage.evaluation.judge.base import Answered, Judgement
from mirage.evaluation.judge.exact import Exact
from mirage.evaluation.run.callbacks import OneWordAttack
from mirage.methods.catalogue import METHODS
from mirage.models.load import load_model
from mirage.models.lora import LoraSettings
from mirage.models.processor import load_processor
from mirage.models.sharding import shard
from mirage.schema import Example

MINI = "package:mirage.mini/checkpoint"


class SomeText(Mini):
    """Mini, of whose retain examples every other one has no picture."""

    def retain(self) -> Sequence[Example]:
        every = super().retain()
        return [one if k % 2 else replace(one, image=None) for k, one in enumerate(every)]


class Failing(Exact):
    """Fails on the second rank."""

    def judge(self, answered: Sequence[Answered]) -> list[Judgement]:
        if int(os.environ["LOCAL_RANK"]):
            raise OSError("the judge is gone")
        return super().judge(answered)


class Losses(Callback):
    """Loss and gradient norm of every step."""

    def __init__(self) -> None:
        self.of_step: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        logged = trainer.callback_metrics
        self.of_step.append((float(logged["train/loss"]), float(logged["train/grad_norm"])))


def run(folder: Path, fits: Sequence[dict[str, Any]], fault: str = "", rank: int | None = None, port: int = 0) -> None:
    """Each of `fits` in turn, in `folder/NAME`; what rank 0 saw of it goes to `folder/NAME/seen.json`."""
    begin(folder, rank, port)
    os.environ["MIRAGE_FAULT"] = fault
    torch.set_num_threads(1)
    for given in fits:
        fit(folder, rank or 0, 1 if rank is None else 2, **given)


def fit(
    folder: Path,
    rank: int,
    ranks: int,
    *,
    name: str,
    method: str = "MixedSFT",
    lora: bool = False,
    strategy: str = "ModelParallelStrategy",
    steps: int = 2,
    batch_size: int = 4,
    gamma: float = 1.5,
    text: bool = False,
    num_unsafe: int = 14,
    asks: int = 0,
    saves: bool = False,
    resume: str | None = None,
    judge: str = "Exact",
    **settings: Any,
) -> None:
    """One training of `batch_size` unsafe examples a step, on all ranks together."""
    L.seed_everything(3, verbose=False)
    kind = next(one for one in METHODS if one.__name__ == method)
    fixed = {"learning_rate": 1e-3, "warmup_ratio": 0.0, "schedule": "constant_with_warmup"}
    module: Any = kind(MINI, lora=LoraSettings(r=4) if lora else None, **{**fixed, **settings})
    source = (SomeText if text else Mini)(num_unsafe=num_unsafe, num_safe=9, num_eval=max(asks, 1))
    data = AlignmentData(source, batch_size=batch_size // ranks, gamma=gamma, num_workers=0, method=module)
    losses, root = Losses(), folder / name
    callbacks: list[Callback] = [losses]
    if asks:
        scores = {"Exact": Exact, "Failing": Failing}[judge]()
        callbacks.append(OneWordAttack("unsafe", OneWord("share"), scores, max_new_tokens=8, batch_size=3))
    if saves:
        facts = ResumeCheck(lambda: {"method": module.name, "ranks": ranks}, ["ranks"] if resume else [])
        callbacks += [RNGState(), facts, AtomicCheckpoint(every_n_steps=1)]
    engine: Any = ShardedStrategy() if strategy == "ModelParallelStrategy" else strategy
    trainer = L.Trainer(
        accelerator="cpu", devices=ranks, strategy=engine, max_steps=steps, logger=False,
        enable_checkpointing=False if not saves else None, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=1 if asks else 0, val_check_interval=steps if asks else None, num_sanity_val_steps=0,
        default_root_dir=root, callbacks=callbacks, plugins=[AtomicCheckpointIO()], use_distributed_sampler=False,
        gradient_clip_val=1.0,
    )  # fmt: skip
    path = resolve_checkpoint(resume, root) if resume else None
    trainer.fit(module, datamodule=data, ckpt_path=path)
    trained = sorted(name for name, parameter in module.named_parameters() if parameter.requires_grad)
    seen = {"losses": losses.of_step, "trained": trained, "step": trainer.global_step}
    if asks:
        attacked = next(one for one in callbacks if isinstance(one, OneWordAttack))
        seen["asked"] = [attacked.start, attacked.current]
    if rank == 0:
        root.mkdir(parents=True, exist_ok=True)
        (root / "seen.json").write_text(json.dumps(seen))


def answer(folder: Path, checkpoints: Sequence[str], rank: int, port: int) -> None:
    """The first of two ranks answers alone; it ends well if split weights answer as whole ones."""
    begin(folder, rank, port)
    torch.set_num_threads(1)
    samples = Mini(num_eval=3).eval_samples("unsafe")
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for checkpoint in checkpoints:
        model, processor = load_model(checkpoint), load_processor(checkpoint)
        whole = HuggingFaceEngine(model, processor, max_new_tokens=8, batch_size=2).answers(samples)
        shard(model, torch.device("cpu"), "32-true")
        split = HuggingFaceEngine(model, processor, max_new_tokens=8, batch_size=2)
        with split.in_step():
            answers = split.answers([] if rank else samples)
        assert answers == ([] if rank else whole), checkpoint
