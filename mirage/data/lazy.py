"""Sequences that are not lists: items built on demand, and a choice of another sequence's items."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, overload

Item = TypeVar("Item", covariant=True)

_BLOCK = 256  # items in memory at a time while all are read; more make the garbage collector's work grow


class Lazy(Sequence[Item]):
    """`length` items, made by `build` each time they are asked for and never kept.

    `build(places)` makes the items at some places (0 to length - 1), in the order of the places. A sequence travels to
    loader workers if `build` does: a bound method or a `functools.partial`, not a lambda.
    """

    def __init__(self, length: int, build: Callable[[Sequence[int]], list[Item]]) -> None:
        self.length, self.build = length, build

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
            return self.build(range(self.length)[index])
        return self.build([range(self.length)[index]])[0]

    def __iter__(self) -> Iterator[Item]:
        """All items in order, few of them in memory at a time."""
        for start in range(0, self.length, _BLOCK):
            yield from self.build(range(start, min(start + _BLOCK, self.length)))


class Chosen(Lazy[Item]):
    """The items of another sequence at given places, in the order of the places."""

    def __init__(self, items: Sequence[Item], places: Sequence[int]) -> None:
        self.items, self.places = items, places
        super().__init__(len(places), self._chosen)

    def _chosen(self, indices: Sequence[int]) -> list[Item]:
        return items_at(self.items, [self.places[index] for index in indices])


def sampled(items: Sequence[Item], most: int | None = 4096, seed: int = 0) -> list[Item]:
    """All items of a small set, and `most` of a large one, the same for the same seed, in their order."""
    if most is None or most >= len(items):
        return list(items)
    return items_at(items, sorted(random.Random(seed).sample(range(len(items)), most)))


def items_at(items: Sequence[Item], places: Sequence[int]) -> list[Item]:
    """The items of any sequence at some places, in the order of the places."""
    if isinstance(items, Lazy):
        return items.build(places)
    return [items[place] for place in places]
