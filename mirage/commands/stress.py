"""`mirage stress RUN`: does alignment hold when the form of a question, the weights or the carrier of harm change?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mirage.commands.arguments import ByHand, Parser, explained, keywords
from mirage.commands.outputs import check_folder
from mirage.report.run_config import config_of

GROUPS = ("words", "forms", "relearn", "int8", "modality")


def stress_run(
    run: Path,
    only: Sequence[str] = GROUPS,
    limit: int | None = None,
    out: Path | None = None,
    ckpt: str = "last",
    learning_rate: float | None = None,
) -> None:
    """Asks the model of a finished run its test questions again, after one change at a time.

    Changes: words (each opening word of the training set in turn, at most 26), forms (other words, clause or final mark
    behind the same opening word), relearn (20 steps of fine-tuning on 50 harmless or 50 harmful examples), int8 (weights of
    the language model rounded) and modality (text alone, picture alone). Prints a table and writes stress.json, stress.png,
    stress.svg and records/. The run is left as it is. Runs on one device; a command that was killed starts over.

    Args:
        run: Run folder, such as runs/rmu.
        only: Which changes; all by default.
        limit: Ask only so many questions of each set, sampled.
        out: Folder for the files; RUN/stress by default.
        ckpt: last, best, or a checkpoint file of the run.
        learning_rate: Of relearning; the peak rate of the run by default.
    """
    config, out = config_of(run), out or run / "stress"
    check_folder(out)
    from lightning.fabric import Fabric
    from rich.console import Console

    from mirage.atomic import replacing
    from mirage.audit.counts import audit_pairs
    from mirage.checkpoint.io import resolve_checkpoint
    from mirage.evaluation.stress import Stress
    from mirage.report.stress import figure, table

    checkpoint = resolve_checkpoint(ckpt, run)
    method, data, attacks = parts_of(config, limit=limit, learning_rate=learning_rate)
    for attack in attacks:
        attack.audit = audit_pairs
    counts = audit_pairs(data.labelled_questions(), min_count=1).words
    tests = Stress(method, data, attacks, {each.word: each.p_refused.rate for each in counts}, only)
    trainer = config["trainer"]
    precision: Any = trainer.get("precision") or "32-true"
    fabric = Fabric(accelerator=trainer.get("accelerator") or "auto", devices=1, precision=precision)
    results = {"run": str(run), **tests.measure(checkpoint, fabric, out)}
    files = {"stress.png": figure(results, "png"), "stress.svg": figure(results, "svg")}
    files["stress.json"] = json.dumps(results, indent=1).encode()
    for name, content in files.items():
        with replacing(out / name) as file:
            file.write(content)
    Console().print(table(results))
    print(f"{out} holds {', '.join(files)} and, in records/, every answer.")


def run(arguments: Sequence[str]) -> None:
    """Parses the arguments, measures, prints and writes."""
    by_hand: ByHand = {"run": {"type": Path}, "--only": {"nargs": "+", "choices": GROUPS, "default": [*GROUPS]}}
    stress_run(**keywords(stress_run, "stress", arguments, by_hand))


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
