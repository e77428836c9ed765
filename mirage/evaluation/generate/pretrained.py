"""The engine that asks a model in a local folder: loaded at the first question, never before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mirage.evaluation.generate.base import Engine, OnAnswer, check_at_least_one
from mirage.models.pretrained import Dtype
from mirage.schema import EvalSample

if TYPE_CHECKING:
    from mirage.evaluation.generate.huggingface import HuggingFaceEngine


@dataclass(eq=False)
class PretrainedEngine(Engine):
    """Answers with a model in a local Hugging Face folder, which is loaded when it is first asked.

    The model is a vision-language model, or a language model that is asked without pictures. Weights are read from
    safetensors; no code of the folder is run and nothing is downloaded.

    Args:
        pretrained: A folder or `package:<package>/<path>`.
        max_new_tokens: Longest answer, in tokens.
        batch_size: How many answers are written at the same time.
        dtype: Type of the weights; `auto` keeps the checkpoint's own.
        device: Where the model runs; `auto` takes a GPU where there is one.
        pad_to_square: Pad pictures to a square first, as LLaVA-1.5 was trained.

    Raises:
        ModelError: When first asked, if the folder holds no complete model.
    """

    name = "pretrained"

    pretrained: str
    _: KW_ONLY
    max_new_tokens: int = 64
    batch_size: int = 16
    dtype: Dtype = "auto"
    device: str = "auto"
    pad_to_square: bool = False

    def __post_init__(self) -> None:
        check_at_least_one("engine.", max_new_tokens=self.max_new_tokens, batch_size=self.batch_size)

    @property
    def image_placeholder(self) -> str | None:
        return self.loaded.image_placeholder

    def settings(self) -> dict[str, Any]:
        asked = {"engine": self.name, "pretrained": self.pretrained, "decoding": "greedy", "dtype": self.dtype}
        return asked | {"max_new_tokens": self.max_new_tokens, "square": self.pad_to_square}

    def answers(
        self, samples: Sequence[EvalSample], on_answer: OnAnswer | None = None, temperature: float = 0.0, seed: int = 0
    ) -> list[list[str]]:
        return self.loaded.answers(samples, on_answer, temperature, seed)

    @cached_property
    def loaded(self) -> HuggingFaceEngine:
        """The engine of the loaded model, which is loaded now if it was not before."""
        from mirage.evaluation.generate.huggingface import HuggingFaceEngine
        from mirage.models.load import load_for_inference

        model, processor = load_for_inference(self.pretrained, dtype=self.dtype, device=self.device, text_alone=True)
        return HuggingFaceEngine(
            model, processor, max_new_tokens=self.max_new_tokens, batch_size=self.batch_size, square=self.pad_to_square
        )
