"""The losses: parity with independent float64 derivations, and the laws that keep a number from moving with its batch.

B examples, S positions, V tokens of the vocabulary, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from reference import activations as reference_activations
from reference import answers as reference_answers
from torch import Tensor

from mirage import losses
from mirage.data.order import Order, Step, step_at

V, D = 17, 12
# (before the answer, answer, second answer or 0): lengths differ, and one example has no answer at all
SHAPES = [(5, 3, 0), (2, 1, 0), (9, 6, 2), (4, 0, 0), (1, 8, 0)]


class Sample(NamedTuple):
    """One example without padding."""

    logits_SV: Tensor
    labels_S: Tensor
    hidden_SD: Tensor
    frozen_SD: Tensor
    mask_S: Tensor


class Batch(NamedTuple):
    """Examples padded on the right; one more dimension in front."""

    logits_BSV: Tensor
    labels_BS: Tensor
    hidden_BSD: Tensor
    frozen_BSD: Tensor
    mask_BS: Tensor


def samples() -> list[Sample]:
    torch.manual_seed(0)
    made = []
    for asked, answered, again in SHAPES:
        labels = [losses.IGNORED] * asked + torch.randint(V, (answered,)).tolist()
        labels += [losses.IGNORED] * 2 + torch.randint(V, (again,)).tolist() if again else []
        size = len(labels)
        labels_S = torch.tensor(labels)
        mask_S = (torch.rand(size) < 0.6).long() if answered else torch.zeros(size, dtype=torch.long)
        made.append(Sample(3 * torch.randn(size, V), labels_S, torch.randn(size, D), torch.randn(size, D), mask_S))
    return made


def padded(chosen: list[Sample], extra: int = 0, garbage: float = 0.0) -> Batch:
    """The batch of `chosen`, `extra` positions longer than it need be, activations and logits of padding `garbage`."""
    longest = max(len(sample.labels_S) for sample in chosen) + extra

    def stack(tensors: list[Tensor], fill: float) -> Tensor:
        out = torch.full((len(tensors), longest, *tensors[0].shape[1:]), fill, dtype=tensors[0].dtype)
        for row, tensor in enumerate(tensors):
            out[row, : len(tensor)] = tensor
        return out

    fills = (garbage, losses.IGNORED, garbage, -garbage, 0)
    return Batch(*(stack(list(tensors), fill) for tensors, fill in zip(zip(*chosen, strict=True), fills, strict=True)))


TARGET_D = torch.linspace(-1.0, 2.0, D)


def assert_equal(loss_B: Tensor, derived: list[float]) -> None:
    """Equal as far as float32 goes, in which the losses count."""
    np.testing.assert_allclose(loss_B.numpy(), derived, rtol=1e-5, atol=1e-6)


PER_EXAMPLE: dict[str, Callable[[Batch], Tensor]] = {
    "sft": lambda batch: losses.sft(batch.logits_BSV, batch.labels_BS),
    "answer_logp": lambda batch: losses.answer_logp(batch.logits_BSV, batch.labels_BS),
    "npo": lambda batch: losses.npo(
        losses.answer_logp(batch.logits_BSV, batch.labels_BS), torch.tensor([-9.0]), beta=0.3
    ),
    "steering": lambda batch: losses.rmu_forget(batch.hidden_BSD, TARGET_D, batch.mask_BS),
    "anchoring": lambda batch: losses.rmu_retain(batch.hidden_BSD, batch.frozen_BSD, batch.mask_BS),
}
every_loss = pytest.mark.parametrize("loss", PER_EXAMPLE.values(), ids=PER_EXAMPLE.keys())


def slopes(loss: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
    """The gradient of the summed loss by logits and activations: (B, S, V + D)."""
    logits_BSV, hidden_BSD = (tensor.clone().requires_grad_() for tensor in (batch.logits_BSV, batch.hidden_BSD))
    loss(batch._replace(logits_BSV=logits_BSV, hidden_BSD=hidden_BSD)).sum().backward()
    gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in (logits_BSV, hidden_BSD)]
    return torch.cat(gradients, dim=2)


# Parity


def test_answers_equal_their_derivation() -> None:
    batch = padded(samples())
    arrays = [(sample.logits_SV.double().numpy(), sample.labels_S.numpy()) for sample in samples()]
    sft = [reference_answers.sft(*array) for array in arrays]
    assert sft[3] == 0.0  # no answer
    assert_equal(losses.sft(batch.logits_BSV, batch.labels_BS), sft)
    surprises = [reference_answers.surprise(*array) for array in arrays]
    assert_equal(-losses.answer_logp(batch.logits_BSV, batch.labels_BS), surprises)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0, 2.5])
def test_npo_and_its_slope_equal_their_derivation(beta: float) -> None:
    policy_B = torch.tensor([-3.0, -30.0, -0.5, -12.0, -12.1], dtype=torch.float64, requires_grad=True)
    reference_B = torch.tensor([-3.0, -4.0, -9.0, -12.1, -12.0], dtype=torch.float64)
    pairs = list(zip(policy_B.detach().exp().tolist(), reference_B.exp().tolist(), strict=True))
    loss_B = losses.npo(policy_B, reference_B, beta)
    np.testing.assert_allclose(loss_B.detach(), [reference_answers.npo(*pair, beta) for pair in pairs], rtol=1e-9)
    (slope_B,) = torch.autograd.grad(loss_B.sum(), policy_B)
    np.testing.assert_allclose(slope_B, [reference_answers.npo_slope(*pair, beta) for pair in pairs], rtol=1e-9)


def test_activations_equal_their_derivation() -> None:
    batch, coefficient = padded(samples()), 6.5
    direction_D = torch.rand(D)
    target_D = coefficient * direction_D / direction_D.norm()
    steered, kept = [], []
    for sample in samples():
        counted = [place for place, value in enumerate(sample.mask_S.tolist()) if value]
        hidden, frozen = sample.hidden_SD.double().numpy(), sample.frozen_SD.double().numpy()
        steered.append(reference_activations.steering(hidden, direction_D.double().numpy(), coefficient, counted))
        kept.append(reference_activations.anchoring(hidden, frozen, counted))
    assert_equal(losses.rmu_forget(batch.hidden_BSD, target_D, batch.mask_BS), steered)
    assert_equal(losses.rmu_retain(batch.hidden_BSD, batch.frozen_BSD, batch.mask_BS), kept)


# Closed forms


def test_checkpoints_of_the_docstrings_hold() -> None:
    labels_BS = torch.tensor([[-100, 3, 4, -100], [-100, -100, 1, 2]])
    uniform_BSV = torch.full((2, 4, V), 0.7)
    torch.testing.assert_close(losses.sft(uniform_BSV, labels_BS), torch.full((2,), math.log(V)))
    logp_B = torch.tensor([-1.0, -40.0])
    for beta in (0.1, 1.0, 3.0):
        torch.testing.assert_close(losses.npo(logp_B, logp_B, beta), torch.full((2,), 2 * math.log(2) / beta))
    coefficient = 5.0
    target_D = coefficient * TARGET_D / TARGET_D.norm()
    zero_BSD, mask_BS = torch.zeros(2, 4, D), torch.tensor([[0, 1, 1, 0], [0, 1, 1, 1]])
    torch.testing.assert_close(losses.rmu_forget(zero_BSD, target_D, mask_BS), torch.full((2,), coefficient**2))
    hidden_BSD = torch.randn(2, 4, D)
    assert losses.rmu_retain(hidden_BSD, hidden_BSD.clone(), mask_BS).tolist() == [0.0, 0.0]


def test_npo_pushes_with_2_nats_a_nat_at_most_and_lets_go_of_what_has_become_unlikely() -> None:
    reference_B = torch.zeros(6)
    policy_B = torch.tensor([1e4, 30.0, 0.0, -30.0, -300.0, -1e4], requires_grad=True)
    loss_B = losses.npo(policy_B, reference_B, beta=0.5)
    loss_B.sum().backward()
    assert policy_B.grad is not None
    slopes = policy_B.grad.tolist()
    assert loss_B.isfinite().all() and (loss_B >= 0).all()
    assert all(0 <= slope <= 2 for slope in slopes) and slopes == sorted(slopes, reverse=True)
    assert slopes[0] == 2.0 and slopes[2] == 1.0  # as gradient ascent would, twice; half of it where both agree
    assert slopes[3] < 1e-6 and slopes[4] < 1e-30 and slopes[5] == 0.0


# Laws


@every_loss
def test_a_batch_is_the_stack_of_its_singles(loss: Callable[[Batch], Tensor]) -> None:
    chosen = samples()
    together_B = loss(padded(chosen))
    alone = torch.cat([loss(padded([sample])) for sample in chosen])
    assert together_B.shape == (len(chosen),)
    torch.testing.assert_close(together_B, alone)
    torch.testing.assert_close(loss(padded(chosen[::-1])), together_B.flip(0))


@every_loss
@pytest.mark.parametrize("garbage", [0.0, 1e30, math.inf, math.nan])
def test_padding_changes_nothing(loss: Callable[[Batch], Tensor], garbage: float) -> None:
    chosen = samples()
    expected_B = loss(padded(chosen))
    torch.testing.assert_close(loss(padded(chosen, extra=7, garbage=garbage)), expected_B)


@pytest.mark.parametrize("garbage", [1e30, math.inf, math.nan])
def test_what_is_not_counted_gets_no_gradient(garbage: float) -> None:
    batch = padded(samples(), extra=3, garbage=garbage)
    for name in ("steering", "anchoring"):
        assert ((slopes(PER_EXAMPLE[name], batch) != 0).any(-1) == batch.mask_BS.bool()).all()
    finite = padded(samples(), extra=3, garbage=7.0)
    predicting = losses.answer_positions(finite.labels_BS)
    assert ((slopes(PER_EXAMPLE["sft"], finite) != 0).any(-1) == predicting).all()


@every_loss
def test_an_example_that_counts_nowhere_is_0_and_leaves_its_neighbours_alone(loss: Callable[[Batch], Tensor]) -> None:
    chosen = samples()
    empty, rest = chosen[3], chosen[:3] + chosen[4:]
    with_it, without = padded([empty, *rest]), padded(rest)
    if loss is not PER_EXAMPLE["npo"]:  # whose zero is log pi = 0, not the loss
        assert loss(with_it)[0] == 0.0
    torch.testing.assert_close(loss(with_it)[1:], loss(without))
    inside, outside = (slopes(loss, batch) for batch in (with_it, without))
    assert (inside[0] == 0).all()
    torch.testing.assert_close(inside[1:], outside)


def test_masks_point_at_what_predicts_and_count_what_is_predicted() -> None:
    ignored = losses.IGNORED
    labels_BS = torch.tensor(
        [
            [ignored, ignored, 5, 6, ignored, ignored],  # one answer, then padding
            [ignored, 4, ignored, ignored, 7, 8],  # two turns
            [9, ignored, ignored, ignored, ignored, ignored],  # nothing predicts the first token
        ]
    )
    predicting = [[0, 1, 1, 0, 0, 0], [1, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]]
    assert losses.answer_positions(labels_BS).long().tolist() == predicting
    assert losses.num_answer_tokens(labels_BS).tolist() == [2, 3, 1]  # 1 so that it can divide
    logp_BS, counted_BS = losses.token_logp(torch.zeros(3, 6, V), labels_BS)
    assert counted_BS.tolist() == [row[:-1] for row in predicting]
    torch.testing.assert_close(logp_BS, -math.log(V) * counted_BS)


# The objective does not depend on how a step is cut


UNSAFE, RETAIN = 20, 10


def on_this_rank(step: Step, num_unsafe: int, weight: Tensor) -> Tensor:
    """The objective of one rank's batch, of losses that differ from example to example and depend on one weight."""
    unsafe_B = torch.stack([(weight - k).square() for k in step.unsafe])
    retain_B = torch.stack([(0.3 * weight + k).exp() for k in step.retain]) if step.retain else None
    return losses.objective(unsafe_B, retain_B, num_unsafe)


