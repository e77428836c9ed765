"""Language models that an attack asks for rewrites: a server with the OpenAI protocol, or a Hugging Face model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from mirage.evaluation.generate.base import Engine
from mirage.evaluation.generate.openai import OpenAIEngine
from mirage.evaluation.generate.pretrained import PretrainedEngine


class RewriteEngine(ABC):
    """A language model that rewrites, wherever it runs."""

    engine: Engine
    temperature: float

    @property
    @abstractmethod
    def name(self) -> str:
        """The model with all settings that its answers depend on: cached rewrites are keyed by it."""

    def __call__(self, prompts: list[str], seed: int) -> list[str]:
        """One answer to each prompt, in order; the same seed gives the same answers as far as the model can."""
        return self.engine.complete(prompts, temperature=self.temperature, seed=seed)


class ServerEngine(RewriteEngine):
    """A chat model on an OpenAI-compatible server: `OpenAIEngine`."""

    def __init__(
        self, base_url: str, model: str, temperature: float = 0.7, max_new_tokens: int = 96, timeout_s: float = 60.0,
        retries: int = 3, concurrency: int = 8, api_key_env: str | None = None,
    ) -> None:  # fmt: skip
        if not temperature > 0:
            raise ValueError("engine: temperature must be above 0.")
        self.engine: Any = OpenAIEngine(
            base_url, model, max_new_tokens=max_new_tokens, timeout_s=timeout_s, retries=retries,
            concurrency=concurrency, api_key_env=api_key_env,
        )  # fmt: skip
        self.temperature = temperature

    @property
    def name(self) -> str:
        """The model with the settings that its answers depend on."""
        settings = f"temperature={self.temperature}, max_new_tokens={self.engine.max_new_tokens}"
        return f"server({self.engine.model}, {settings})"


class TextModelEngine(RewriteEngine):
    """A Hugging Face text model, run in this process: `PretrainedEngine`."""

    def __init__(
        self, pretrained: str, max_new_tokens: int = 64, temperature: float = 0.7, batch_size: int = 16,
        device: str = "auto", dtype: Any = "auto",
    ) -> None:  # fmt: skip
        if not temperature > 0:
            raise ValueError("engine: temperature must be above 0.")
        self.engine: Any = PretrainedEngine(
            pretrained, max_new_tokens=max_new_tokens, batch_size=batch_size, device=device, dtype=dtype
        )
        self.temperature = temperature

    @property
    def name(self) -> str:
        """The model with the settings that its answers depend on."""
        settings = f"temperature={self.temperature}, max_new_tokens={self.engine.max_new_tokens}"
        return f"model({self.engine.pretrained}, {settings})"
