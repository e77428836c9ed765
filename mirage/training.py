"""`mirage fit`, `validate` and `test`: LightningCLI over the methods, the data and the attacks."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from mirage.audit.counts import audit_pairs
from mirage.audit.forms import Asked, form_only_accuracy
from mirage.checkpoint.callback import AtomicCheckpoint
from mirage.checkpoint.io import AtomicCheckpointIO, CheckpointNotFoundError, CheckpointSaveError, resolve_checkpoint
from mirage.checkpoint.resume import ResumeCheck, RNGState
from mirage.commands.arguments import CHOICES, Choices, Explaining, explained
from mirage.data.crossing import NEUTRAL
from mirage.data.module import AlignmentData
from mirage.errors import DataError
from mirage.evaluation.run.callbacks import Accuracy, OneWordAttack, refuse_duplicates
from mirage.evaluation.run.results import Results
from mirage.evaluation.run.runner import RankFailedError
from mirage.evaluation.run.utility import Utility
from mirage.methods.base import AlignmentModule, NonFiniteLossError
from mirage.methods.catalogue import METHODS
from mirage.models.memory import MemoryLine
from mirage.report.tables import start_vs_aligned
from mirage.text import printable

# Errors of the input: one sentence and exit status 1. Every other error is mirage's, and keeps its traceback.
# ValueError includes DataError, ModelError, CheckpointError and ResumeMismatchError.
INPUT_ERRORS = (
    ValueError, CheckpointNotFoundError, CheckpointSaveError, MisconfigurationException, NonFiniteLossError,
    RankFailedError,
)  # fmt: skip


HIGH_FORM_ACCURACY = 0.6  # balanced accuracy of form alone above which crossed forms are not enough


class Parser(Explaining, LightningArgumentParser):
    """Refuses a mistyped key or class with the nearest name that exists."""

    choices: ClassVar[Choices] = {**CHOICES, "model": METHODS, "callbacks": (OneWordAttack, Accuracy, Utility)}


TRAINER_DEFAULTS = {
    "use_distributed_sampler": False, "num_sanity_val_steps": 0, "log_every_n_steps": 10, "enable_model_summary": False,
}  # fmt: skip


class MirageCLI(LightningCLI):
    """LightningCLI with a run folder, safe checkpoints, and the evaluation's results."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The few options that are neither the model's nor the data's nor the trainer's."""
        parser.add_argument(
            "--allow_changed", type=list[str], default=[],
            help="Facts of the checkpoint that a resumed run may change, such as [world_size].",
        )  # fmt: skip
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_as_seed)
        parser.link_arguments("model", "data.method", apply_on="instantiate")  # its processor and its kind of answers

    def _parse_ckpt_path(self) -> None:
        # Lightning would read settings out of the checkpoint; here settings are the config's alone
        command = self.config.get("subcommand")
        settings = command and self.config.get(command)
        if settings and settings.get("ckpt_path"):
            folder = Path(settings.trainer.default_root_dir or ".")
            settings.ckpt_path = str(resolve_checkpoint(settings.ckpt_path, folder))

    def before_instantiate_classes(self) -> None:
        """Sets the run folder, unless the config does."""
        trainer = self.config[self.subcommand].trainer
        trainer.default_root_dir = trainer.default_root_dir or "runs/unnamed"

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Adds what every run has: loggers, atomic checkpoints, results, and the audit for attacks that mine their word."""
        settings = self.config[self.subcommand]
        root, fits = settings.trainer.default_root_dir, self.subcommand == "fit"
        if settings.trainer.logger in (None, True):
            loggers = [TensorBoardLogger(root, name=None, version=""), CSVLogger(root, name="", version="")]
            kwargs["logger"] = loggers if fits else False
        self.results = Results()
        callbacks = [
            *(self._get(self.config_init, "trainer.callbacks") or []), RunFolder(resumed=bool(settings.get("ckpt_path"))),
            FormOnlyAccuracy(), MemoryLine(), RNGState(), ResumeCheck(self.facts, settings.allow_changed), self.results,
        ]  # fmt: skip
        refuse_duplicates(callbacks)
        attacks = [callback for callback in callbacks if isinstance(callback, OneWordAttack)]
        for callback in attacks:
            callback.audit = audit_pairs
        if attacks and not any(callback.attack.wants_word for callback in attacks):
            self.datamodule.attack_words = [callback.attack.word for callback in attacks]
        saves = fits and settings.trainer.enable_checkpointing is not False
        if saves and not any(isinstance(callback, AtomicCheckpoint) for callback in callbacks):
            callbacks.append(AtomicCheckpoint())
        plugins = [*(self._get(self.config_init, "trainer.plugins") or []), AtomicCheckpointIO()]
        return super().instantiate_trainer(callbacks=callbacks, plugins=plugins, **kwargs)

    def facts(self) -> dict[str, Any]:
        """What a resumed run must share with its checkpoint."""
        data, model = self.datamodule, self.model
        return {
            "method": model.name, "pretrained": model.pretrained, "lora": model.lora is not None, "seed": data.seed,
            "gamma": data.gamma, "batch_size": data.batch_size, "data": data.fingerprint(),
            "world_size": self.trainer.world_size, "accumulate": self.trainer.accumulate_grad_batches,
        }  # fmt: skip

    def after_fit(self) -> None:
        """Prints the starting and the aligned model side by side, on the first rank."""
        if self.results.latest is not None:
            files = f"{self.results.written} holds these figures, and records/ beside it every answer."
            console = Console()
            console.print(start_vs_aligned(self.results.latest))
            console.print(files, style="dim")

    after_validate = after_fit
    after_test = after_fit


