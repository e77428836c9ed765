"""`mirage export RUN --to DIR`: a Hugging Face folder from a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from mirage.commands.outputs import check_folder
from mirage.commands.run_config import config_of


def run(arguments: Sequence[str]) -> None:
    """Parses the arguments and exports."""
    parser = ArgumentParser(
        prog="mirage export",
        description="Writes the model of a run as a Hugging Face folder: weights with LoRA merged, or the adapters "
        "alone; processor, generation config and model card. Whole or not at all.",
    )
    parser.add_argument("run", type=Path, help="Run folder, such as runs/rmu.")
    parser.add_argument("--to", type=Path, required=True, help="Folder to write; it must be empty or not exist.")
    parser.add_argument("--ckpt", default="last", help="last, best, or a checkpoint file of the run.")
    parser.add_argument(
        "--adapter_only", action="store_true", help="Write the LoRA adapters in PEFT's format, without the base model."
    )
    parser.add_argument("--pretrained", default=None, help="Where the starting model is now, if it was moved.")
    given = parser.parse_args(list(arguments))
    check_folder(given.to.parent, "--to")  # the folder appears beside its name, and then takes it
    settings = config_of(given.run)
    from mirage.checkpoint.export import export
    from mirage.models.components import unwrapped
    from mirage.models.memory import count_parameters
    from mirage.report.card import model_card

    def card(model: Any, step: int) -> str:
        return model_card(
            settings,
            given.run,
            name=given.to.name,
            adapter_only=given.adapter_only,
            architecture=type(unwrapped(model)).__name__,
            num_parameters=count_parameters(model)[1],
            step=step,
        )

    asked = {"ckpt": given.ckpt, "adapter_only": given.adapter_only, "pretrained": given.pretrained}
    export(given.run, settings, given.to, card, **asked)
    print(f"{given.to} holds the {'adapters' if given.adapter_only else 'model'}; README.md there describes it.")
