"""Sequences of examples that are not lists: one whose items are built on demand, and several sets mixed by weight."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, overload

from mirage.data.source import BadData, Source
from mirage.schema import Example

Item = TypeVar("Item", covariant=True)


class Lazy(Sequence[Item]):
    """`length` items, the i-th made by `build(i)` each time it is asked for and never kept.

    It travels to loader workers if `build` does: a bound method or a `functools.partial`, not a lambda. Whoever reads all
    items asks for long slices: `build_slice(first, last)`, if given, makes the items of one at once (`last` is not in it).
    """

    def __init__(
        self,
        length: int,
        build: Callable[[int], Item],
        build_slice: Callable[[int, int], list[Item]] | None = None,
    ) -> None:
        self.length, self.build, self.build_slice = length, build, build_slice

    def __len__(self) -> int:
        """How many items there are."""
        return self.length

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        """The item at an index, built now; a slice is a list of items."""
        if isinstance(index, slice):
            first, last, step = index.indices(self.length)
            if self.build_slice is not None and step == 1 and first < last:
                return self.build_slice(first, last)
            return [self.build(i) for i in range(first, last, step)]
        return self.build(range(self.length)[index])


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
    """Several sets as one, each with its share, drawn by seed.

    The law: of `size` examples, set i gives `size * weights[i] / sum(weights)`, rounded so that the parts add up to
    `size` (largest remainder). Which of a set's examples are drawn, and the order of all of them, depend on the seed,
    the sizes and the weights only. No example occurs twice; with `repeat`, a set that is too small is walked in laps,
    each lap a new permutation of the whole set, so that every example of it occurs either k or k + 1 times.

    Args:
        sets: The sets to mix. They may be lazy; an example is built when it is asked for.
        weights: One positive number a set. Only their ratios matter.
        size: How many examples in all; by default as many as the shares allow without repeating one.
        seed: Another seed, another draw and another order.
        repeat: Allow a set to be walked more than once.

    Raises:
        ValueError: If the weights or the size make no sense.
        BadData: If a set is empty, or too small for its share without `repeat`.
    """

    def __init__(
        self,
        sets: Sequence[Sequence[Example]],
        weights: Sequence[float],
        size: int | None = None,
        seed: int = 0,
        repeat: bool = False,
    ) -> None:
        if not sets or len(sets) != len(weights):
            raise ValueError(f"A mixture of {len(sets)} sets has {len(weights)} weights: give one weight to each set.")
        if not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise ValueError(f"Mixture weights are {list(weights)}: each must be a positive number.")
        for number, each in enumerate(sets):
            if not len(each):
                raise BadData(f"Set {number} of the mixture is empty. Remove it, or correct its source.")
        if size is None:
            size = max(
                1, math.floor(min(len(each) / share for each, share in zip(sets, _shares(weights), strict=True)))
            )
        if size < 1:
            raise ValueError(f"Mixture size is {size}: it must be at least 1.")
        counts = apportioned(size, weights)
        for number, (each, count) in enumerate(zip(sets, counts, strict=True)):
            if count > len(each) and not repeat:
                raise BadData(
                    f"Set {number} of the mixture has {len(each)} examples and its share of {size} is {count}. "
                    "Lower size or its weight, or set repeat to true."
                )
        self.sets, self.counts = tuple(sets), counts
        picks = [
            (number, index)
            for number, count in enumerate(counts)
            for index in _laps(len(sets[number]), count, seed, number)
        ]
        random.Random(f"order/{seed}").shuffle(picks)
        self._set_of = array("H", [number for number, _ in picks])
        self._index_of = array("L", [index for _, index in picks])
        super().__init__(size, self._example)

    def _example(self, position: int) -> Example:
        return self.sets[self._set_of[position]][self._index_of[position]]


def apportioned(size: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers that add up to `size`, each within one of its exact share (largest remainder)."""
    exact = [size * share for share in _shares(weights)]
    counts = [math.floor(part) for part in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: size - sum(counts)]:
        counts[i] += 1
    return counts


def _shares(weights: Sequence[float]) -> list[float]:
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def _laps(length: int, count: int, seed: int, number: int) -> list[int]:
    """`count` indices: whole permutations one after the other, the last one cut."""
    picks: list[int] = []
    lap = 0
    while len(picks) < count:
        draw = random.Random(f"draw/{seed}/{number}/{lap}")
        picks += draw.sample(range(length), min(length, count - len(picks)))
        lap += 1
    return picks
