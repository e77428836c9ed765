"""Mixed precision while answers are written: weights are cast once, not at every token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def casts_kept(model: nn.Module) -> Iterator[None]:
    """Within autocast, keeps the low-precision copies of the weights until the block ends; elsewhere does nothing.

    Lightning enters autocast without its cache: right for training, where a forward pass uses each weight once, but an
    answer of 256 tokens would cast the whole model 256 times. The copies take half the memory of float32 weights. No weight
    may change within the block. Answers are the same.
    """
    if not torch.is_autocast_enabled(next(model.parameters()).device.type):
        yield
        return
    kept = torch.is_autocast_cache_enabled()
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    torch.set_autocast_cache_enabled(True)
    for parameter in frozen:
        parameter.requires_grad_(True)  # autocast keeps the copies of such parameters only
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        torch.set_autocast_cache_enabled(kept)
        torch.clear_autocast_cache()