@pytest.mark.parametrize("gamma", [0.3, 0.5, 1.0, 2.5])
def test_a_step_is_the_same_however_it_is_cut_and_whole_laps_give_the_objective_of_the_paper(gamma: float) -> None:
    """A step of 4 is 2 accumulated batches of 2, and 2 ranks of 2; Lightning and DDP take the mean of the shares."""
    weight = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    four, two = (Order(UNSAFE, RETAIN, size, gamma, seed=3) for size in (4, 2))
    whole = []
    for index in range(four.steps_per_epoch(1)):
        cuts = [
            [on_this_rank(step_at(index, 0, 1, four), 4, weight)],
            [on_this_rank(step_at(2 * index + k, 0, 1, two), 2, weight) for k in range(2)],  # accumulated
            [on_this_rank(step_at(index, rank, 2, two), 2, weight) for rank in range(2)],
        ]
        means = [torch.stack(cut).mean() for cut in cuts]
        slopes = [torch.autograd.grad(mean, weight, retain_graph=True)[0] for mean in means]
        for numbers in (means, slopes):
            torch.testing.assert_close(torch.stack(numbers[1:]), numbers[0].expand(2), rtol=1e-12, atol=0)
        whole.append(means[0])
    unsafe = torch.stack([(weight - k).square() for k in range(UNSAFE)]).mean()
    retain = torch.stack([(0.3 * weight + k).exp() for k in range(RETAIN)]).mean()
    if (gamma * UNSAFE / RETAIN).is_integer():  # whole laps of both sets
        torch.testing.assert_close(torch.stack(whole).mean(), unsafe + gamma * retain, rtol=1e-12, atol=0)
