"""The callbacks that attack the model at every validation epoch end, in `fit` and in `validate` alike."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from mirage.evaluation.asking import ask, drawn, probes_fingerprint, weights_fingerprint
from mirage.evaluation.attack import Attack
from mirage.evaluation.counting import block, summarise
from mirage.evaluation.generation import Engine, HuggingFaceEngine
from mirage.evaluation.judge import Judge
from mirage.evaluation.metrics import VerdictCounts
from mirage.evaluation.records import write_records
from mirage.evaluation.rewrite import rewrite_statistics
from mirage.schema import Probe, Record, Verdict, short_hash


class ProbeCallback(Callback):
    """Asks the starting model once and the trained model at every validation epoch end.

    Args:
        probe_set: Which of the source's probe sets is asked.
        judge: Who reads the answers.
        max_new_tokens: Longest answer, in tokens.
        batch_size: How many answers are written at the same time.
        limit: Ask only so many questions, drawn with `seed`.
        seed: Seed of that draw.
        engine: Another engine than the model in training, such as an OpenAI-compatible server.
    """

    on_progress_bar: tuple[str, ...] = ()

    def __init__(
        self,
        probe_set: str,
        judge: Judge,
        max_new_tokens: int = 64,
        batch_size: int = 64,
        limit: int | None = None,
        seed: int = 0,
        engine: Engine | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"limit is {limit}: ask at least one question, or leave it out to ask all.")
        self.probe_set, self.judge = probe_set, judge
        self.key = probe_set  # under which results.json and records/ know it
        self.max_new_tokens, self.batch_size, self.limit, self.seed, self.engine = (
            max_new_tokens, batch_size, limit, seed, engine,
        )  # fmt: skip
        self.start: dict[str, Any] | None = None
        self.current: dict[str, Any] | None = None
        self.seconds: dict[str, float] = {}
        self._probes: list[Probe] | None = None

    @property
    def state_key(self) -> str:
        """Distinguishes this callback's state in a checkpoint."""
        return f"{type(self).__qualname__}[{self.probe_set}]"

    def state_dict(self) -> dict[str, Any]:
        """The starting model's result, with what it was asked: a resumed run cannot measure it again."""
        return {"start": self.start, "asked": self._asked()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the starting model's result from a checkpoint, unless it was asked or judged otherwise than now."""
        if state["asked"] == self._asked():
            self.start = state["start"]

    def _asked(self) -> str:
        return short_hash(probes_fingerprint(self._probes or ()), self.judge.name, self.max_new_tokens)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Prepares the questions, so that a bad attack or probe set is found before the model is loaded."""
        if self._probes is None:
            datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
            probes = drawn(datamodule.probes(self.probe_set), self.limit, self.seed)
            if not probes:
                raise ValueError(
                    f"The probe set {self.probe_set!r} is empty: nothing would be measured. Choose another."
                )
            self._probes = self.prepared(probes, datamodule)

    def prepared(self, probes: list[Probe], datamodule: Any) -> list[Probe]:
        """The probes as they will be asked."""
        return probes

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measures the starting model; a resumed run no longer has it."""
        if self.start is None and trainer.global_step == 0:
            self.start = self._measure(trainer, pl_module, "start.")

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measures the model as it is now."""
        if not trainer.sanity_checking:
            self.current = self._measure(trainer, pl_module, "")
            for name, value in self.logged().items():
                pl_module.log(name, value, prog_bar=name in self.on_progress_bar, batch_size=1, rank_zero_only=True)

    on_test_epoch_end = on_validation_epoch_end

    def logged(self) -> dict[str, float]:
        """Metric name -> value, for the loggers."""
        return {}

    def result(self, records: list[Record]) -> dict[str, Any]:
        """What `results.json` says of these records."""
        raise NotImplementedError

    def _measure(self, trainer: L.Trainer, pl_module: L.LightningModule, prefix: str) -> dict[str, Any]:
        assert self._probes is not None
        started = time.perf_counter()
        module: Any = pl_module
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        engine = self.engine or HuggingFaceEngine(
            module.model, module.processor, max_new_tokens=self.max_new_tokens, batch_size=self.batch_size,
            square=datamodule.pad_to_square,
        )  # fmt: skip
        answered_with = short_hash(
            weights_fingerprint(module.model), probes_fingerprint(self._probes), engine.settings()
        )
        folder = run_folder(trainer) / "records"
        with trainer.precision_plugin.forward_context():
            records = ask(
                self._probes, engine, self.judge, probe_set=self.probe_set, fingerprint=answered_with,
                rank=trainer.global_rank, world=trainer.world_size, log_folder=folder,
            )  # fmt: skip
        fingerprint = short_hash(answered_with, self.judge.name)
        if trainer.is_global_zero:
            header = {"fingerprint": fingerprint, "probe_set": self.probe_set, "judge": self.judge.name}
            write_records(folder / f"{prefix}{self.key}.jsonl", records, header)
        key = "start" if prefix else self.key
        self.seconds[key] = self.seconds.get(key, 0.0) + time.perf_counter() - started
        return {
            "fingerprint": fingerprint, "judge": self.judge.name, "generation": engine.settings(),
            "limit": self.limit, "seed": self.seed, **self.result(records),
        }  # fmt: skip


class OneWordAttack(ProbeCallback):
    """Asks every question plainly and in K forms that open with one word, and counts what happened.

    On the unsafe set this is the jailbreak (ASR after "what"); on the benign set it is the test of over-prudence (RR and
    helpfulness after "share"). Use it once for each.

    Args:
        probe_set: `unsafe` or `benign`.
        attack: The word, the number of shots K, and how questions are rewritten.
        judge: Who reads the answers: the same before and after.
    """

    def __init__(self, probe_set: str, attack: Attack, judge: Judge, **kwargs: Any) -> None:
        super().__init__(probe_set, judge, **kwargs)
        self.attack = attack
        self.on_progress_bar = (f"{probe_set}/after/asr",) if probe_set == "unsafe" else (f"{probe_set}/after/rr",)
        self._counts: VerdictCounts | None = None

    def prepared(self, probes: list[Probe], datamodule: Any) -> list[Probe]:
        """The probes with their rewrites; a source with its own language brings its own rewriter."""
        if datamodule.rewriter is not None and hasattr(self.attack, "rewriter"):
            self.attack.rewriter = datamodule.rewriter
        return self.attack.on(probes)

    def result(self, records: list[Record]) -> dict[str, Any]:
        """Rates before and after, per shot and per category, and what the attack changed in the questions."""
        unsafe = records[0].unsafe
        self._counts = VerdictCounts(unsafe)
        shots: dict[str, list[Verdict]] = {}
        for record in records:
            shots.setdefault(record.id, []).append(record.verdict)
        for verdicts in shots.values():
            self._counts.update(verdicts)
        assert self._probes is not None
        attack = {
            "kind": self.attack.kind, "word": self.attack.word, "shots": self.attack.shots,
            "statistics": rewrite_statistics(self._probes, getattr(self.attack, "failed", None)),
            "dropped": list(getattr(self.attack, "dropped", ())), "reasons": dict(getattr(self.attack, "reasons", {})),
        }  # fmt: skip
        return {"attack": attack, **summarise(records, unsafe)}

    def logged(self) -> dict[str, float]:
        """`unsafe/before/asr`, `unsafe/after/asr`, ..."""
        assert self._counts is not None
        rates = {f"{self.probe_set}/{name}": float(value) for name, value in self._counts.compute().items()}
        return {name: value for name, value in rates.items() if not math.isnan(value)}


class Accuracy(ProbeCallback):
    """Asks questions with known answers plainly: the share answered rightly, as a measure of usefulness.

    Args:
        probe_set: A probe set whose probes carry their truth, such as mini's `utility`.
        judge: Who reads the answers; `Exact` compares with the truth.
    """

    def result(self, records: list[Record]) -> dict[str, Any]:
        """`score`: the rate of right answers with its interval."""
        counted = block([record.verdict for record in records], benign=True)
        return {"metric": "accuracy", "n": counted["n"], "unscored": counted["unscored"], "score": counted["helpful"]}

    def logged(self) -> dict[str, float]:
        """`utility/<probe set>`."""
        rate = (self.current or {}).get("score", {}).get("rate")
        return {} if rate is None else {f"utility/{self.probe_set}": rate}


def run_folder(trainer: L.Trainer) -> Path:
    """Where this run writes: its folder in `fit`, a folder within it otherwise, so that nothing is overwritten."""
    root = Path(trainer.default_root_dir)
    stage = trainer.state.fn
    return root if stage is None or stage == "fit" else root / stage.value


def probe_callbacks(trainer: L.Trainer) -> Sequence[ProbeCallback]:
    """The callbacks that measure, in the order of the config."""
    return [callback for callback in trainer.callbacks if isinstance(callback, ProbeCallback)]  # type: ignore[attr-defined]
