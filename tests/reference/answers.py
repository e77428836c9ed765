"""What the losses on answers are, from the papers' equations: probabilities in float64, one token at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
NOT_ANSWERED = -100


def answer_probabilities(logits_SV: Floats, labels_S: Ints) -> Iterator[float]:
    """p(y_t | x, y_<t) of each answer token: the softmax at the place before it."""
    for place in range(1, len(labels_S)):
        token = labels_S[place]
        if token != NOT_ANSWERED:
            before = logits_SV[place - 1].astype(np.float64)
            weights = np.exp(before - before.max())
            yield float(weights[token] / weights.sum())


def surprise(logits_SV: Floats, labels_S: Ints) -> float:
    """-log pi(y|x) in nats, pi(y|x) being the product of its tokens' probabilities."""
    return math.fsum(math.log(1.0 / p) for p in answer_probabilities(logits_SV, labels_S))


def sft(logits_SV: Floats, labels_S: Ints) -> float:
    """The negative log-likelihood of one answer per token: log of the inverse geometric mean of its probabilities."""
    probabilities = list(answer_probabilities(logits_SV, labels_S))
    if not probabilities:
        return 0.0
    return math.log(math.exp(math.fsum(math.log(1.0 / p) for p in probabilities)) ** (1.0 / len(probabilities)))


def npo(policy: float, reference: float, beta: float) -> float:
    """Zhang et al. 2024, eq. 3, in its other form: (2 / beta) log(1 + (pi_theta / pi_ref)^beta), of two probabilities."""
    return 2.0 / beta * math.log1p((policy / reference) ** beta)


def npo_slope(policy: float, reference: float, beta: float) -> float:
    """Its derivative by log pi_theta: 2 r / (1 + r) with r = (pi_theta / pi_ref)^beta, between 0 and 2."""
    ratio = (policy / reference) ** beta
    return 2.0 * ratio / (1.0 + ratio)
