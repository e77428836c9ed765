"""Supervised safety fine-tuning, and the baseline without any."""

from __future__ import annotations

from mirage import losses
from mirage.batch import Pair
from mirage.methods.base import AlignmentModule, LossTerms


def cross_entropy_terms(self: AlignmentModule, pair: Pair) -> LossTerms:
    """l_u = -log pi(refusal | x) / tokens (0 without an unsafe set); l_r = -log pi(answer | x) / tokens."""
    loss_B = losses.sft(*self.answer_logits(self.merged(pair)))
    unsafe_B, retain_B = loss_B[: pair.num_unsafe], loss_B[pair.num_unsafe :]
    return LossTerms(unsafe_B if len(unsafe_B) else None, retain_B if len(retain_B) else None)


class MixedSFT(AlignmentModule):
    """Mixed-SFT: cross entropy of refusals on the unsafe set and of good answers on the whole instruction mix.

    VLGuard's "mixed" fine-tuning (arXiv 2402.02207): safety data mixed into instruction tuning, so it starts from the
    weights before that. Same loss as `PosthocSFT`; they differ in starting weights, retain set and gamma.
    """

    unsafe_answers = "refusal"
    loss_terms = cross_entropy_terms


class PosthocSFT(AlignmentModule):
    """Posthoc-SFT: a finished model tuned afterwards on refusals and a small helpful set.

    VLGuard's "post-hoc" fine-tuning (arXiv 2402.02207).
    """

    unsafe_answers = "refusal"
    loss_terms = cross_entropy_terms


class UnsafeFilter(AlignmentModule):
    """Unsafe-Filter, the baseline: instruction tuning on a retain set from which harmful samples have been filtered."""

    unsafe_answers = None
    loss_terms = cross_entropy_terms
