"""Data order as a pure function of (step, rank, world_size, seed): nothing to save, nothing to restore.

Each set is walked in laps; a lap is a permutation seeded by (seed, set, lap). A step takes the next places of both walks:
`batch_size * world_size` unsafe examples, and as many retain examples as keep the total at floor(gamma * unsafe).

Properties: a lap is a permutation; walking a + b equals walking a, then b; 1 rank x 4 sees in a step what 2 ranks x 2 see,
and what two steps of 2 see; over any window the number of retain examples is within 1 of gamma times the number of unsafe
ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Side = Literal["unsafe", "retain"]
_SIDES: tuple[Side, Side] = ("unsafe", "retain")


class Step(NamedTuple):
    """What one rank sees in one step: indices into both sets, and for each how often its set has been walked before."""

    unsafe: tuple[int, ...]
    retain: tuple[int, ...]
    unsafe_laps: tuple[int, ...] = ()
    retain_laps: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Order:
    """Everything that data order depends on besides step, rank and world_size.

    Args:
        num_unsafe: Size of the unsafe set; 0 for retain-only training.
        num_retain: Size of the retain set.
        batch_size: Unsafe examples per rank and step; retain examples if there are no unsafe ones.
        gamma: Retain examples per unsafe example, greater than 0.
        seed: Seed of the permutations.
    """

    num_unsafe: int
    num_retain: int
    batch_size: int
    gamma: float
    seed: int

    def steps_per_epoch(self, world_size: int) -> int:
        """Steps until every unsafe example (retain example, without unsafe ones) has been seen once."""
        return math.ceil((self.num_unsafe or self.num_retain) / (self.batch_size * world_size))


def step_at(index: int, rank: int, world_size: int, order: Order) -> Step:
    """The examples that rank `rank` of `world_size` sees in step `index`."""
    together = order.batch_size * world_size
    start, stop = index * together, (index + 1) * together
    gamma = Fraction(repr(order.gamma))  # exact: 0.1 * 30 in floats is above 3
    first, last = (math.floor(gamma * start), math.floor(gamma * stop)) if order.num_unsafe else (start, stop)
    # rank r takes every world_size-th place, counted on from the walk's beginning so that the shares stay even
    unsafe = range(start + rank, stop if order.num_unsafe else start, world_size)
    retain = range(first + (rank - first) % world_size, last, world_size)
    return Step(
        walk("unsafe", unsafe.start, unsafe.stop, world_size, order),
        walk("retain", retain.start, retain.stop, world_size, order),
        tuple(place // order.num_unsafe for place in unsafe),
        tuple(place // order.num_retain for place in retain),
    )


def walk(side: Side, start: int, stop: int, stride: int, order: Order) -> tuple[int, ...]:
    """The indices at places start, start + stride, ... below stop of the endless walk through one set."""
    size = order.num_unsafe if side == "unsafe" else order.num_retain
    places = range(start, stop, stride)
    return tuple(int(_lap(side, place // size, size, order.seed)[place % size]) for place in places)


@lru_cache(maxsize=4)
def _lap(side: Side, lap: int, size: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, _SIDES.index(side), lap]).permutation(size)
