"""The frozen reference without a second model: the starting weights swapped in, or the adapters off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn


def trainable_copies(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the trainable parameters, by name, and of nothing else: three matrices for RMU, not a second model."""
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


@contextmanager
def as_reference(model: nn.Module, copies: dict[str, Tensor] | None) -> Iterator[None]:
    """Within the block, and without gradients and dropout, the model is the reference.

    Enter it before the forward pass that is differentiated, not between forward and backward: autograd reads the
    parameters again.

    Args:
        model: The model in training.
        copies: Its starting weights (`trainable_copies`), swapped in; None switches LoRA's adapters off instead.
    """
    was_training = model.training
    starting = {} if copies is None else copies
    trained = {name: model.get_parameter(name) for name in starting}
    current = {name: parameter.data for name, parameter in trained.items()}
    model.eval()
    try:
        with torch.no_grad(), model.disable_adapter() if copies is None else nullcontext():  # type: ignore[operator]
            for name, parameter in trained.items():
                # copied before the trainer moved the model, and with `precision: bf16-true` cast it
                parameter.data = starting[name] = starting[name].to(parameter)
            yield
    finally:
        for name, parameter in trained.items():
            parameter.data = current[name]
        model.train(was_training)
