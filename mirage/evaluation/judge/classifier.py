"""The `classifier` judge: a model that was trained to label answers, such as a refusal or a harm classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mirage.errors import ModelError
from mirage.evaluation.generate.base import check_at_least_one
from mirage.evaluation.judge.base import Answered, Judge, Judgement, judged_rest
from mirage.models.pretrained import first_line, resolve_pretrained
from mirage.schema import Verdict, short_hash

_MAX_TOKENS = 32_768  # where neither the model nor its tokenizer has a limit
_FIRST_POSITIONS = 2  # RoBERTa and its kin count positions from 2: so many of max_position_embeddings are never used


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

    def __init__(
        self,
        pretrained: str,
        labels: dict[str, Literal["refused", "complied", "irrelevant"]],
        reads: Literal["answer", "question_and_answer"] = "answer",
        batch_size: int = 32,
        device: str = "auto",
    ) -> None:
        if not labels:
            raise ValueError("judge.labels is empty: name the model's labels and the verdict that each stands for.")
        check_at_least_one("judge.", batch_size=batch_size)
        self.pretrained, self.labels, self.reads = pretrained, labels, reads
        self.batch_size, self.device = batch_size, device
        self._loaded: tuple[Any, Any] | None = None

    @property
    def name(self) -> str:
        """`classifier(roberta-refusals: 3e51a0c2)`; the hash is of the settings."""
        settings = (self.pretrained, *sorted(self.labels.items()), self.reads)
        return f"classifier({Path(self.pretrained).name}: {short_hash(*settings)[:8]})"

    def judge(self, answered: Sequence[Answered]) -> list[Judgement]:
        """One judgement for each answer, in order; the reason is the label with its probability.

        Raises:
            ModelError: If the folder holds no complete classifier.
            ValueError: If `labels` names a label that the model does not have.
        """
        return judged_rest(answered, self._read)

    def _read(self, answered: list[Answered]) -> list[Judgement]:
        import torch

        self._loaded = self._loaded or _load(self.pretrained, set(self.labels), self.device)
        model, tokenizer = self._loaded
        positions = (getattr(model.config, "max_position_embeddings", None) or _MAX_TOKENS) - _FIRST_POSITIONS
        judgements: list[Judgement] = []
        for start in range(0, len(answered), self.batch_size):
            batch = answered[start : start + self.batch_size]
            questions = [[one.question for one in batch]] if self.reads == "question_and_answer" else []
            inputs = tokenizer(
                *questions, [one.answer for one in batch], padding=True, truncation=True, return_tensors="pt",
                max_length=min(positions, tokenizer.model_max_length),
            )  # fmt: skip
            with torch.no_grad():
                logits = model(**inputs.to(model.device)).logits.float()
            several = model.config.problem_type == "multi_label_classification"
            highest, labels = (logits.sigmoid() if several else logits.softmax(-1)).max(-1)
            judgements += map(self._judgement, map(model.config.id2label.get, labels.tolist()), highest.tolist())
        return judgements

    def _judgement(self, label: str, probability: float) -> Judgement:
        reason = f"{label}, probability {probability:.3f}"
        if label in self.labels:
            return Judgement(Verdict(self.labels[label]), reason)
        return Judgement(Verdict.UNSCORED, f"{reason}: judge.labels gives it no verdict")


def _load(pretrained: str, labels: set[str], device: str) -> tuple[Any, Any]:
    """The classifier, in evaluation mode and without gradients, and its tokenizer; labels are checked before weights."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    folder = resolve_pretrained(pretrained)
    try:
        names = list(
            AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).id2label.values()
        )
        if unknown := sorted(labels - set(names)):
            raise ValueError(f"judge.labels names {unknown[0]!r}, but the labels of {folder} are {', '.join(names)}.")
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # a damaged checkpoint raises anything from KeyError to SafetensorError
        if str(error).startswith("judge.labels"):
            raise
        raise ModelError(
            f"{folder}: the classifier cannot be loaded ({first_line(error)}). Repair its files."
        ) from error
    model, report = loaded
    if lacking := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
        raise ModelError(f"{folder}: the checkpoint lacks {lacking[0]}. Use a model that was trained as a classifier.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token, model.config.pad_token_id = tokenizer.eos_token, tokenizer.eos_token_id
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return model.eval().requires_grad_(False).to(where), tokenizer
