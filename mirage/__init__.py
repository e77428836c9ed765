"""mirage: safety alignment of vision-language models, and the attack that shows whether it is real."""

__version__ = "0.1.0"
