"""`mirage fit`, `validate` and `test`: LightningCLI over the methods, the data and the attacks."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch.callbacks import Callback, ProgressBar, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from rich.console import Console
from rich.progress import TimeRemainingColumn

from mirage.audit.counts import audit_pairs
from mirage.audit.forms import Asked, form_only_accuracy
from mirage.checkpoint.callback import AtomicCheckpoint
from mirage.checkpoint.io import AtomicCheckpointIO, CheckpointNotFoundError, CheckpointSaveError, resolve_checkpoint
from mirage.checkpoint.resume import ResumeCheck, RNGState
from mirage.checkpoint.sharded import ShardedStrategy
from mirage.checkpoint.stopping import StopOnSignal
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
from mirage.report.loggers import log_report
from mirage.report.tables import start_vs_aligned
from mirage.run_folder import MetricsFile, RunFolder
from mirage.text import printable

SPLITS = "ModelParallelStrategy"
StrategyRegistry.register(SPLITS.lower(), ShardedStrategy)  # Lightning looks names up in lower case

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

    def __init__(self, arguments: Sequence[str], **settings: Any) -> None:
        self.command = arguments[0]
        super().__init__(args=list(arguments), **settings)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The command that is given and no other: each takes a tenth of a second to describe to the parser."""
        return {self.command: super().subcommands()[self.command]}

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
        if not command:
            return
        settings = self.config[command]
        folder = Path(settings.trainer.default_root_dir or "runs/unnamed").expanduser()
        settings.trainer.default_root_dir = str(folder)
        self.requeued = settings.ckpt_path == "auto"
        if self.requeued and command != "fit":
            raise ValueError(f"--ckpt_path auto is for mirage fit. Name what to {command}: last, best or a file.")
        if self.requeued:
            settings.ckpt_path = "last" if (folder / "checkpoints" / "last").exists() else None
        if settings.ckpt_path:
            settings.ckpt_path = str(resolve_checkpoint(settings.ckpt_path, folder))

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Adds what every run has: loggers, atomic checkpoints, results, and the audit for attacks that mine their word."""
        settings = self.config[self.subcommand]
        root, fits = settings.trainer.default_root_dir, self.subcommand == "fit"
        if settings.trainer.logger is not False:
            own = self._get(self.config_init, "trainer.logger")
            own = own if isinstance(own, list) else [own] if isinstance(own, Logger) else []
            kwargs["logger"] = [*own, MetricsFile(root)] if fits else own
        self.results = Results(log_report)
        config = self._parser(self.subcommand).dump(settings, skip_none=False)
        self.run_folder = RunFolder(config, settings.ckpt_path, self.requeued)
        callbacks = [
            StopOnSignal(), self.run_folder, *(self._get(self.config_init, "trainer.callbacks") or []),
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
        shows = settings.trainer.enable_progress_bar is not False and not settings.trainer.barebones
        if shows and not any(isinstance(callback, ProgressBar) for callback in callbacks):
            callbacks.append(Progress())
        check_strategy(settings.trainer.strategy, settings.trainer.precision, self.model, self.datamodule)
        plugins = [*(self._get(self.config_init, "trainer.plugins") or []), AtomicCheckpointIO()]
        try:
            trainer = super().instantiate_trainer(callbacks=callbacks, plugins=plugins, **kwargs)
        except TypeError as error:  # Lightning's of a value such as `devices: x`
            raise ValueError(f"trainer: {error} Correct the setting that it names.") from error
        self.run_folder.loggers, trainer.loggers = trainer.loggers, []
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        finally:  # not in a callback's hook: after an exception, others still write a checkpoint
            self.run_folder.release()

    def facts(self) -> dict[str, Any]:
        """What a resumed run must share with its checkpoint."""
        data, model = self.datamodule, self.model
        return {
            "method": model.name, "pretrained": model.pretrained, "lora": model.lora is not None, "seed": data.seed,
            "gamma": data.gamma, "batch_size": data.batch_size, "data": data.fingerprint(),
            "world_size": self.trainer.world_size, "accumulate": self.trainer.accumulate_grad_batches,
            "split_weights": isinstance(self.trainer.strategy, ShardedStrategy),
        }  # fmt: skip

    def after_fit(self) -> None:
        """Prints the starting and the aligned model side by side, on the first rank."""
        if self.results.latest is not None:
            files = f"{self.results.written} holds these figures, and records/ beside it every answer."
            console = Console()
            console.print(start_vs_aligned(self.results.latest))
            console.print(files, style="dim", markup=False, highlight=False, soft_wrap=True)

    after_validate = after_fit
    after_test = after_fit


def check_strategy(strategy: Any, precision: Any, method: AlignmentModule, data: AlignmentData) -> None:
    """Checks that the method can be trained under `trainer.strategy`, as the config has it, before anything is read.

    Raises:
        ValueError: If not; the message names what to use instead.
    """
    name = str(strategy if isinstance(strategy, str) else strategy.class_path).rpartition(".")[2]
    if name.lower().startswith(("fsdp", "deepspeed", "xla")) or (name == SPLITS and not isinstance(strategy, str)):
        raise ValueError(
            f"trainer.strategy is {name}, under which mirage neither evaluates in training nor writes safe checkpoints. "
            f"Write `strategy: {SPLITS}` to split weights, gradients and optimizer state over devices (FSDP2), or ddp."
        )
    if name not in (SPLITS, ShardedStrategy.__name__):
        return
    if str(precision).startswith("16"):
        raise ValueError(
            f"trainer.precision is {precision}, which {SPLITS} does not support. Use bf16-mixed or 32-true."
        )
    if not method.merges_sides and data.gamma * data.batch_size < 1:
        raise ValueError(
            f"{type(method).__name__} under {SPLITS} needs a retain example on every device in every step: data.gamma * "
            f"data.batch_size is {data.gamma * data.batch_size:g}. Raise data.batch_size to make it at least 1, or use ddp."
        )


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


class Progress(RichProgressBar):
    """Lightning's, with metrics that stay on one line in 80 columns: under the last part of their names."""

    def configure_columns(self, trainer: Any) -> list[Any]:
        """Those of Lightning; where they leave no room, epoch, batches and the time that is left."""
        epoch, bar, batches, *rest = super().configure_columns(trainer)
        return [epoch, bar, batches, *rest] if Console().width >= 130 else [epoch, batches, TimeRemainingColumn()]

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        """`unsafe` and `retain`, the losses, and `asr` and `rr` after the attack."""
        return {name.rpartition("/")[2]: value for name, value in trainer.progress_bar_metrics.items()}


