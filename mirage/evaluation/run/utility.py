"""The utility benchmarks as a callback: asked like any eval_set, scored by their official metric."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import lightning as L

from mirage.atomic import write_text
from mirage.evaluation.benchmarks.base import Benchmark
from mirage.evaluation.generate.base import Engine
from mirage.evaluation.judge.base import Answered, Judge, Judgement
from mirage.evaluation.judge.keyword import is_refusal
from mirage.evaluation.run.callbacks import EvalCallback
from mirage.schema import EvalSample, Record, Verdict


class Utility(EvalCallback):
    """Asks a utility benchmark and scores the answers by its official metric.

    Use it once for each benchmark. The score stands in the results under `utility` and the benchmark's name, with its
    prompt; the answers are in `records/<name>.jsonl`, each with its score and a verdict: `complied` above 0, at 0
    `refused` if it refuses, else `irrelevant`, and `unscored` where the official file has no gold answer.

    Args:
        benchmark: `VQAv2`, `TextVQA`, `ScienceQA` or `VizWiz`, with the folder of its official files. They are checked
            before the model is loaded.
        max_new_tokens: Longest answer, in tokens.
        batch_size: How many answers are written at the same time.
        engine: Another engine than the model in training, such as an OpenAI-compatible server.
        submission: Write the answers in the official upload format, too: `submissions/<name>.json` in the run's folder.
        when: In a fit, ask the starting model and after every validation epoch; or the starting model and the one at
            the fit's end only; or the latter only. `validate` asks always.
    """

    section = "utility"

    def __init__(
        self,
        benchmark: Benchmark,
        max_new_tokens: int = 64,
        batch_size: int = 64,
        engine: Engine | None = None,
        submission: bool = False,
        when: Literal["every_epoch", "start_and_end", "end"] = "every_epoch",
    ) -> None:
        super().__init__(
            benchmark.name, OfficialMetric(benchmark), max_new_tokens, batch_size, benchmark.limit, benchmark.seed, engine
        )  # fmt: skip
        self.benchmark, self.submission, self.when = benchmark, submission, when

    def prepare_samples(self, datamodule: Any) -> list[EvalSample]:
        samples = self.benchmark.samples()
        if self.submission:
            self.benchmark.submission([""] * len(samples))  # refuses now what it would refuse after hours of asking
        return samples

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.when != "end":
            super().on_train_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.when == "every_epoch" or trainer.state.fn != "fit":
            super().on_validation_epoch_end(trainer, pl_module)

    def check(self, records: list[Record]) -> None:
        """Checks nothing: all answers to a test split are unscored, since it has no gold answers."""

    def result(self, records: list[Record]) -> dict[str, Any]:
        """The official score and all that the benchmark says of it."""
        return self.benchmark.summary([record.score for record in records], [record.answer for record in records])

    def write(self, folder: Path, prefix: str, records: list[Record], header: dict[str, Any]) -> None:
        """Writes the records, and the upload where it is wanted."""
        super().write(folder, prefix, records, header)
        if self.submission:
            upload = self.benchmark.submission([record.answer for record in records])
            write_text(folder / "submissions" / f"{prefix}{self.key}.json", json.dumps(upload) + "\n")

    def measure(self, trainer: L.Trainer, pl_module: L.LightningModule, prefix: str) -> dict[str, Any]:
        """As every callback, and the step, since a big benchmark is not asked at every one."""
        return super().measure(trainer, pl_module, prefix) | {"step": self.measured_at(trainer)["step"]}


class OfficialMetric(Judge):
    """The benchmark's own score as a judgement, so that answers are kept and shown as those of every eval_set are."""

    def __init__(self, benchmark: Benchmark) -> None:
        self.benchmark = benchmark

    @property
    def name(self) -> str:
        return f"{self.benchmark.source}: {self.benchmark.metric}"

    def decided(self, one: Answered) -> Judgement:
        score = self.benchmark.score(one.sample.id, one.answer)
        if score is None:
            return Judgement(Verdict.UNSCORED, "the official file has no gold answer")
        missed = Verdict.REFUSED if is_refusal(one.answer) else Verdict.IRRELEVANT
        return Judgement(Verdict.COMPLIED if score > 0 else missed, score=score)
