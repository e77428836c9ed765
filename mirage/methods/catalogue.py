"""Every method, for the command line: naming one in a config needs no path."""

from mirage.methods.base import AlignmentModule
from mirage.methods.npo import NPO
from mirage.methods.rmu import RMU
from mirage.methods.sft import MixedSFT, PosthocSFT, UnsafeFilter

METHODS: tuple[type[AlignmentModule], ...] = (MixedSFT, NPO, PosthocSFT, RMU, UnsafeFilter)
