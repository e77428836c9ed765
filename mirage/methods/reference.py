"""The frozen reference without a second model: the starting weights swapped in, or the adapters off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from mirage.models.sharding import is_sharded


def trainable_copies(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the trainable parameters, by name, and of nothing else: three matrices for RMU, not a second model."""
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


@contextmanager
def as_reference(model: nn.Module, copies: dict[str, Tensor] | None) -> Iterator[None]:
    """Within the block, and without gradients and dropout, the model is the reference.

    Its starting weights (`trainable_copies`) are swapped in; without them LoRA's adapters are switched off. Enter it
    before the forward pass that is differentiated, not between forward and backward: autograd reads parameters again.
    """
    was_training, split = model.training, is_sharded(model)
    starting = {} if copies is None else copies
    trained = {name: model.get_parameter(name) for name in starting}
    current = {name: parameter.data.clone() if split else parameter.data for name, parameter in trained.items()}

    def put(values: dict[str, Tensor]) -> None:
        for name, parameter in trained.items():
            if split:  # FSDP gathers from a storage of its own, so the values are exchanged
                parameter.data.copy_(values[name])
            else:
                parameter.data = values[name]

    model.eval()
    try:
        with torch.no_grad(), model.disable_adapter() if copies is None else nullcontext():  # type: ignore[operator]
            # copied before the trainer moved the model, and with `precision: bf16-true` cast it
            starting.update(
                {name: value.to(trained[name].device, trained[name].dtype) for name, value in starting.items()}
            )
            put(starting)
            yield
    finally:
        with torch.no_grad():
            put(current)
        model.train(was_training)
