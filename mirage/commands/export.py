"""`mirage export RUN --to DIR`: a Hugging Face folder from a finished run; `--to inspect DIR`: logs for `inspect view`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from mirage.atomic import whole_folder
from mirage.commands.arguments import ByHand, keywords
from mirage.commands.outputs import check_new_folder
from mirage.report.run_config import config_of


def export_run(
    run: Path, to: Path, ckpt: str = "last", adapter_only: bool = False, pretrained: str | None = None
) -> None:
    """Writes the model of a run as a Hugging Face folder.

    It holds weights with LoRA merged, or the adapters alone; processor, generation config and model card. Whole or not
    at all. `--to inspect DIR` writes the run's questions, answers and verdicts as logs for `inspect view` instead.

    Args:
        run: Run folder, such as runs/rmu.
        to: Folder to write; it must be empty or not exist.
        ckpt: last, best, or a checkpoint file of the run.
        adapter_only: Write the LoRA adapters in PEFT's format, without the base model.
        pretrained: Where the starting model is now, if it was moved.
    """
    check_new_folder(to, "--to")
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


def export_logs(run: Path, to: Path, judge: str | None = None) -> None:
    """Writes the records and figures of a run as logs for `inspect view`.

    One log for each attacked evaluation set of the starting model and of the run's own, with the pictures. They hold
    harmful text. Whole or not at all. Without the word `inspect` after --to: the model, as a Hugging Face folder.

    Args:
        run: Run folder, such as runs/rmu.
        to: Folder to write; it must be empty or not exist.
        judge: Whose verdicts to show, where several judges read the answers (mirage judge): a name, or how it begins, such
            as keyword; by default the last one's.
    """
    check_new_folder(to, "--to inspect")
    try:
        from inspect_ai.log import write_eval_log
    except ModuleNotFoundError as error:
        raise ValueError(f"--to inspect needs inspect-ai ({error}): pip install 'safety-mirage[inspect]'.") from error
    from mirage.report.inspect_log import inspect_logs
    from mirage.report.runs import load_run, plain

    logs, notes = inspect_logs(load_run(run, judge))
    with whole_folder(to) as folder:
        for name, log in logs.items():
            write_eval_log(log, folder / f"{name}.eval")
    for note in notes:
        print(plain(f"note: {note}"))
    print(f"{to} holds {len(logs)} logs with harmful text. Look at them: inspect view --log-dir {to}")


def run(arguments: Sequence[str]) -> None:
    """Parses the arguments and exports."""
    by_hand: ByHand = {"run": {"type": Path}}
    at = next((at for at, pair in enumerate(pairwise(arguments), start=1) if pair == ("--to", "inspect")), None)
    if at is not None and arguments[at + 1 : at + 2] and not arguments[at + 1].startswith("-"):
        # the format is a word of its own, and a folder follows it; alone it is a folder of that name
        export_logs(**keywords(export_logs, "export", [*arguments[:at], *arguments[at + 1 :]], by_hand))
    else:
        by_hand = {**by_hand, "--adapter_only": {"action": "store_true"}}
        export_run(**keywords(export_run, "export", arguments, by_hand))
