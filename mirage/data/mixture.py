"""Several sets of examples as one, mixed by weight."""

from __future__ import annotations

import math
import random
from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from mirage.data.base import Source
from mirage.data.lazy import Lazy, items_at
from mirage.errors import DataError
from mirage.schema import Example


@dataclass
class RetainSet:
    """One of several sources of the retain set.

    Args:
        source: Its retain set is taken.
        weight: Its share of the mixture, relative to the others'.
    """

    source: Source
    weight: float = 1.0


class Mixture(Lazy[Example]):
    """Several sets as one, each with its share, sampled by seed.

    The law: of `size` examples, set i gives `size * weights[i] / sum(weights)`, rounded so that the parts add up to
    `size` (largest remainder). Which of a set's examples are sampled, and the order of all of them, depend on the seed,
    the sizes and the weights only. No example occurs twice.

    Args:
        sets: The sets to mix. They may be lazy; an example is built when it is asked for.
        weights: One positive number a set. Only their ratios matter.
        size: How many examples in all; by default as many as the shares allow.
        seed: Another seed, another sample and another order.

    Raises:
        ValueError: If the weights or the size make no sense.
        DataError: If a set is empty, or too small for its share.
    """

    def __init__(
        self,
        sets: Sequence[Sequence[Example]],
        weights: Sequence[float],
        size: int | None = None,
        seed: int = 0,
    ) -> None:
        if not sets or len(sets) != len(weights):
            raise ValueError(f"A mixture of {len(sets)} sets has {len(weights)} weights: give one weight to each set.")
        if not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise ValueError(f"Mixture weights are {list(weights)}: each must be a positive number.")
        if empty := [number for number, each in enumerate(sets) if not len(each)]:
            raise DataError(f"Set {empty[0]} of the mixture is empty. Remove it, or correct its source.")
        shares = [weight / math.fsum(weights) for weight in weights]
        if size is None:
            size = max(1, math.floor(min(len(each) / share for each, share in zip(sets, shares, strict=True))))
        if size < 1:
            raise ValueError(f"Mixture size is {size}: it must be at least 1.")
        # Largest remainder: each set gets the whole part of its exact share, and those that lost most one more.
        exact = [size * share for share in shares]
        counts = [math.floor(part) for part in exact]
        for number in sorted(range(len(sets)), key=lambda k: counts[k] - exact[k])[: size - sum(counts)]:
            counts[number] += 1
        for number, (each, count) in enumerate(zip(sets, counts, strict=True)):
            if count > len(each):
                raise DataError(
                    f"Set {number} of the mixture has {len(each)} examples and its share of {size} is {count}. "
                    "Lower size or its weight."
                )
        self.sets, self.counts = tuple(sets), counts
        samples = (
            random.Random(f"draw/{seed}/{number}/0").sample(range(len(each)), count)
            for number, (each, count) in enumerate(zip(sets, counts, strict=True))
        )
        picks = [(number, index) for number, indices in enumerate(samples) for index in indices]
        random.Random(f"order/{seed}").shuffle(picks)
        self._set_of = array("H", [number for number, _ in picks])
        self._index_of = array("L", [index for _, index in picks])
        super().__init__(size, self._examples)

    def _examples(self, positions: Sequence[int]) -> list[Example]:
        by_set: defaultdict[int, list[int]] = defaultdict(list)
        for position in positions:
            by_set[self._set_of[position]].append(self._index_of[position])
        built = {number: iter(items_at(self.sets[number], indices)) for number, indices in by_set.items()}
        return [next(built[self._set_of[position]]) for position in positions]