def _as_seed(seed: bool | int) -> int:
    return 0 if isinstance(seed, bool) else seed


# Lightning's advertising, and advice that does not apply: loaders are sized for small data, the run folder is ours, and
# what is logged once an epoch is the same on every rank.
IRRELEVANT_WARNINGS = (
    "LightningCLI's args parameter", "does not have many workers", "LeafSpec", "Checkpoint directory .* exists",
    "logger to False", "number of training batches.*smaller than the logging interval", "litlogger", "litmodels",
    "callbacks used to create the checkpoint need", "is_gradient_checkpointing",
    "when logging on epoch level in distributed setting",
)  # fmt: skip


def quieten() -> None:
    """Silences Lightning's advertising and advice that does not apply here."""
    warnings.filterwarnings("ignore", f".*({'|'.join(IRRELEVANT_WARNINGS)})")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)


def run(arguments: Sequence[str]) -> int:
    """One of LightningCLI's commands, and its exit status: errors of the input end it with one sentence and status 1.

    SIGTERM ends it with 143 and Ctrl-C with 130, and a sentence says how to go on.
    """
    quieten()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # loader workers fork after the tokenizer was used
    try:
        MirageCLI(
            arguments,
            model_class=AlignmentModule,
            datamodule_class=AlignmentData,
            subclass_mode_model=True,
            save_config_callback=None,  # RunFolder saves it
            seed_everything_default=0,
            parser_class=Parser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            trainer_defaults=TRAINER_DEFAULTS,
        )
    except INPUT_ERRORS as error:
        if os.environ.get("MIRAGE_TRACEBACK"):
            traceback.print_exc()
        print(f"mirage: {printable(explained(str(error)))}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, SystemExit) as end:
        # Lightning makes Ctrl-C a plain exit
        cause = end.__context__ if isinstance(end.__context__, KeyboardInterrupt) else end
        if not isinstance(cause, (KeyboardInterrupt, SIGTERMException)):
            raise
        how = getattr(cause, "__notes__", ["stopped; the same command goes on with the answers that are kept"])
        rank_zero_only(print)(f"mirage: {how[0]}.", file=sys.stderr)
        return int(end.code or 143) if isinstance(end, SIGTERMException) else 130
    return 0
