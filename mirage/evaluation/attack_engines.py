"""Language models that an attack asks for rewrites: a server with the OpenAI protocol, or a Hugging Face model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal

from mirage.evaluation.generate.chat_client import ChatServer
from mirage.models.pretrained import resolve_pretrained


class RewriteEngine(ABC):
    """A language model that rewrites, wherever it runs."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The model with all settings that its answers depend on: cached rewrites are keyed by it."""

    @abstractmethod
    def __call__(self, prompts: list[str], seed: int) -> list[str]:
        """One answer to each prompt, in order; the same seed gives the same answers as far as the model can."""


class ServerEngine(RewriteEngine):
    """A chat model on an OpenAI-compatible server (vLLM, transformers serve, a hosted one).

    Args:
        base_url: Where the server is, such as `http://127.0.0.1:8000/v1`; without a path, `/v1` is meant.
        model: The model's name on that server.
        temperature: Sampling temperature; above 0, so that another seed gives another answer.
        max_new_tokens: The longest answer, in tokens.
        timeout_s: Seconds that one request may take.
        retries: How often a request is repeated when the server is busy, slow or unreachable.
        concurrency: How many requests are on their way at a time.
        api_key_env: Name of the environment variable that holds the key, where the server wants one.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        temperature: float = 0.7,
        max_new_tokens: int = 96,
        timeout_s: float = 60.0,
        retries: int = 3,
        concurrency: int = 8,
        api_key_env: str | None = None,
    ) -> None:
        if max_new_tokens < 1 or not temperature > 0:
            raise ValueError("engine: max_new_tokens must be at least 1 and temperature above 0.")
        self.server = ChatServer(
            base_url, model, concurrency=concurrency, timeout_s=timeout_s, retries=retries, api_key_env=api_key_env
        )
        self.temperature, self.max_new_tokens = temperature, max_new_tokens

    @property
    def name(self) -> str:
        """The model with the settings that its answers depend on."""
        settings = f"temperature={self.temperature}, max_new_tokens={self.max_new_tokens}"
        return f"server({self.server.model}, {settings})"

    def __call__(self, prompts: list[str], seed: int) -> list[str]:
        """One answer to each prompt, in order.

        Raises:
            ServerError: If the server cannot be reached, does not answer in time, refuses, or answers nonsense.
        """
        answers = [""] * len(prompts)
        self.server.replies(self._bodies(prompts, seed), answers.__setitem__)
        return answers

    def _bodies(self, prompts: list[str], seed: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for place, prompt in enumerate(prompts):
            yield (
                place,
                {
                    "messages": [{"role": "user", "content": prompt}],
                    "temperature": self.temperature,
                    "max_tokens": self.max_new_tokens,
                    "seed": seed,
                },
            )


class TextModelEngine(RewriteEngine):
    """A Hugging Face text model, run in this process. It is loaded at the first prompt.

    Args:
        pretrained: Folder or name of the model (`AutoModelForCausalLM`).
        max_new_tokens: The longest answer, in tokens.
        temperature: Sampling temperature; above 0, so that another seed gives another answer.
        batch_size: Prompts that are answered together.
        device: `auto` takes a GPU where there is one.
        dtype: The number format of the weights; `auto` as they are stored.
    """

    def __init__(
        self,
        pretrained: str,
        max_new_tokens: int = 64,
        temperature: float = 0.7,
        batch_size: int = 16,
        device: str = "auto",
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    ) -> None:
        if temperature <= 0 or max_new_tokens < 1 or batch_size < 1:
            raise ValueError("engine: temperature must be above 0, max_new_tokens and batch_size at least 1.")
        self.pretrained, self.max_new_tokens, self.temperature = pretrained, max_new_tokens, temperature
        self.batch_size, self.device, self.dtype = batch_size, device, dtype
        self._loaded: tuple[Any, Any] | None = None

    @property
    def name(self) -> str:
        """The model with the settings that its answers depend on."""
        return f"model({self.pretrained}, temperature={self.temperature}, max_new_tokens={self.max_new_tokens})"

    def __call__(self, prompts: list[str], seed: int) -> list[str]:
        """One answer to each prompt, in order. The caller's random state is left as it was."""
        import torch

        tokenizer, model = self._load()
        answers: list[str] = []
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.inference_mode():
            torch.manual_seed(seed)
            for start in range(0, len(prompts), self.batch_size):
                texts = [self._chat(tokenizer, prompt) for prompt in prompts[start : start + self.batch_size]]
                batch = tokenizer(
                    texts, return_tensors="pt", padding=True, add_special_tokens=tokenizer.chat_template is None
                )
                batch = {key: batch[key].to(model.device) for key in ("input_ids", "attention_mask")}
                output = model.generate(
                    **batch,
                    do_sample=True,
                    temperature=self.temperature,
                    max_new_tokens=self.max_new_tokens,
                    pad_token_id=tokenizer.pad_token_id,
                )
                answers += tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return answers

    @staticmethod
    def _chat(tokenizer: Any, prompt: str) -> str:
        if tokenizer.chat_template is None:
            return prompt
        message = [{"role": "user", "content": prompt}]
        return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer

            try:
                where = resolve_pretrained(self.pretrained)
                tokenizer = AutoTokenizer.from_pretrained(where, padding_side="left", trust_remote_code=False)
                model = AutoModelForCausalLM.from_pretrained(
                    where, dtype=self.dtype, trust_remote_code=False, use_safetensors=True
                )
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"engine.pretrained: {self.pretrained!r} is no text model that loads ({error})."
                ) from error
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token
            found = "cuda" if torch.cuda.is_available() else "cpu"
            placed: Any = model  # typed as a mixin without `to`
            self._loaded = tokenizer, placed.to(found if self.device == "auto" else self.device).eval()
        return self._loaded
