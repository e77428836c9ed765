"""What the losses on activations are, from the papers' equations: float64, one position at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def squared_distance(left_D: Floats, right_D: Floats) -> float:
    """||left - right||^2 as |left|^2 - 2 <left, right> + |right|^2."""
    return float(left_D @ left_D - 2.0 * (left_D @ right_D) + right_D @ right_D)


def steering(hidden_SD: Floats, direction_D: Floats, coefficient: float, counted: list[int]) -> float:
    """Li et al. 2024 (WMDP), eq. 1: E over counted positions of ||h - c u / |u| ||^2."""
    target_D = direction_D * (coefficient / np.sqrt(direction_D @ direction_D))
    return float(np.mean([squared_distance(hidden_SD[place], target_D) for place in counted])) if counted else 0.0


def anchoring(hidden_SD: Floats, reference_SD: Floats, counted: list[int]) -> float:
    """Li et al. 2024 (WMDP), eq. 2: E over counted positions of ||h - h_frozen||^2."""
    distances = [squared_distance(hidden_SD[place], reference_SD[place]) for place in counted]
    return float(np.mean(distances)) if counted else 0.0
