"""The engine that asks a model in a local folder: loaded at the first question, never before."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from mirage.errors import ModelError
from mirage.evaluation.generate.base import Engine, OnAnswer, check_at_least_one
from mirage.models.pretrained import first_line, resolve_pretrained
from mirage.schema import EvalSample

if TYPE_CHECKING:
    from mirage.evaluation.generate.huggingface import HuggingFaceEngine

Dtype = Literal["float32", "bfloat16", "float16", "auto"]
_CONTENT_ALONE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


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

    def __init__(
        self,
        pretrained: str,
        *,
        max_new_tokens: int = 64,
        batch_size: int = 16,
        dtype: Dtype = "auto",
        device: str = "auto",
        pad_to_square: bool = False,
    ) -> None:
        check_at_least_one("engine.", max_new_tokens=max_new_tokens, batch_size=batch_size)
        self.pretrained, self.max_new_tokens, self.batch_size = pretrained, max_new_tokens, batch_size
        self.dtype: Dtype = dtype
        self.device, self.pad_to_square = device, pad_to_square

    @property
    def name(self) -> str:
        return "pretrained"

    @property
    def image_placeholder(self) -> str | None:
        return self.loaded.image_placeholder

    def settings(self) -> dict[str, Any]:
        return {
            "engine": self.name,
            "pretrained": self.pretrained,
            "decoding": "greedy",
            "max_new_tokens": self.max_new_tokens,
            "dtype": self.dtype,
            "square": self.pad_to_square,
        }

    def answers(self, samples: Sequence[EvalSample], on_answer: OnAnswer | None = None) -> list[list[str]]:
        return self.loaded.answers(samples, on_answer)

    def complete(self, prompts: Sequence[str], *, temperature: float, seed: int) -> list[str]:
        return self.loaded.complete(prompts, temperature=temperature, seed=seed)

    @cached_property
    def loaded(self) -> HuggingFaceEngine:
        """The engine of the loaded model, which is loaded now if it was not before."""
        from mirage.evaluation.generate.huggingface import HuggingFaceEngine
        from mirage.models.load import load_for_inference

        if _reads_text_alone(resolve_pretrained(self.pretrained)):
            model, processor = _load_language_model(self.pretrained, self.dtype, self.device)
        else:
            model, processor = load_for_inference(self.pretrained, dtype=self.dtype, device=self.device)
        return HuggingFaceEngine(
            model, processor, max_new_tokens=self.max_new_tokens, batch_size=self.batch_size, square=self.pad_to_square
        )


class TextProcessor:
    """A tokenizer in the place of a processor, for a language model.

    Args:
        tokenizer: The tokenizer; without a chat template, a prompt is the text of its messages alone.
    """

    image_token: str | None = None

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.chat_template: str = tokenizer.chat_template or _CONTENT_ALONE

    def __call__(self, *, text: Sequence[str], images: None, **settings: Any) -> Any:
        """The tokenizer's inputs for these texts."""
        return self.tokenizer(text, **settings)

    def apply_chat_template(self, messages: Sequence[dict[str, Any]], **settings: Any) -> Any:
        """The conversation as the tokenizer's template writes it, which takes contents as texts."""
        texts = [{**message, "content": "".join(part["text"] for part in message["content"])} for message in messages]
        return self.tokenizer.apply_chat_template(texts, chat_template=self.chat_template, **settings)


def _reads_text_alone(folder: str) -> bool:
    """Whether the folder's config names a language model; False if it cannot be read: loading says what is wrong."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    try:
        kind = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).model_type
    except Exception:  # whatever a damaged config raises
        return False
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def _load_language_model(pretrained: str, dtype: Dtype, device: str) -> tuple[Any, TextProcessor]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = resolve_pretrained(pretrained)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(where, local_files_only=True, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            where,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except Exception as error:  # a damaged checkpoint raises anything from KeyError to SafetensorError
        raise ModelError(
            f"{where}: the language model cannot be loaded ({first_line(error)}). Repair its files."
        ) from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"{where}: the checkpoint lacks {missing[0]}. Fetch weights that belong to its config.json.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.eval().requires_grad_(False).to(device), TextProcessor(tokenizer)
