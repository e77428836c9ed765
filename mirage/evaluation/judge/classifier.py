"""The `classifier` judge: a model that was trained to label answers, such as a refusal or a harm classifier."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from mirage.errors import ModelError
from mirage.evaluation.generate.base import check_at_least_one
from mirage.evaluation.judge.base import Answered, Judge, Judgement
from mirage.models.pretrained import read_config, repairable, resolve_pretrained
from mirage.schema import Verdict, short_hash

_MAX_TOKENS = 32_768  # where neither the model nor its tokenizer has a limit
_FIRST_POSITIONS = 2  # RoBERTa and its kin count positions from 2: so many of max_position_embeddings are never used


@dataclass(eq=False)
class Classifier(Judge):
    """The verdict that the likeliest label of an `AutoModelForSequenceClassification` stands for.

    A label without a verdict leaves the answer unscored. Weights are read from safetensors; no code of the folder is run
    and nothing is downloaded. What is longer than the model's input is cut at its end.

    Args:
        pretrained: A local folder, or `package:<package>/<path>`.
        labels: The model's label names (`id2label` in its config.json) and their verdicts, such as
            `{REJECTION: refused, NORMAL: complied}`.
        reads: The `answer` alone, or `question_and_answer` as a pair of texts: whichever the model was trained on.
        batch_size: How many answers are read at the same time.
        device: Where the model runs; `auto` takes a GPU where there is one.
    """

    one_by_one = True

    pretrained: str
    labels: dict[str, Literal["refused", "complied", "irrelevant"]]
    reads: Literal["answer", "question_and_answer"] = "answer"
    batch_size: int = 32
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.labels:
            raise ValueError("judge.labels is empty: name the model's labels and the verdict that each stands for.")
        check_at_least_one("judge.", batch_size=self.batch_size)

    @property
    def name(self) -> str:
        """`classifier(roberta-refusals: 3e51a0c2)`; the hash is of the settings."""
        settings = (self.pretrained, *sorted(self.labels.items()), self.reads)
        return f"classifier({Path(self.pretrained).name}: {short_hash(*settings)[:8]})"

    def check(self) -> None:
        """Compares `labels` with the model's config.json; reads no weights.

        Raises:
            ModelError: If the folder has no readable configuration.
            ValueError: If `labels` names a label that the model does not have.
        """
        names = (read_config(self.pretrained).id2label or {}).values()
        if unknown := sorted(self.labels.keys() - set(names)):
            raise ValueError(
                f"judge.labels names {unknown[0]!r}, but the labels of {self.pretrained} are {', '.join(names)}."
            )

    def read(self, rest: list[Answered]) -> list[Judgement]:
        """The reason is the label with its probability.

        Raises:
            ModelError: If the folder holds no complete classifier.
            ValueError: As `check`.
        """
        paired = self.reads == "question_and_answer"
        texts = [{"text": one.question, "text_pair": one.answer} if paired else {"text": one.answer} for one in rest]
        judgements = []
        for read in self._pipeline(texts, batch_size=self.batch_size):
            label, reason = read["label"], f"{read['label']}, probability {read['score']:.3f}"
            if label in self.labels:
                judgements.append(Judgement(Verdict(self.labels[label]), reason))
            else:
                judgements.append(Judgement(Verdict.UNSCORED, f"{reason}: judge.labels gives it no verdict"))
        return judgements

    @cached_property
    def _pipeline(self) -> Any:
        """The classifier with its tokenizer."""
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer, TextClassificationPipeline

        self.check()
        folder = resolve_pretrained(self.pretrained)
        with repairable(f"{folder}: the classifier"):
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model, report = AutoModelForSequenceClassification.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
        if lacking := sorted(report["missing_keys"]):
            raise ModelError(f"{folder}: the checkpoint lacks {lacking[0]}. Use a model that was trained to classify.")
        if tokenizer.pad_token is None:
            tokenizer.pad_token, model.config.pad_token_id = tokenizer.eos_token, tokenizer.eos_token_id
        device = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        positions = (getattr(model.config, "max_position_embeddings", None) or _MAX_TOKENS) - _FIRST_POSITIONS
        return TextClassificationPipeline(
            model=model.eval(), tokenizer=tokenizer, device=device,
            truncation=True, max_length=min(positions, tokenizer.model_max_length),
        )  # fmt: skip
