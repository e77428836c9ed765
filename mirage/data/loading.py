"""Loaders: which examples each rank opens, in workers, and in which batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from mirage.batch import Batch, Pair
from mirage.data.collate import Collator
from mirage.data.crossing import CrossedForms
from mirage.data.lazy import Lazy
from mirage.data.order import Order, Step, step_at
from mirage.schema import Example


class Pairs(Dataset[Pair]):
    """Item `step` is the collated pair of that step, so that opening and collating happen in a loader worker."""

    def __init__(
        self,
        unsafe: Sequence[Example],
        retain: Sequence[Example],
        collate: Collator,
        crossed: CrossedForms | None = None,
    ) -> None:
        self.unsafe, self.retain, self.collate, self.crossed = unsafe, retain, collate, crossed

    def __getitem__(self, step: Step) -> Pair:
        return Pair(
            self._batch([self.unsafe[k] for k in step.unsafe], step.unsafe_laps, unsafe=True),
            self._batch([self.retain[k] for k in step.retain], step.retain_laps, unsafe=False),
        )

    def _batch(self, examples: Sequence[Example], laps: Sequence[int], *, unsafe: bool) -> Batch | None:
        if self.crossed is not None:
            forms = zip(examples, laps, strict=True)
            examples = [self.crossed.of(example, lap, unsafe=unsafe) for example, lap in forms]
        return self.collate(examples) if examples else None


class Steps(SequentialSampler):
    """The next steps for one rank, from wherever training is: as many as an epoch has.

    Data order knows no epochs. Lightning ends an epoch by its own count, in a resumed one (and under
    `limit_train_batches`) before these steps are used up. A sampler of another kind it would replace under
    `overfit_batches`.

    Args:
        accumulate: Batches per optimizer step; an epoch is a whole number of optimizer steps.
        position: How many batches have been trained on, asked anew at the start of every epoch: all that resuming needs.
    """

    def __init__(self, order: Order, rank: int, world_size: int, accumulate: int, position: Callable[[], int]) -> None:
        self.order, self.rank, self.world_size, self.position = order, rank, world_size, position
        self.length = -(-order.steps_per_epoch(world_size) // accumulate) * accumulate

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Step]:  # type: ignore[override]  # indices of `Pairs`
        start = self.position()
        return (step_at(index, self.rank, self.world_size, self.order) for index in range(start, start + self.length))


class ResumableLoader(DataLoader[Any]):
    """A loader that Lightning may resume in mid-epoch: its sampler finds its place by itself."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: data order is a function of the step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores nothing; that the method exists tells Lightning that the loader is resumable."""


def shard(examples: Sequence[Example], rank: int, world_size: int) -> Lazy[tuple[Example, float]]:
    """One rank's share of a set, with weights: padded so that every rank has equally many; padding has weight 0.

    Every rank runs the same number of batches, or a collective operation would wait for ever. Padding by repetition
    alone, as Lightning does, would count examples twice.
    """

    def build(indices: Sequence[int]) -> list[tuple[Example, float]]:
        places, last = [index * world_size + rank for index in indices], len(examples) - 1
        return [(examples[min(place, last)], float(place <= last)) for place in places]

    return Lazy(-(-len(examples) // world_size), build)


def weighed(collate: Collator, items: Sequence[tuple[Example, float]]) -> tuple[Batch, Tensor]:
    """The batch of (example, weight) items, and its weights (B,)."""
    return collate([example for example, _ in items]), torch.tensor([weight for _, weight in items])
