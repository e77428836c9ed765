"""The methods: each is its equation over `base.AlignmentModule`."""

from mirage.methods.base import AlignmentModule
from mirage.methods.npo import NPO
from mirage.methods.rmu import RMU
from mirage.methods.sft import MixedSFT, PosthocSFT, UnsafeFilter

__all__ = ["NPO", "RMU", "AlignmentModule", "MixedSFT", "PosthocSFT", "UnsafeFilter"]
