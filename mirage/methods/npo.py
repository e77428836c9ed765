"""Negative preference optimisation."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader

from mirage import losses
from mirage.batch import Batch, Pair
from mirage.methods.base import AlignmentModule, LossTerms
from mirage.models.sharding import gathered


class NPO(AlignmentModule):
    """NPO: makes harmful answers unlikely, relative to their probability under the starting model.

    l_u = -(2 / beta) log sigmoid(-beta log(pi_theta(y|x) / pi_ref(y|x))) with y the harmful answer (Zhang et al. 2024,
    arXiv 2404.05868, eq. 3), l_r = cross entropy on the retain set. The published Safety Mirage code differs: token means
    averaged over the batch inside the sigmoid, and a sign-inverted NPO term on the retain set, which is left out here.

    Args:
        beta: Steepness per nat, 0.05 to 1. Larger stops pushing sooner once an answer is below the reference.
        length_normalized: Use the mean log-probability per token instead of the sum, as the published code does; beta is
            then per nat and token (0.7 to 0.95 there).
    """

    unsafe_answers = "harmful"

    def __init__(self, pretrained: str, beta: float = 0.1, length_normalized: bool = False, **kwargs: Any) -> None:
        super().__init__(pretrained, **kwargs)
        if not beta > 0:
            raise ValueError(f"model.beta is {beta}: it must be above 0.")
        self.beta, self.length_normalized = beta, length_normalized
        self.reference: dict[str, float] | None = None
        """Log-probability of each unsafe answer under the starting weights, in nats, by example id."""

    def loss_terms(self, pair: Pair) -> LossTerms:
        """l_u = NPO of the harmful answers; l_r = -log pi(answer | x) / tokens. One forward pass."""
        assert self.reference is not None
        n = pair.num_unsafe
        logits, labels = self.answer_logits(self.merged(pair))
        logp_B = losses.answer_logp(logits, labels)
        tokens_B = losses.num_answer_tokens(labels)
        unsafe_B = None
        if pair.unsafe is not None:
            reference_B = torch.tensor([self.reference[example] for example in pair.unsafe.example_ids])
            reference_B = reference_B.to(logp_B.device, non_blocking=True)
            scale_B = tokens_B[:n] if self.length_normalized else torch.ones_like(reference_B)
            unsafe_B = losses.npo(logp_B[:n] / scale_B, reference_B / scale_B, self.beta)
        retain_B = -logp_B[n:] / tokens_B[n:] if pair.retain is not None else None
        return LossTerms(unsafe_B, retain_B)

    def on_fit_start(self) -> None:
        """Computes the reference before step 0; a resumed run has it from its checkpoint, never from resumed weights."""
        if self.reference is None and not self.trainer.ckpt_path:  # split weights and the rest are restored after this
            datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            self.reference = self._reference_logps(datamodule.unsafe_loader())

    @torch.no_grad()
    def _reference_logps(self, loader: DataLoader[Any]) -> dict[str, float]:
        """Log-probability of every unsafe answer by example id; each rank computes a share."""
        by_id: dict[str, float] = {}
        self.model.eval()
        for batch, _ in loader:
            moved: Batch = batch.to(self.device)
            with self.trainer.precision_plugin.forward_context():
                logp_B = losses.answer_logp(*self.answer_logits(moved))
            by_id.update(zip(batch.example_ids, logp_B.tolist(), strict=True))
        self.model.train()
        return {example: value for share in gathered(by_id) for example, value in share.items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the reference too: the starting weights are gone when a run is resumed."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["reference_log_probs"] = self.reference

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the reference from the checkpoint."""
        self.reference = checkpoint.get("reference_log_probs")