class FormOnlyAccuracy(Callback):
    """Reports before training how well the form of the questions alone tells both sets apart, and with crossed forms."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Measures where forms are crossed, prints one line, and leaves the figures for results.json."""
        data: AlignmentData = trainer.datamodule
        if stage != "fit" or data.crossed is None or not data.unsafe_set or not trainer.is_global_zero:
            return
        crossed = [Asked(*each) for each in data.asked(crossed=True)]
        worded = [each for each in crossed if each.question not in NEUTRAL]  # neutral ones are chance by construction
        plain = [Asked(*each) for each in data.asked(crossed=False)]
        try:
            before, after, of_worded = map(form_only_accuracy, (plain, crossed, worded))
        except DataError as error:  # too few pictures to hold some out
            print(f"data.crossing: {error}")
            return
        data.form_only_accuracy = {"before": before, "after": after, "after_worded": of_worded}
        apart = f", {of_worded:.1%} without the neutral ones" if len(worded) < len(crossed) else ""
        print(
            f"form alone labels {before:.1%} of the questions rightly; with crossed forms {after:.1%}{apart} (chance: 50 %)"
        )
        if after > HIGH_FORM_ACCURACY:
            warnings.warn(
                f"data.crossing: form alone still labels more than {HIGH_FORM_ACCURACY:.0%} of the questions rightly, so "
                "training can still learn form. Raise the shares of neutral and exchanged questions, or add rewriters.",
                stacklevel=2,
            )


class RunFolder(Callback):
    """A fresh fit overwrites nothing: an earlier run in its folder is set aside, once the data have been checked.

    Args:
        resumed: The run continues from a checkpoint, in its folder. (The trainer itself does not know that yet.)
    """

    def __init__(self, resumed: bool = False) -> None:
        self.resumed = resumed

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Moves the earlier run, and says where to."""
        if stage != "fit" or self.resumed:
            return
        root = Path(trainer.default_root_dir)
        if trainer.is_global_zero and ((root / "config.yaml").exists() or (root / "checkpoints").exists()):
            numbered = (root.with_name(f"{root.name}.{number}") for number in count(1))
            aside = next(path for path in numbered if not path.exists())
            root.rename(aside)
            print(f"{root} held an earlier run, which is now {aside}.")
        trainer.strategy.barrier()


def _as_seed(seed: bool | int) -> int:
    return 0 if isinstance(seed, bool) else seed


# Lightning's advertising, and advice that does not apply: loaders are sized for small data, and the run folder is ours.
IRRELEVANT_WARNINGS = (
    "LightningCLI's args parameter", "does not have many workers", "LeafSpec", "Checkpoint directory .* exists",
    "logger to False", "number of training batches.*smaller than the logging interval", "litlogger", "litmodels",
    "Experiment logs directory", "callbacks used to create the checkpoint need", "is_gradient_checkpointing",
)  # fmt: skip


def quieten() -> None:
    """Silences Lightning's advertising and advice that does not apply here."""
    warnings.filterwarnings("ignore", f".*({'|'.join(IRRELEVANT_WARNINGS)})")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)


def run(arguments: Sequence[str]) -> int:
    """One of LightningCLI's commands; errors of the input end it with one sentence and status 1."""
    quieten()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # loader workers fork after the tokenizer was used
    try:
        MirageCLI(
            AlignmentModule,
            AlignmentData,
            subclass_mode_model=True,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            parser_class=Parser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            trainer_defaults=TRAINER_DEFAULTS,
            args=list(arguments),
        )
    except INPUT_ERRORS as error:
        if os.environ.get("MIRAGE_TRACEBACK"):
            traceback.print_exc()
        print(f"mirage: {printable(explained(str(error)))}", file=sys.stderr)
        return 1
    return 0
