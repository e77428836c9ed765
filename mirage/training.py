"""`mirage fit`, `validate` and `test`: LightningCLI over the methods, the data and the attacks."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from mirage.audit.counts import audit_pairs
from mirage.checkpoint.callback import AtomicCheckpoint

# Imported so that configs can name their classes without a path.
from mirage.checkpoint.io import (
    AtomicCheckpointIO,
    CheckpointError,
    CheckpointNotFoundError,
    CheckpointSaveError,
    resolve_checkpoint,
)
from mirage.checkpoint.resume import ResumeCheck, ResumeMismatchError, RNGState
from mirage.data.module import AlignmentData
from mirage.data.sources.catalogue import SOURCES
from mirage.errors import DataError, ModelError
from mirage.evaluation.catalogue import ATTACKS, BENCHMARKS, ENGINES, JUDGES
from mirage.evaluation.run.callbacks import Accuracy, OneWordAttack, refuse_duplicates
from mirage.evaluation.run.results import Results
from mirage.evaluation.run.runner import RankFailedError
from mirage.evaluation.run.utility import Utility
from mirage.methods.base import AlignmentModule, NonFiniteLossError
from mirage.methods.catalogue import METHODS
from mirage.models.memory import MemoryLine

__all__ = ["ATTACKS", "BENCHMARKS", "ENGINES", "JUDGES", "SOURCES", "Accuracy", "OneWordAttack", "Utility", "run"]

# Faults of the input: one sentence and exit status 1. Anything else is a fault of mirage and keeps its traceback.
INPUT_FAULTS = (
    CheckpointError,
    DataError,
    ModelError,
    ResumeMismatchError,
    CheckpointSaveError,
    MisconfigurationException,
    CheckpointNotFoundError,
    NonFiniteLossError,
    RankFailedError,
    ValueError,
)


class Parser(LightningArgumentParser):
    """Refuses a mistyped key or class with the nearest name that exists."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints one sentence, and the nearest key or class; exit status 2."""
        print(f"mirage: {explained(message, self.known_names())}", file=sys.stderr)
        sys.exit(2)

    def known_names(self) -> set[str]:
        """Every key of the configuration and every class that it can name."""
        named = (*SOURCES, *ATTACKS, *JUDGES, *ENGINES, *BENCHMARKS, OneWordAttack, Accuracy, Utility)
        classes = {*named, *METHODS, *AlignmentModule.__subclasses__()}
        names = {cls.__name__ for cls in classes}
        for parser in (self, *getattr(getattr(self, "_subcommands_action", None), "_name_parser_map", {}).values()):
            names |= {action.dest for action in parser._actions}
        for cls in (*classes, AlignmentModule):
            for owner in cls.__mro__:
                names |= set(getattr(vars(owner).get("__init__"), "__annotations__", {}))
        return {part for name in names for part in name.split(".")}


def explained(message: str, known: set[str]) -> str:
    """The parser's message without its noise, and the nearest known name to each quoted or dashed name in it."""
    text = said_by_a_class(re.sub(r"\x1b\[[0-9;]*m", "", message).strip())
    key, wrong = re.search(r'key "([\w.]+)"', text), re.search(r"dot import path string: (\S+)", text)
    if key and wrong:  # jsonargparse lists every type that a class name is not
        text = f'{key[1]}: there is no class named "{wrong[1]}".'
    suspects = re.findall(
        r"[Kk]ey '([\w.]+)'|--([\w.]+)|(?:option|class|Option) '?([\w.]+)'?|named? '?(\w+)'?|\"(\w+)\"", text
    )
    hints = []
    for name in (found for groups in suspects for found in groups if found):
        last = name.rsplit(".", 1)[-1]
        near = get_close_matches(last, sorted(known - {last}), 1, cutoff=0.6)
        if last not in known and near and near[0] not in hints:
            hints.append(near[0])
    return text + (f"\nDid you mean {' or '.join(map(repr, hints))}?" if hints else "")


def said_by_a_class(message: str) -> str:
    """What the constructor of a class in the config said, out of the parser's list of all types that a value is not."""
    if not message.startswith("Does not validate against any"):
        return message
    errors = re.findall(r"^ +- (.*(?:\n(?!  +- |Given |Errors|Subtypes).*)*)", message, re.MULTILINE)
    own = [error for error in errors if not re.match(r"Not a valid subclass|Expected a |a (?:class path|dict) ", error)]
    return own[0].strip() if own else message


