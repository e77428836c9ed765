"""Sequences that are not lists: items built on demand, and a choice of another sequence's items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, overload

Item = TypeVar("Item", covariant=True)

_BLOCK = 256  # items in memory at a time while all are read; more make the garbage collector's work grow


class Lazy(Sequence[Item]):
    """`length` items, the i-th made by `build(i)` each time it is asked for and never kept.

    `build_many(places)`, if given, makes the items at many places at once, in the order of the places; whoever reads all
    items, or a slice of them, has them from it. A sequence travels to loader workers if its functions do: a bound method
    or a `functools.partial`, not a lambda.
    """

    def __init__(
        self,
        length: int,
        build: Callable[[int], Item],
        build_many: Callable[[Sequence[int]], list[Item]] | None = None,
    ) -> None:
        self.length, self.build, self.build_many = length, build, build_many

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
            return self.at(range(self.length)[index])
        return self.build(range(self.length)[index])

    def __iter__(self) -> Iterator[Item]:
        """All items in order, few of them in memory at a time."""
        block = 1 if self.build_many is None else _BLOCK
        for start in range(0, self.length, block):
            yield from self.at(range(start, min(start + block, self.length)))

    def at(self, places: Sequence[int]) -> list[Item]:
        """The items at some places (0 to length - 1), in the order of the places."""
        if self.build_many is not None and len(places) > 1:
            return self.build_many(places)
        return [self.build(place) for place in places]


class Chosen(Lazy[Item]):
    """The items of another sequence at given places, in the order of the places."""

    def __init__(self, items: Sequence[Item], places: Sequence[int]) -> None:
        self.items, self.places = items, places
        super().__init__(len(places), self._one, self._many)

    def _one(self, index: int) -> Item:
        return self.items[self.places[index]]

    def _many(self, indices: Sequence[int]) -> list[Item]:
        return items_at(self.items, [self.places[index] for index in indices])


def items_at(items: Sequence[Item], places: Sequence[int]) -> list[Item]:
    """The items of any sequence at some places, in the order of the places."""
    if isinstance(items, Lazy):
        return items.at(places)
    return [items[place] for place in places]
