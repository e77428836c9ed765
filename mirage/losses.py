"""Every loss of mirage: pure functions of tensors, one value per example.

Shapes
    B   examples                S   positions of the padded sequence
    V   vocabulary              D   hidden width

Masks are 1 on positions that count and 0 elsewhere. A loss is `loss_B`, one value an example; none averages over the batch,
so that a batch is the mean of its singles however long they are, and the objective

    l_u(theta; D_u) + gamma * l_r(theta; D_r)                                        (Safety Mirage, arXiv 2503.11832)

does not depend on how a step is split into ranks and accumulated batches. Cross entropy and RMU
are 0 for an example with no counted position.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100  # the label of positions that are not answered: system, user, image and padding


def token_logp(logits_BSV: Tensor, labels_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability in nats of every label, and the mask of those that count.

    Both are (B, S - 1): position s predicts label s + 1.
    """
    targets = _targets(labels_BS)
    counted = targets != IGNORED
    flat = F.cross_entropy(logits_BSV[:, :-1].transpose(1, 2).float(), targets, ignore_index=IGNORED, reduction="none")
    return -flat, counted.to(flat.dtype)


def answer_logp(logits_BSV: Tensor, labels_BS: Tensor) -> Tensor:
    """Log-probability in nats of each whole answer, summed over its tokens: (B,), at most 0."""
    logp, _ = token_logp(logits_BSV, labels_BS)
    return logp.sum(1)


def answer_positions(labels_BS: Tensor) -> Tensor:
    """1 at the positions from which an answer token is predicted, the last of the question included: (B, S)."""
    return F.pad(_targets(labels_BS) != IGNORED, (0, 1))


def num_answer_tokens(labels_BS: Tensor) -> Tensor:
    """How many tokens of each answer are predicted: (B,), at least 1 so that it can divide."""
    return (_targets(labels_BS) != IGNORED).sum(1).clamp(min=1)


def sft(logits_BSV: Tensor, labels_BS: Tensor) -> Tensor:
    """Cross entropy of each answer, averaged over its tokens: (B,), in nats per token.

    The l_u of Mixed-SFT and Posthoc-SFT on refusals, and the l_ft of every method on the retain set. LLaVA's own loss
    averages over all tokens of a batch instead, which weighs long answers more and changes with the batch.
    Equals ln V for uniform logits.
    """
    return -answer_logp(logits_BSV, labels_BS) / num_answer_tokens(labels_BS)


def npo(policy_logp_B: Tensor, reference_logp_B: Tensor, beta: float) -> Tensor:
    """Negative preference optimisation: (B,), at least 0.

    -(2 / beta) * log sigmoid(-beta * log(pi_theta(y|x) / pi_ref(y|x))), y the harmful answer (Zhang et al. 2024, eq. 3).
    `policy_logp_B` and `reference_logp_B` are summed over the answer, as the definition has it; per-token means in their
    place give the published Safety Mirage code's scale (its beta is beta / tokens here), though that code also averages
    over the batch before the sigmoid, which this never does.
    Equals 2 ln 2 / beta when policy == reference; its gradient is at most 2 per nat and vanishes as the answer becomes
    unlikely, which is what keeps it from running away as gradient ascent does.
    """
    return -(2.0 / beta) * F.logsigmoid(-beta * (policy_logp_B - reference_logp_B))


def rmu_forget(hidden_BSD: Tensor, target_D: Tensor, mask_BS: Tensor) -> Tensor:
    """RMU's l_u: (B,), the mean over counted positions of ||h - target||^2, target = c * u / ||u||.

    Li et al. 2024 (WMDP), eq. 1, as a squared norm: the authors' code and Safety Mirage's take the mean over D as well
    (1/D of this) and over every position, padding included; here only `mask_BS` counts, and each example by itself.
    Equals c^2 for zero activations.
    """
    return _mean_square(hidden_BSD.float() - target_D.float(), mask_BS)


def rmu_retain(hidden_BSD: Tensor, reference_BSD: Tensor, mask_BS: Tensor) -> Tensor:
    """RMU's l_mu,r: (B,), the mean over counted positions of ||h - h_ref||^2 (eq. 2). Equals 0 at the start."""
    return _mean_square(hidden_BSD.float() - reference_BSD.float(), mask_BS)


def objective(unsafe_B: Tensor | None, retain_B: Tensor | None, num_unsafe: int) -> Tensor:
    """The scalar to minimise on one rank: (sum of unsafe + sum of retain) / number of unsafe examples.

    gamma is not a factor here. It is applied by the data order (`data.order.step_at`), which puts gamma retain examples per
    unsafe example into a step, so the expectation of this quotient is l_u + gamma * l_r. The mean over accumulated batches
    and ranks is the same number, since each of them holds the same number of unsafe examples.
    """
    sums = [loss_B.sum() for loss_B in (unsafe_B, retain_B) if loss_B is not None]
    return torch.stack(sums).sum() / num_unsafe


def _targets(labels_BS: Tensor) -> Tensor:
    """What each position but the last predicts: the one place where labels are shifted."""
    return labels_BS[:, 1:]


def _mean_square(difference_BSD: Tensor, mask_BS: Tensor) -> Tensor:
    # where, not a product: padding may hold inf or nan, and 0 * inf is nan; before the square, or its gradient is nan too
    counted_BSD = torch.where(mask_BS[..., None] > 0, difference_BSD, 0.0)
    return counted_BSD.square().sum((1, 2)) / mask_BS.sum(1).clamp(min=1)
