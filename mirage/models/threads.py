"""How many CPU threads a model computes with.

OpenMP threads wait for each other after every operation. Operations of a small model are too short to be worth that: when
another process takes one of the cores, all threads wait for the one that lost its core.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import nn

PARAMETERS_PER_THREAD = 5_000_000
EXPLICIT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def threads_for(num_parameters: int, available: int, environment: Mapping[str, str]) -> int:
    """How many of the `available` threads a model of this size uses: one for each 5 million parameters, at least 1.

    All of them if `environment` sets `OMP_NUM_THREADS` or `MKL_NUM_THREADS`.
    """
    if any(environment.get(name) for name in EXPLICIT):
        return available
    return max(1, min(available, num_parameters // PARAMETERS_PER_THREAD))


def limit_threads(model: nn.Module) -> str:
    """Sets torch's number of CPU threads to what helps this model; one line that says what was chosen and why."""
    available, size = torch.get_num_threads(), sum(parameter.numel() for parameter in model.parameters())
    chosen = threads_for(size, available, os.environ)
    if chosen < available:
        torch.set_num_threads(chosen)
        return f"CPU threads: {chosen} of {available}, as the model has {size:,} parameters (OMP_NUM_THREADS overrides)"
    given = next((f", set by {name}" for name in EXPLICIT if os.environ.get(name)), "")
    return f"CPU threads: {available}{given}"
