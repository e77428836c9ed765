"""`mirage stress RUN`: does alignment hold when the form of a question, the weights or the carrier of harm change?"""

from __future__ import annotations

import json
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mirage.commands.arguments import Parser, explained
from mirage.commands.outputs import check_folder
from mirage.commands.run_config import config_of

GROUPS = ("words", "forms", "relearn", "int8", "modality")
_DESCRIPTION = """Asks the model of a finished run its test questions again, after one change at a time:
  words     each opening word of the training set in turn (at most 26)
  forms     other words, clause or final mark behind the same opening word
  relearn   20 steps of fine-tuning on 50 harmless, or on 50 harmful examples
  int8      weights of the language model rounded to int8
  modality  text alone, and picture alone
Prints a table and writes stress.json, stress.png, stress.svg and records/. The run is
left as it is. Runs on one device; a command that was killed starts over."""


def run(arguments: Sequence[str]) -> None:
    """Parses the arguments, measures, prints and writes."""
    parser = Parser(prog="mirage stress", description=_DESCRIPTION, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="Run folder, such as runs/rmu.")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=[*GROUPS], help="Which changes; all by default.")
    parser.add_argument("--limit", type=int, default=None, help="Ask only so many questions of each set, sampled.")
    parser.add_argument(
        "--learning_rate", type=float, default=None, help="Of relearning; the peak rate of the run by default."
    )
    parser.add_argument("--out", type=Path, default=None, help="Folder for the files; RUN/stress by default.")
    parser.add_argument("--ckpt", default="last", help="last, best, or a checkpoint file of the run.")
    given = parser.parse_args(list(arguments))
    config, out = config_of(given.run), given.out or given.run / "stress"
    check_folder(out)
    from lightning.fabric import Fabric
    from rich.console import Console

    from mirage.atomic import replacing
    from mirage.audit.counts import audit_pairs
    from mirage.checkpoint.io import resolve_checkpoint
    from mirage.evaluation.stress import Stress
    from mirage.report.stress import figure, table

    checkpoint = resolve_checkpoint(given.ckpt, given.run)
    method, data, attacks = parts_of(config, limit=given.limit, learning_rate=given.learning_rate)
    for attack in attacks:
        attack.audit = audit_pairs
    counts = audit_pairs(data.labelled_questions(), min_count=1).words
    tests = Stress(method, data, attacks, {each.word: each.p_refused.rate for each in counts}, given.only)
    trainer = config["trainer"]
    precision: Any = trainer.get("precision") or "32-true"
    fabric = Fabric(accelerator=trainer.get("accelerator") or "auto", devices=1, precision=precision)
    results = {"run": str(given.run), **tests.measure(checkpoint, fabric, out)}
    files = {"stress.png": figure(results, "png"), "stress.svg": figure(results, "svg")}
    files["stress.json"] = json.dumps(results, indent=1).encode()
    for name, content in files.items():
        with replacing(out / name) as file:
            file.write(content)
    Console().print(table(results))
    print(f"{out} holds {', '.join(files)} and, in records/, every answer.")


def parts_of(config: dict[str, Any], **changed: float | None) -> tuple[Any, Any, Any]:
    """Method, data and `OneWordAttack`s as a run's config describes them; neither model nor data are read.

    Args:
        config: The config.yaml of the run.
        changed: `limit` and `learning_rate` in place of the run's, unless None.

    Raises:
        ValueError: If the config does not describe them.
    """
    from mirage.data.module import AlignmentData
    from mirage.evaluation.run.callbacks import OneWordAttack
    from mirage.methods.base import AlignmentModule

    parser = Parser(exit_on_error=False)
    parser.add_subclass_arguments(AlignmentModule, "model")
    parser.add_class_arguments(AlignmentData, "data", skip={"method", "crossing"})  # relearning crosses nothing
    parser.add_argument("--attacks", type=list[OneWordAttack])
    try:
        model, callbacks = config["model"], config["trainer"]["callbacks"] or ()
        data = {name: value for name, value in config["data"].items() if name != "crossing"}
        attacks = [each for each in callbacks if each["class_path"].endswith("OneWordAttack")]
        for name, described in (("learning_rate", [model]), ("limit", attacks)):
            for each in described if changed.get(name) is not None else ():
                each["init_args"][name] = changed[name]
        data["seed"] = int(config["seed_everything"] or 0)
        parts = parser.instantiate_classes(parser.parse_object({"model": model, "data": data, "attacks": attacks}))
    except Exception as error:  # whatever a config may hold
        raise ValueError(
            f"The run's config.yaml describes no method, data and attacks: {explained(str(error))}"
        ) from error
    parts.data.method = parts.model
    return parts.model, parts.data, parts.attacks
