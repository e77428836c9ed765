"""`mirage mini build --out DIR`: builds the mini checkpoint again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import auto_cli

from mirage.commands.outputs import check_new_folder


def build(out: Path, see_steps: int = 600, answer_steps: int = 1000, seed: int = 0) -> None:
    """Trains the mini model and writes it as a Hugging Face folder; one to two minutes on two CPU cores.

    Args:
        out: The folder to write; it must be empty or not exist.
        see_steps: Steps in which the vision tower alone learns shapes and colours.
        answer_steps: Steps in which the whole model learns to answer.
        seed: Seed of the weights and of the order of questions.
    """
    check_new_folder(out)
    from mirage.mini.build import build as build_checkpoint

    build_checkpoint(out, see_steps=see_steps, answer_steps=answer_steps, seed=seed)
    print(f"{out} holds the checkpoint: use it with --model.pretrained {out}")


def run(arguments: Sequence[str]) -> None:
    """Parses the arguments and builds."""
    auto_cli({"build": build}, args=list(arguments), prog="mirage mini", as_positional=False)
