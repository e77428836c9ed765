"""`mirage export RUN --to DIR`: a Hugging Face folder from a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mirage.commands.arguments import ByHand, keywords
from mirage.commands.outputs import check_folder
from mirage.commands.run_config import config_of


def export_run(
    run: Path, to: Path, ckpt: str = "last", adapter_only: bool = False, pretrained: str | None = None
) -> None:
    """Writes the model of a run as a Hugging Face folder.

    It holds weights with LoRA merged, or the adapters alone; processor, generation config and model card. Whole or not
    at all.

    Args:
        run: Run folder, such as runs/rmu.
        to: Folder to write; it must be empty or not exist.
        ckpt: last, best, or a checkpoint file of the run.
        adapter_only: Write the LoRA adapters in PEFT's format, without the base model.
        pretrained: Where the starting model is now, if it was moved.
    """
    check_folder(to if to.exists() else to.parent, "--to")  # the folder appears beside its name, and then takes it
    settings = config_of(run)
    from mirage.checkpoint.export import export
    from mirage.models.components import unwrapped
    from mirage.models.memory import count_parameters
    from mirage.models.processor import needs_torchvision
    from mirage.report.card import model_card

    def card(model: Any, step: int) -> str:
        return model_card(
            settings, run, name=to.name, adapter_only=adapter_only, step=step,
            architecture=type(unwrapped(model)).__name__, num_parameters=count_parameters(model)[1],
            needs_torchvision=needs_torchvision(str(unwrapped(model).name_or_path)),
        )  # fmt: skip

    export(run, settings, to, card, ckpt=ckpt, adapter_only=adapter_only, pretrained=pretrained)
    print(f"{to} holds the {'adapters' if adapter_only else 'model'}; README.md there describes it.")


def run(arguments: Sequence[str]) -> None:
    """Parses the arguments and exports."""
    by_hand: ByHand = {"run": {"type": Path}, "--adapter_only": {"action": "store_true"}}
    export_run(**keywords(export_run, "export", arguments, by_hand))
