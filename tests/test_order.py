"""Data order: laps are permutations, nothing depends on the layout, gamma is exact over any window."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from fractions import Fraction

import pytest

from mirage.data.loading import Steps
from mirage.data.order import Order, Step, step_at, walk

GAMMAS = [0.1, 0.3, 1 / 3, 0.999, 1, 1.0, 2.5, 7.0, 1e-05]


def order(batch_size: int = 4, gamma: float = 0.3, *, unsafe: int = 23, retain: int = 17, seed: int = 5) -> Order:
    return Order(unsafe, retain, batch_size, gamma, seed)


def together(steps: list[Step]) -> tuple[Counter[tuple[int, int]], Counter[tuple[int, int]]]:
    """What the steps hold, as multisets of example and lap."""
    return (
        Counter(use for step in steps for use in zip(step.unsafe, step.unsafe_laps, strict=True)),
        Counter(use for step in steps for use in zip(step.retain, step.retain_laps, strict=True)),
    )


@pytest.mark.parametrize("side", ["unsafe", "retain"])
def test_every_lap_is_a_permutation_and_no_two_are_alike(side: str) -> None:
    size = {"unsafe": 23, "retain": 17}[side]
    laps = [walk(side, lap * size, (lap + 1) * size, 1, order()) for lap in range(6)]  # type: ignore[arg-type]
    assert all(sorted(lap) == list(range(size)) for lap in laps)
    assert len(set(laps)) == 6


@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_layout_does_not_change_what_a_step_sees(gamma: float) -> None:
    four, two, one = (order(size, gamma) for size in (4, 2, 1))
    for index in range(30):
        whole = together([step_at(index, 0, 1, four)])
        assert together([step_at(index, rank, 2, two) for rank in range(2)]) == whole
        assert together([step_at(index, rank, 4, one) for rank in range(4)]) == whole
        assert together([step_at(2 * index + k, 0, 1, two) for k in range(2)]) == whole
    for uses in together([step_at(index, 0, 1, four) for index in range(30)]):
        assert set(uses.values()) <= {1}, "an example is used once in a lap"


def test_ranks_share_no_example_within_a_lap() -> None:
    whole_laps = order(2, 1.0, unsafe=24, retain=24)  # 4 steps of 3 ranks x 2: one lap of each set
    for start in (0, 4, 8):
        unsafe, retain = together([step_at(start + k, rank, 3, whole_laps) for k in range(4) for rank in range(3)])
        assert set(unsafe.values()) == set(retain.values()) == {1}
        assert len(unsafe) == len(retain) == 24 and {lap for _, lap in (*unsafe, *retain)} == {start // 4}


@pytest.mark.parametrize("gamma", GAMMAS)
def test_gamma_is_exact_over_any_window(gamma: float) -> None:
    exact = Fraction(str(gamma))
    draw = random.Random(0)
    for _ in range(50):
        batch_size, world_size = draw.randint(1, 9), draw.randint(1, 4)
        start, length = draw.randint(0, 10**6), draw.randint(1, 30)
        settings = order(batch_size, gamma)
        steps = [
            step_at(index, r, world_size, settings) for index in range(start, start + length) for r in range(world_size)
        ]
        num_unsafe, num_retain = (sum(len(step[side]) for step in steps) for side in range(2))
        assert num_unsafe == batch_size * world_size * length
        assert abs(num_retain - exact * num_unsafe) < 1
        from_the_beginning = sum(len(step_at(index, 0, 1, settings).retain) for index in range(length))
        assert from_the_beginning == math.floor(exact * batch_size * length)


@pytest.mark.parametrize("gamma", [0.1, 1 / 3, 1.0, 2.5])
@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_the_ranks_have_even_shares_of_the_retain_set(gamma: float, world_size: int) -> None:
    so_far = [0] * world_size
    for index in range(200):
        steps = [step_at(index, rank, world_size, order(2, gamma)) for rank in range(world_size)]
        counts = [len(step.retain) for step in steps]
        assert max(counts) - min(counts) <= 1
        so_far = [have + count for have, count in zip(so_far, counts, strict=True)]
        assert max(so_far) - min(so_far) <= 1
        assert {len(step.unsafe) for step in steps} == {2}


def test_seeds_and_sets_and_laps_differ_and_calls_repeat() -> None:
    first, other = (order(8, 1.0, unsafe=64, retain=64, seed=seed) for seed in (1, 2))
    assert step_at(3, 0, 1, first) == step_at(3, 0, 1, first)
    assert step_at(3, 0, 1, first) != step_at(3, 0, 1, other)
    assert step_at(3, 0, 1, first).unsafe != step_at(3, 0, 1, first).retain


def test_without_an_unsafe_set_the_batch_is_of_retain_examples() -> None:
    only_retain = order(2, 2.5, unsafe=0)
    steps = [step_at(index, rank, 2, only_retain) for index in range(4) for rank in range(2)]
    assert {(len(step.unsafe), len(step.retain)) for step in steps} == {(0, 2)}
    assert set(together(steps)[1].values()) == {1}
    assert only_retain.steps_per_epoch(2) == 5  # 17 retain examples, 4 a step


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_an_epoch_goes_on_from_any_step(accumulate: int) -> None:
    settings = order()  # 23 unsafe examples, 4 a step: 6 steps
    position = 0
    steps = Steps(settings, rank=1, world_size=2, accumulate=accumulate, position=lambda: position)
    assert len(steps) % accumulate == 0 and len(steps) >= settings.steps_per_epoch(2)
    straight = [step_at(index, 1, 2, settings) for index in range(3 * len(steps))]
    walked: list[Step] = []
    for _ in range(3):
        walked += steps
        position += len(steps)
    assert walked == straight
    for position in range(len(steps), 2 * len(steps)):  # the sampler asks for it
        # as many as a whole epoch has: an epoch that is cut short (limit_train_batches) begins in the middle of a lap
        assert list(steps) == straight[position : position + len(steps)]


def test_every_unsafe_example_is_seen_in_an_epoch() -> None:
    for batch_size, world_size in itertools.product((1, 4, 30), (1, 3)):
        settings = order(batch_size)
        epoch = range(settings.steps_per_epoch(world_size))
        steps = [step_at(index, rank, world_size, settings) for index in epoch for rank in range(world_size)]
        assert {index for index, _ in together(steps)[0]} == set(range(23))
        assert (len(epoch) - 1) * batch_size * world_size < 23
