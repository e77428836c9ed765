"""The callbacks that attack the model at every validation epoch end, in `fit` and in `validate` alike."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from mirage.checkpoint.stopping import StopOnSignal
from mirage.data.base import Source
from mirage.data.lazy import sampled
from mirage.errors import DataError
from mirage.evaluation.attack import Attack
from mirage.evaluation.generate.base import Engine
from mirage.evaluation.generate.huggingface import HuggingFaceEngine
from mirage.evaluation.judge.base import Judge, Judgement, check_scored
from mirage.evaluation.run.agreement import agreement
from mirage.evaluation.run.counting import block, cluster_of, summarise
from mirage.evaluation.run.records import file_name, write_records
from mirage.evaluation.run.runner import ask, samples_fingerprint, weights_fingerprint
from mirage.schema import RESULTS_KEYS, EvalSample, Record, short_hash

ON_PROGRESS_BAR = ("unsafe/after/asr", "benign/after/rr")  # of the logged values


class EvalCallback(Callback):
    """Asks the starting model once and the trained model at every validation epoch end.

    Args:
        eval_set: Which of the source's eval_sets is asked.
        judge: Scores the answers.
        max_new_tokens: Longest answer, in tokens.
        batch_size: How many answers are written at the same time.
        limit: Ask only so many questions, sampled with `seed`.
        seed: Seed of that sample.
        engine: Another engine than the model in training, such as an OpenAI-compatible server.

    Raises:
        ValueError: If `limit` is less than 1, or `eval_set` cannot be the name of a file or is another entry of
            results.json.
    """

    section: ClassVar[str | None] = None  # of results.json; None: its top
    source: Source | None = None  # of the eval_set, where it is not the data's
    compares_with_start: ClassVar[bool] = False  # True: the starting model's answers are kept, in checkpoints too

    def __init__(
        self,
        eval_set: str,
        judge: Judge,
        max_new_tokens: int = 64,
        batch_size: int = 64,
        limit: int | None = None,
        seed: int = 0,
        engine: Engine | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"limit is {limit}: ask at least one question, or leave it out to ask all.")
        if self.section is None and eval_set in RESULTS_KEYS:
            raise ValueError(
                f"{eval_set!r} cannot be the name of an eval set: results.json has another entry of it. Rename the set."
            )
        self.eval_set, self.judge, self.engine = file_name(eval_set), judge, engine
        self.key = eval_set  # under which results.json and records/ know it
        self.max_new_tokens, self.batch_size, self.limit, self.seed = max_new_tokens, batch_size, limit, seed
        self.start: dict[str, Any] | None = None
        self.plain_answers: dict[str, str] = {}  # the starting model's to the plain questions, by the questions' ids
        self.current: dict[str, Any] | None = None
        self._step: int | None = None  # at which it was measured
        self.seconds: dict[str, float] = {}
        self.samples: list[EvalSample] = []
        self._loaded: dict[str, int] = {}  # step and epoch of the last checkpoint that was loaded
        self._weights: tuple[object, str] | None = None  # in which state the weights were read, and their fingerprint

    @property
    def state_key(self) -> str:
        return f"{type(self).__qualname__}[{self.eval_set}]"

    def state_dict(self) -> dict[str, Any]:
        """The starting model's result and answers, with what it was asked: a resumed run cannot measure it again."""
        return {"start": self.start, "plain_answers": self.plain_answers, "asked": self._asked()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the starting model's result from a checkpoint, unless it was asked or judged otherwise than now."""
        if state["asked"] == self._asked():
            self.start, self.plain_answers = state["start"], state.get("plain_answers", {})

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._loaded = {"step": checkpoint["global_step"], "epoch": checkpoint["epoch"]}

    def measured_at(self, trainer: L.Trainer) -> dict[str, int]:
        """Step and epoch of the weights that are measured: outside of a fit those of the checkpoint."""
        if trainer.state.fn != "fit" and self._loaded:
            return self._loaded
        return {"step": trainer.global_step, "epoch": trainer.current_epoch}

    def _asked(self) -> str:
        return short_hash(samples_fingerprint(self.samples), self.judge.name, self.max_new_tokens)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # here, so that a bad attack or eval_set is an error before the model is loaded
        self._weights = None
        self.judge.check()
        if not self.samples:
            datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
            samples = self.prepare_samples(datamodule)
            if self.engine is None:
                datamodule.check_questions(samples, self.max_new_tokens)
            self.samples = samples
        file_name(self.key)
        refuse_duplicates(trainer.callbacks)  # type: ignore[attr-defined]

    def prepare_samples(self, datamodule: Any) -> list[EvalSample]:
        """The samples as they will be asked.

        Raises:
            ValueError: If there is none, or a source of the callback's own has issues.
        """
        if self.source is not None and (issues := self.source.validate()):
            raise DataError.of(issues)
        samples = sampled((self.source or datamodule).eval_samples(self.eval_set), self.limit, self.seed)
        if not samples:
            raise ValueError(f"The eval_set {self.eval_set!r} is empty: nothing would be measured. Choose another.")
        return samples

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # a resumed run no longer has the starting model
        if self.samples and self.start is None and trainer.global_step == 0:
            self.start = self.measure(trainer, pl_module, "start.")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._weights = None  # of the last evaluation

    on_test_start = on_validation_start

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.samples and not trainer.sanity_checking:
            self.current = self.measure(trainer, pl_module, "")
            for name, value in self.logged(self.current).items():
                pl_module.log(name, value, prog_bar=name in ON_PROGRESS_BAR, batch_size=1, rank_zero_only=True)

    on_test_epoch_end = on_validation_epoch_end

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measures the weights that the fit ends with, if no validation did."""
        if self.samples and self._step != trainer.global_step:
            self.current = self.measure(trainer, pl_module, "")
            for logger in trainer.loggers:  # here a module may not log
                logger.log_metrics(self.logged(self.current), step=trainer.global_step)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measures a fit that was resumed at its end, for which Lightning calls no hook but this, after its teardown."""
        if self._step is None and trainer.global_step > 0:
            pl_module.to(trainer.strategy.root_device)
            self.on_train_end(trainer, pl_module)

    def logged(self, result: dict[str, Any]) -> dict[str, float]:
        """Metric name -> value for the loggers, out of what `results.json` says: by default `utility/<name>`."""
        rate = result["score"]["rate"]
        return {} if rate is None else {f"utility/{self.key}": rate}

    def result(self, records: list[Record]) -> dict[str, Any]:
        """What `results.json` says of these records."""
        raise NotImplementedError

    def check(self, records: list[Record]) -> None:
        """Warns or raises if the judge left answers unscored; called on every rank with the records of all."""
        judgements = [Judgement(record.verdict, record.reason) for record in records]
        check_scored([record.answer for record in records], judgements, f"{self.key}: {self.judge.name}")

    def write(self, folder: Path, prefix: str, records: list[Record], header: dict[str, Any]) -> None:
        """Writes what this run leaves of the answers into its folder; called on one rank."""
        write_records(folder / "records" / f"{prefix}{self.key}.jsonl", records, header)

    def measure(self, trainer: L.Trainer, pl_module: L.LightningModule, prefix: str) -> dict[str, Any]:
        """What `results.json` says of the model as it is; its answers are in the files whose names `prefix` opens."""
        started = time.perf_counter()
        module: Any = pl_module
        engine = self.engine or HuggingFaceEngine(
            module.model, module.processor, max_new_tokens=self.max_new_tokens, batch_size=self.batch_size,
            square=trainer.datamodule.pad_to_square,  # type: ignore[attr-defined]
        )  # fmt: skip
        weights = self.shared_fingerprint(trainer, module.model)
        answered_with = short_hash(weights, samples_fingerprint(self.samples), engine.settings())
        fingerprint = short_hash(answered_with, self.judge.name)
        header = {"fingerprint": fingerprint, "eval_set": self.eval_set, "judge": self.judge.name}
        folder = run_folder(trainer)

        def finish(records: list[Record]) -> None:
            with warnings.catch_warnings():
                if not trainer.is_global_zero:
                    warnings.simplefilter("ignore")  # said once is enough
                self.check(records)
            if trainer.is_global_zero:
                self.write(folder, prefix, records, header)

        stops = [each.at_once for each in trainer.callbacks if isinstance(each, StopOnSignal)]  # type: ignore[attr-defined]
        with trainer.precision_plugin.forward_context():
            records = ask(
                self.samples, engine, self.judge, eval_set=self.eval_set, fingerprint=fingerprint,
                rank=trainer.global_rank, world_size=trainer.world_size, log_folder=folder / "records",
                stoppable=stops[0] if stops else nullcontext, finish=finish,
            )  # fmt: skip
        if prefix and self.compares_with_start:
            self.plain_answers = {record.id: record.answer for record in records if not record.shot}
        if not prefix:
            self._step = trainer.global_step
        key = "start" if prefix else self.key
        self.seconds[key] = self.seconds.get(key, 0.0) + time.perf_counter() - started
        return {
            "fingerprint": fingerprint, "judge": self.judge.name, "generation": engine.settings(),
            "limit": self.limit, "seed": self.seed, **self.result(records),
        }  # fmt: skip

    def shared_fingerprint(self, trainer: L.Trainer, model: Any) -> str:
        """The fingerprint of the weights, read by the first callback of an evaluation for all.

        It is forgotten with the next optimizer step and the next evaluation (what is written to `parameter.data` leaves
        no trace), and not used within one if a parameter was replaced or written to in between.
        """
        state = trainer.global_step, [(parameter.data_ptr(), parameter._version) for parameter in model.parameters()]
        known = (callback._weights for callback in eval_callbacks(trainer))
        found = next((weights for weights in known if weights is not None and weights[0] == state), None)
        self._weights = found or (state, weights_fingerprint(model))
        return self._weights[1]


class OneWordAttack(EvalCallback):
    """Asks every question plainly and in K forms that open with one word, and counts what happened.

    On the unsafe set this is the jailbreak (ASR after "what"); on the benign set it is the test of over-prudence (RR and
    helpfulness after "share"). Use it once for each.

    Args:
        eval_set: `unsafe`, `benign`, or another set of the source, all of it unsafe or all of it benign.
        attack: The word, the number of shots K, and how questions are rewritten.
        judge: Scores the answers, before and after the attack.
        source: Where the eval_set comes from, if not from the data's source: a safety set, for instance.
        optional: Leave the eval_set out, and say so, if the files of `source` are not there.
    """

    compares_with_start = True
    audit: Callable[..., Any] | None = None
    """`mirage.audit.counts.audit_pairs`, for a word that is `mined`; whoever builds the trainer sets it."""

    def __init__(
        self,
        eval_set: str,
        attack: Attack,
        judge: Judge,
        source: Source | None = None,
        optional: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(eval_set, judge, **kwargs)
        self.attack, self.source, self.optional = attack, source, optional

    def prepare_samples(self, datamodule: Any) -> list[EvalSample]:
        """The samples with their rewrites; a source with a language of its own brings its rewriter.

        Raises:
            ValueError: If there is no sample, one cannot be rewritten, or the word cannot be mined.
        """
        if self.optional and self.source is not None and (why := self.source.missing()):
            rank_zero_only(print)(f"{self.eval_set} is not measured: {why}")
            return []
        samples = super().prepare_samples(datamodule)
        if self.attack.wants_word:
            if self.audit is None:
                raise ValueError(
                    f"attack.word is {self.attack.word!r}, and this OneWordAttack has no audit to mine it with: give a "
                    "word, or set the callback's `audit` to mirage.audit.counts.audit_pairs."
                )
            self.attack.mine(self.audit, datamodule.labelled_questions(), samples[0].unsafe)
        return self.attack.on(samples, datamodule.rewriter if self.source is None else self.source.rewriter)

    def result(self, records: list[Record]) -> dict[str, Any]:
        """Rates before and after, per shot and per category, agreement, and what the attack changed in the questions."""
        agreed = agreement(records, self.plain_answers) if self.plain_answers else None
        attack = self.attack.describe(self.samples)
        return {"attack": attack, **summarise(records, records[0].unsafe), "agreement": agreed}

    def logged(self, result: dict[str, Any]) -> dict[str, float]:
        """`unsafe/before/asr`, `unsafe/after/asr`, ...; without those of which nothing was scored."""
        rates = {(arm, name): result[arm][name]["rate"] for arm in ("before", "after") for name in ("asr", "rr", "ir")}
        return {f"{self.eval_set}/{arm}/{name}": rate for (arm, name), rate in rates.items() if rate is not None}


class Accuracy(EvalCallback):
    """Asks questions with known answers plainly: the share answered rightly, as a measure of usefulness.

    Results and records know a source's eval_set `utility` by the name of the source, such as `mini`.

    Args:
        eval_set: An eval set whose samples carry their truth, such as mini's `utility`.
        judge: Scores the answers; `Exact` compares with the truth.
    """

    section = "utility"

    def prepare_samples(self, datamodule: Any) -> list[EvalSample]:
        if self.eval_set == "utility":
            self.key = datamodule.source.name
        return super().prepare_samples(datamodule)

    def result(self, records: list[Record]) -> dict[str, Any]:
        """`score`: the rate of right answers with its interval."""
        clusters = [cluster_of(record) for record in records]
        counted = block([record.verdict for record in records], benign=True, clusters=clusters)
        return {"metric": "accuracy", "n": counted["n"], "unscored": counted["unscored"], "score": counted["helpful"]}


def run_folder(trainer: L.Trainer) -> Path:
    """Where this run writes: its folder in `fit`, a folder within it otherwise, so that nothing is overwritten."""
    root = Path(trainer.default_root_dir)
    stage = trainer.state.fn
    return root if stage is None or stage == "fit" else root / stage.value


def eval_callbacks(trainer: L.Trainer) -> Sequence[EvalCallback]:
    """The callbacks that measure, in the order of the config."""
    return [callback for callback in trainer.callbacks if isinstance(callback, EvalCallback)]  # type: ignore[attr-defined]


def refuse_duplicates(callbacks: Iterable[Callback]) -> None:
    """Checks that no two callbacks write the same records.

    Raises:
        ValueError: If two do; they are named.
    """
    seen: dict[str, EvalCallback] = {}
    for callback in callbacks:
        if isinstance(callback, EvalCallback) and (other := seen.setdefault(callback.key, callback)) is not callback:
            raise ValueError(
                f"trainer.callbacks: two measure {callback.key!r} ({type(other).__name__} and {type(callback).__name__}), "
                "and one would overwrite the records of the other. Keep one of them in this run."
            )
