"""Supervised safety fine-tuning, and the baseline without any."""

from __future__ import annotations

from mirage import losses
from mirage.batch import Pair
from mirage.methods.base import AlignmentModule, LossTerms


class MixedSFT(AlignmentModule):
    """Mixed-SFT: cross entropy of refusals on the unsafe set and of good answers on the whole instruction mix.

    VLGuard's "mixed" fine-tuning (arXiv 2402.02207): safety data mixed into instruction tuning, so it starts from the
    weights before that. Same loss as `PosthocSFT`; they differ in starting weights, retain set and gamma.
    """

    unsafe_answers = "refusal"

    def loss_terms(self, pair: Pair) -> LossTerms:
        """l_u = -log pi(refusal | x) / tokens; l_r = -log pi(answer | x) / tokens."""
        return _cross_entropy(self, pair)


class PosthocSFT(AlignmentModule):
    """Posthoc-SFT: a finished model tuned afterwards on refusals and a small helpful set.

    VLGuard's "post-hoc" fine-tuning (arXiv 2402.02207).
    """

    unsafe_answers = "refusal"

    def loss_terms(self, pair: Pair) -> LossTerms:
        """l_u = -log pi(refusal | x) / tokens; l_r = -log pi(answer | x) / tokens."""
        return _cross_entropy(self, pair)


class UnsafeFilter(AlignmentModule):
    """Unsafe-Filter, the baseline: instruction tuning on a retain set from which harmful samples have been filtered."""

    unsafe_answers = None

    def loss_terms(self, pair: Pair) -> LossTerms:
        """l_u = 0; l_r = -log pi(answer | x) / tokens."""
        return _cross_entropy(self, pair)


def _cross_entropy(method: AlignmentModule, pair: Pair) -> LossTerms:
    loss_B = losses.sft(*method.answer_logits(method.merged(pair)))
    unsafe_B, retain_B = loss_B[: pair.num_unsafe], loss_B[pair.num_unsafe :]
    return LossTerms(unsafe_B if len(unsafe_B) else None, retain_B if len(retain_B) else None)