class MirageCLI(LightningCLI):
    """LightningCLI with a run folder, safe checkpoints, and the evaluation's results."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The few options that are neither the model's nor the data's nor the trainer's."""
        parser.add_argument(
            "--allow_changed", type=list[str], default=[],
            help="Facts of the checkpoint that a resumed run may change, such as [world_size].",
        )  # fmt: skip
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_as_seed)
        parser.link_arguments(
            "model", "data.method", apply_on="instantiate"
        )  # its processor, and which answers it needs

    def _parse_ckpt_path(self) -> None:
        # Lightning would read settings out of the checkpoint; here settings are the config's alone
        command = self.config.get("subcommand")
        settings = self.config.get(command) if command else None
        if settings and settings.get("ckpt_path"):
            folder = Path(settings.trainer.default_root_dir or ".")
            settings.ckpt_path = str(resolve_checkpoint(settings.ckpt_path, folder))

    def before_instantiate_classes(self) -> None:
        """Loggers, checkpoint writing and the run folder, unless the config says otherwise."""
        settings = self.config[self.subcommand]
        trainer = settings.trainer
        if trainer.default_root_dir is None:
            trainer.default_root_dir = "runs/unnamed"

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Adds what every run has: loggers, atomic checkpoints, results."""
        settings = self.config[self.subcommand]
        root = settings.trainer.default_root_dir
        if settings.trainer.logger in (None, True) and self.subcommand == "fit":
            kwargs["logger"] = [
                TensorBoardLogger(root, name=None, version=""), CSVLogger(root, name="", version=""),
            ]  # fmt: skip
        elif settings.trainer.logger in (None, True):
            kwargs["logger"] = False
        callbacks = [
            RunFolder(resumed=bool(settings.get("ckpt_path"))),
            MemoryLine(),
            RNGState(),
            ResumeCheck(self.facts, settings.allow_changed),
            Results(),
        ]
        kwargs["callbacks"] = [*(self._get(self.config_init, "trainer.callbacks") or []), *callbacks]
        refuse_duplicates(kwargs["callbacks"])
        for callback in kwargs["callbacks"]:
            if isinstance(callback, OneWordAttack):
                callback.audit = audit_pairs
        saves = self.subcommand == "fit" and settings.trainer.enable_checkpointing is not False
        if saves and not any(isinstance(callback, AtomicCheckpoint) for callback in kwargs["callbacks"]):
            kwargs["callbacks"].append(AtomicCheckpoint())
        kwargs["plugins"] = [*(self._get(self.config_init, "trainer.plugins") or []), AtomicCheckpointIO()]
        return super().instantiate_trainer(**kwargs)

    def facts(self) -> dict[str, Any]:
        """What a resumed run must share with its checkpoint."""
        data, model = self.datamodule, self.model
        return {
            "method": model.name, "pretrained": model.pretrained, "lora": model.lora is not None, "seed": data.seed,
            "gamma": data.gamma, "batch_size": data.batch_size, "data": data.fingerprint(),
            "world_size": self.trainer.world_size, "accumulate": self.trainer.accumulate_grad_batches,
        }  # fmt: skip

    def after_fit(self) -> None:
        """Prints the starting and the aligned model side by side."""
        self._print_results()

    after_validate = after_fit
    after_test = after_fit

    def _print_results(self) -> None:
        trainer: Any = self.trainer
        written = next((c.written for c in trainer.callbacks if isinstance(c, Results)), None)
        if written is None or not trainer.is_global_zero:
            return
        import json

        from mirage.report.tables import start_vs_aligned

        console = Console()
        console.print(start_vs_aligned(json.loads(written.read_text())))
        console.print(f"{written} holds these figures, and records/ beside it every answer.", style="dim")


class RunFolder(Callback):
    """A fresh fit overwrites nothing: an earlier run in its folder is set aside, once the data have been found good.

    Args:
        resumed: The run goes on from a checkpoint, in its own folder. (The trainer itself does not know that yet.)
    """

    def __init__(self, resumed: bool = False) -> None:
        self.resumed = resumed

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Moves the earlier run, and says where to."""
        if stage == "fit" and not self.resumed:
            root = Path(trainer.default_root_dir)
            if trainer.is_global_zero and (moved := set_aside(root)):
                print(f"{root} held an earlier run, which is now {moved}.")
            trainer.strategy.barrier()


def set_aside(root: Path) -> Path | None:
    """Where an earlier run in `root` has been moved, so that a fresh one overwrites nothing; None if there was none."""
    if not (root / "config.yaml").exists() and not (root / "checkpoints").exists():
        return None
    number = 1
    while (aside := root.with_name(f"{root.name}.{number}")).exists():
        number += 1
    root.rename(aside)
    return aside


def _as_seed(seed: Any) -> int:
    return int(seed) if seed is not None and not isinstance(seed, bool) else 0


# Lightning's advertising, and advice that does not apply: loaders are sized for small data, and the run folder is ours.
NO_CONCERN = (
    ".*LightningCLI's args parameter.*",
    ".*does not have many workers.*",
    ".*LeafSpec.*",
    ".*Checkpoint directory .* exists.*",
    ".*logger to False.*",
    ".*number of training batches.*smaller than the logging interval.*",
    ".*litlogger.*",
    ".*litmodels.*",
    ".*Experiment logs directory.*",
    ".*callbacks used to create the checkpoint need.*",
    ".*is_gradient_checkpointing.*",
)


def quieten() -> None:
    """Silences what is no concern of the user: advertising, and advice that does not apply here."""
    for pattern in NO_CONCERN:
        warnings.filterwarnings("ignore", pattern)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)


def run(arguments: Sequence[str]) -> int:
    """One of LightningCLI's commands; faults of the input end it with one sentence and status 1."""
    quieten()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # loader workers fork after the tokenizer was used
    try:
        MirageCLI(
            AlignmentModule,
            AlignmentData,
            subclass_mode_model=True,
            save_config_callback=SaveConfigCallback,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            parser_class=Parser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            trainer_defaults={
                "use_distributed_sampler": False,
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 10,
                "enable_model_summary": False,
            },
            args=list(arguments),
        )
    except INPUT_FAULTS as error:
        if os.environ.get("MIRAGE_TRACEBACK"):
            traceback.print_exc()
        print(f"mirage: {said_by_a_class(str(error))}", file=sys.stderr)
        return 1
    return 0
