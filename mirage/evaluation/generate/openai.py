"""The same samples, asked of a server that speaks OpenAI's chat protocol (vLLM, `transformers serve` and others)."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any

from mirage.evaluation.generate.chat_client import ChatServer, ServerError
from mirage.evaluation.generate.huggingface import Engine, OnAnswer
from mirage.schema import EvalSample, Picture

__all__ = ["OpenAIEngine", "ServerError", "data_uri"]


class OpenAIEngine(Engine):
    """Answers by an OpenAI-compatible server, at temperature 0, several requests at a time.

    Args:
        base_url: Where the server is, such as `http://127.0.0.1:8000/v1`; without a path, `/v1` is meant.
        model: The model's name on the server.
        max_new_tokens: Longest answer, in tokens.
        concurrency: How many requests are under way at the same time.
        timeout_s: Seconds that one request may take.
        retries: How often a request is repeated after a time-out, a lost connection, a busy server (HTTP 408, 409, 425,
            429 or 5xx), or a reply that cannot be read; the wait before it doubles each time.
        api_key_env: Name of the environment variable that holds the key, where the server wants one.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        max_new_tokens: int = 64,
        concurrency: int = 8,
        timeout_s: float = 120.0,
        retries: int = 4,
        api_key_env: str | None = None,
    ) -> None:
        if max_new_tokens < 1:
            raise ValueError(f"engine.max_new_tokens is {max_new_tokens}: it must be at least 1.")
        self.server = ChatServer(
            base_url, model, concurrency=concurrency, timeout_s=timeout_s, retries=retries, api_key_env=api_key_env
        )
        self.max_new_tokens = max_new_tokens

    @property
    def name(self) -> str:
        return "openai"

    def settings(self) -> dict[str, Any]:
        return {
            "engine": self.name,
            "base_url": self.server.base_url,
            "model": self.server.model,
            "max_new_tokens": self.max_new_tokens,
            "temperature": 0,
        }

    def answers(self, samples: Sequence[EvalSample], on_answer: OnAnswer | None = None) -> list[list[str]]:
        answers = [[""] * len(sample.questions) for sample in samples]

        def keep(place: tuple[int, int], text: str) -> None:
            index, shot = place
            answers[index][shot] = text
            if on_answer is not None:
                on_answer(samples[index].id, shot, text)

        self.server.replies(self._bodies(samples), keep)
        return answers

    def _bodies(self, samples: Sequence[EvalSample]) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
        """(Index, shot) and request of every question; the shots of a sample in a row, which servers' caches like."""
        for index, sample in enumerate(samples):
            uri = data_uri(sample.image) if sample.image is not None else None
            for shot, question in enumerate(sample.questions):
                content: list[dict[str, Any]] = [{"type": "text", "text": question}]
                if uri is not None:
                    content.insert(0, {"type": "image_url", "image_url": {"url": uri}})
                messages = [{"role": "user", "content": content}]
                yield (index, shot), {"messages": messages, "max_tokens": self.max_new_tokens, "temperature": 0}


def data_uri(picture: Picture) -> str:
    """The picture as a PNG inside a URI: no file of ours is ever reachable by the server."""
    buffer = io.BytesIO()
    picture.open().save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
