"""The frozen reference without a second model: log-probabilities computed once, or the starting weights swapped in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ReferenceWeights:
    """Copies of the trainable parameters at the start and of nothing else: three matrices for RMU, not a second model.

    Args:
        model: The model with its starting weights.
    """

    def __init__(self, model: nn.Module) -> None:
        self.copies = {
            name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad
        }

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Within the block the model has its starting weights. Enter it before the forward pass that is differentiated,
        not between forward and backward: autograd reads the parameters again."""
        parameters = {name: parameter for name, parameter in model.named_parameters() if name in self.copies}
        current = {name: parameter.data for name, parameter in parameters.items()}
        try:
            for name, parameter in parameters.items():
                if self.copies[name].device != parameter.device:
                    self.copies[name] = self.copies[name].to(parameter.device)
                parameter.data = self.copies[name]
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = current[name]


@contextmanager
def as_reference(model: nn.Module, weights: ReferenceWeights | None) -> Iterator[None]:
    """Within the block, and without gradients, the model is the reference: starting weights, or adapters off."""
    was_training = model.training
    model.eval()  # no dropout in a reference
    try:
        with torch.no_grad(), weights.on(model) if weights is not None else model.disable_adapter():  # type: ignore[operator]
            yield
    finally:
        model.train(was_training)


class ReferenceLogProbs:
    """Log-probabilities of the unsafe set's answers under the starting weights, in nats, by example id.

    Args:
        by_id: Example id -> log-probability of the whole answer.
    """

    def __init__(self, by_id: dict[str, float]) -> None:
        self.by_id = by_id

    def of(self, ids: Sequence[str], device: torch.device) -> Tensor:
        """The log-probabilities of a batch: (B,).

        Raises:
            KeyError: If an example was not in the unsafe set when they were computed.
        """
        missing = [example for example in ids if example not in self.by_id]
        if missing:
            raise KeyError(f"no reference log-probability for example {missing[0]}: the unsafe set has changed.")
        values = torch.tensor([self.by_id[example] for example in ids])
        return values.to(device, non_blocking=True)
