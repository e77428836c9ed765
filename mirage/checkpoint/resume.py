"""Callbacks by which a resumed run equals an uninterrupted one: random numbers, and settings that must not change.

`[completed step]` is explained in `callback.py`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence, Set
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from mirage.checkpoint.io import CheckpointError
from mirage.models.sharding import gathered
from mirage.text import first_names

log = logging.getLogger(__name__)
Fact = str | int | float | bool | None


class ResumeMismatchError(ValueError):
    """A run is to go on from a checkpoint that was trained with other settings, data or layout."""


class RNGState(Callback):
    """The random numbers of training go on where they stopped, on every rank, after a resume as without one.

    What is sampled between two batches (validation, new loader iterators, setup) does not shift them: the state at the
    end of a batch is put back at the start of the next, and of a validation. Python, numpy, torch, CUDA; every rank.
    """

    def __init__(self) -> None:
        self._between: dict[str, Any] | None = None  # at the end of the last batch
        self._at_step: dict[str, Any] | None = None  # at [completed step]
        self._step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._between is None:  # a new run, whose starting model may be measured first, or again
            self._between = self._at_step = _random_state(pl_module.device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # after a resume not before now: setup, optimizers and loader iterators use numbers after the checkpoint was loaded
        if self._between is not None:
            _set_random_state(self._between, pl_module.device)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # a validation that was interrupted uses the same numbers again
        if self._between is not None and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            _set_random_state(self._between, pl_module.device)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._between = _random_state(pl_module.device)
        if trainer.global_step != self._step:
            self._step, self._at_step = trainer.global_step, self._between

    def state_dict(self) -> dict[str, Any]:
        ranks = gathered(self._at_step)
        return {"ranks": ranks} if None not in ranks else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        ranks = state_dict["ranks"]
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if len(ranks) == world_size:
            self._between = self._at_step = ranks[rank]
        else:
            text = "Random numbers start anew: the checkpoint holds those of %d ranks and this run has %d."
            log.warning(text, len(ranks), world_size)


def _random_state(device: torch.device) -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    state = {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],  # a checkpoint takes no numpy array
        "torch": torch.get_rng_state(),
    }
    return {**state, "cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def _set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


class ResumeCheck(Callback):
    """A run goes on from a checkpoint only with the settings, data and layout that the checkpoint was trained with.

    Weights that do not fit the model are refused in one sentence before any is loaded.

    Args:
        facts: Returns what must not change, as plain values by name; called once, after the data are set up.
        allow_changed: Names of facts that may differ all the same.
    """

    def __init__(self, facts: Callable[[], Mapping[str, Fact]], allow_changed: Sequence[str] = ()) -> None:
        self.facts, self.allow_changed = facts, tuple(allow_changed)
        self._fitting = False
        self._hook: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._fitting = stage == "fit"

        def before_weights(module: torch.nn.Module, state: Mapping[str, Any], *_: Any) -> None:
            # Lightning loads weights before callbacks, and would report other settings as shape errors
            loaded = trainer._checkpoint_connector._loaded_checkpoint
            if loaded and module is pl_module:
                self.load_state_dict(loaded.get("callbacks", {}).get(self.state_key, {"facts": {}}))
                present = dict(pl_module.state_dict())
                needed = {name for name, parameter in pl_module.named_parameters() if parameter.requires_grad}
                needed |= present.keys() & dict(pl_module.named_buffers(recurse=False)).keys()
                refuse_other_weights(state, present, present.keys() if pl_module.strict_loading else needed)

        self._hook = pl_module.register_load_state_dict_pre_hook(before_weights)  # type: ignore[no-untyped-call]

    @cached_property
    def _now(self) -> dict[str, Fact]:
        return dict(self.facts())

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.state_dict()  # the facts are those of the start, whatever happens to the data later

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._hook is not None:
            self._hook.remove()

    def state_dict(self) -> dict[str, Any]:
        return {"facts": self._now}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self._fitting:
            return
        before, now = dict(state_dict["facts"]), dict(self._now)
        # absent in checkpoints from before weights could be split
        if before.pop("split_weights", False) != now.pop("split_weights", False):
            raise ResumeMismatchError(
                "A run cannot change between split and whole weights, as from this checkpoint to trainer.strategy. Use the "
                "strategy that the run had."
            )
        both = {name: (before.get(name, "absent"), now.get(name, "absent")) for name in sorted({*before, *now})}
        if unknown := sorted(set(self.allow_changed) - both.keys()):
            raise ValueError(f"--allow_changed names {', '.join(unknown)}. The facts are: {', '.join(sorted(now))}.")
        changed = [name for name, (then, value) in both.items() if then != value and name not in self.allow_changed]
        if changed:
            raise ResumeMismatchError(
                "The checkpoint was trained with other settings than those of this run (checkpoint -> now):\n"
                + "".join(f"  {name}: {both[name][0]} -> {both[name][1]}\n" for name in changed)
                + f"Put them back, or go on all the same with --allow_changed '[{', '.join(changed)}]'."
            )


def refuse_other_weights(state: Mapping[str, Any], present: Mapping[str, Any], needed: Set[str]) -> None:
    """Checks that a checkpoint's state_dict fits that of a model, by name and shape, and holds all names of `needed`.

    Raises:
        CheckpointError: If a key is missing, unknown, or of another shape; counts and the first three of each.
    """
    saved, wanted = ({name: list(getattr(value, "shape", ())) for name, value in of.items()} for of in (state, present))
    kinds = {
        "missing": needed - saved.keys(),
        "unknown": saved.keys() - wanted.keys(),
        "of another shape": [
            f"{name} {saved[name]} instead of {wanted[name]}"
            for name in saved.keys() & wanted.keys()
            if saved[name] != wanted[name]
        ],
    }
    issues = [f"{len(names)} {kind} ({first_names(sorted(names), 3)})" for kind, names in kinds.items() if names]
    if issues:
        raise CheckpointError(
            f"The weights in the checkpoint do not fit this model: {'; '.join(issues)}. "
            "Use the config.yaml of the run that wrote it."
        )
