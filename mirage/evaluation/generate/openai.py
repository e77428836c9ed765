"""The engine that asks a server which speaks OpenAI's chat protocol (vLLM, `transformers serve` and others)."""

from __future__ import annotations

import base64
import io
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mirage.evaluation.generate.base import Engine, OnAnswer, check_at_least_one
from mirage.schema import EvalSample, Picture
from mirage.text import one_line

if TYPE_CHECKING:
    from httpx2 import Client

Body = dict[str, Any]

_LONGEST_WAIT_S = 30.0
_LARGEST_REPLY = 16 * 2**20  # bytes
_BUSY = frozenset({408, 409, 425, 429})  # besides 5xx: these pass as well
_KEY_REMEDY = "Set engine.api_key_env to the name of the variable that holds a valid key."
_REMEDIES = {
    401: _KEY_REMEDY,
    403: _KEY_REMEDY,
    404: "Correct engine.base_url, or engine.model (now {model!r}).",
    429: "Lower engine.concurrency.",
}
_OTHER_REMEDY = (
    "See the server's own log; check engine.model (now {model!r}) and engine.base_url (redirects are not followed)."
)


class ServerError(ValueError):
    """A server that gave no answer: one sentence says which, what happened and what to do."""


class _TryAgain(Exception):
    """An attempt failed in a way that may pass."""

    def __init__(self, what: str, wait_s: float = 0.0) -> None:
        super().__init__(what)
        self.wait_s = wait_s


@dataclass(eq=False)
class OpenAIEngine(Engine):
    """Answers by an OpenAI-compatible server, several requests at a time.

    Args:
        base_url: Where the server is, such as `http://127.0.0.1:8000/v1`; without a path, `/v1` is meant.
        model: The model's name on the server.
        max_new_tokens: Longest answer, in tokens.
        concurrency: How many requests are under way at the same time.
        timeout_s: Seconds that one request may take.
        retries: How often a request is repeated after a time-out, a lost connection, a busy server (HTTP 408, 409, 425,
            429 or 5xx), or a reply that cannot be read.
        backoff_s: Seconds before the first repeat; the wait doubles each time, up to half a minute.
        api_key_env: Name of the environment variable that holds the key, where the server wants one.

    Raises:
        ServerError: When asked, if a question got no answer.
    """

    name = "openai"

    base_url: str
    model: str
    _: KW_ONLY
    max_new_tokens: int = 64
    concurrency: int = 8
    timeout_s: float = 120.0
    retries: int = 4
    backoff_s: float = 0.5
    api_key_env: str | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
            raise ValueError(
                "engine.base_url must look like http://127.0.0.1:8000/v1, without a name, password or query: a key "
                "goes into engine.api_key_env."
            )
        check_at_least_one("engine.", max_new_tokens=self.max_new_tokens, concurrency=self.concurrency)
        if not self.timeout_s > 0 or self.retries < 0 or not self.backoff_s >= 0:
            raise ValueError(
                f"engine.timeout_s is {self.timeout_s}, engine.retries is {self.retries} and engine.backoff_s is "
                f"{self.backoff_s}: the first must be above 0, the others at least 0."
            )
        self.base_url = self.base_url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")

    def settings(self) -> dict[str, Any]:
        served = {"engine": self.name, "base_url": self.base_url, "model": self.model}
        return served | {"max_new_tokens": self.max_new_tokens, "temperature": 0}

    def answers(
        self, samples: Sequence[EvalSample], on_answer: OnAnswer | None = None, temperature: float = 0.0, seed: int = 0
    ) -> list[list[str]]:
        """As every engine's.

        Raises:
            ServerError: If a question got no answer. No other request is begun then; those under way are waited for.
        """
        import httpx2

        answers = [[""] * len(sample.questions) for sample in samples]
        under_way: dict[Future[str], tuple[int, int]] = {}  # index of the sample, and shot
        failures: list[BaseException] = []
        stop = threading.Event()

        def collect() -> None:
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                (index, shot), error = under_way.pop(future), future.exception()
                if error is None:
                    answers[index][shot] = text = future.result()
                    if on_answer is not None:
                        on_answer(samples[index].id, shot, text)
                elif not isinstance(error, CancelledError):
                    failures.append(error)

        # a redirect, which would carry the key to another host, is not followed
        with (
            httpx2.Client(headers=self._headers(), timeout=self.timeout_s, follow_redirects=False) as client,
            ThreadPoolExecutor(self.concurrency, thread_name_prefix="mirage-server") as pool,
        ):
            try:
                for place, body in self._requests(samples, temperature, seed):
                    if stop.is_set():
                        break
                    under_way[pool.submit(self._ask, client, body, stop)] = place
                    # a window, not all at once: only so many encoded pictures are in memory
                    while len(under_way) >= 2 * self.concurrency:
                        collect()
                while under_way:  # after a failure too: what the server is answering just now is kept
                    collect()
            finally:
                stop.set()
        if failures:
            raise failures[0]
        return answers

    def _requests(
        self, samples: Sequence[EvalSample], temperature: float, seed: int
    ) -> Iterator[tuple[tuple[int, int], Body]]:
        """(Index, shot) and request of every question; the shots of a sample in a row, which servers' caches like."""
        sampling = {"temperature": temperature, "seed": seed} if temperature > 0 else {"temperature": 0}
        for index, sample in enumerate(samples):
            url = data_uri(sample.image) if sample.image is not None else None
            for shot, question in enumerate(sample.questions):
                # servers of language models may take a plain text only
                content: Any = question
                if url is not None:
                    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
                asked = {"model": self.model, "messages": [{"role": "user", "content": content}]}
                yield (index, shot), asked | {"max_tokens": self.max_new_tokens, **sampling}

    def _headers(self) -> dict[str, str]:
        if self.api_key_env is None:
            return {}
        key = os.environ.get(self.api_key_env, "").strip()
        if not key or not key.isascii() or not key.isprintable():  # a client would quote a key that it cannot send
            raise ServerError(
                f"{self.base_url}: the environment variable {self.api_key_env} holds no key that can be sent. "
                "Set it, or leave engine.api_key_env out."
            )
        return {"Authorization": f"Bearer {key}"}

    def _ask(self, client: Client, body: Body, stop: threading.Event) -> str:
        """The text of the reply to one request, repeated as often as `retries` allows.

        Raises:
            ServerError: If none came; then `stop` is set.
            CancelledError: If `stop` was set by another request.
        """
        for attempt in range(self.retries + 1):
            if stop.is_set():
                raise CancelledError
            try:
                return self._attempt(client, body)
            except _TryAgain as error:
                failure = ServerError(f"{self.base_url}: asked {attempt + 1} times; {error}")
                pause_s = min(max(self.backoff_s * 2**attempt, error.wait_s), _LONGEST_WAIT_S)
            except ServerError as error:
                failure = error
                break
            if attempt < self.retries:
                stop.wait(pause_s)
        stop.set()
        raise failure

    def _attempt(self, client: Client, body: Body) -> str:
        import httpx2

        deadline, data = time.monotonic() + self.timeout_s, bytearray()
        try:
            with client.stream("POST", f"{self.base_url}/chat/completions", json=body) as reply:
                for chunk in reply.iter_bytes():
                    data += chunk
                    if time.monotonic() > deadline:  # a server that drips bytes is slow too
                        raise TimeoutError
                    if len(data) > _LARGEST_REPLY:
                        raise _TryAgain(f"it sends more than {_LARGEST_REPLY} bytes. Correct engine.base_url.")
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            reason = one_line(str(error) or type(error).__name__)
            remedy = "Start the server, correct engine.base_url, or raise engine.timeout_s"
            raise _TryAgain(f"no answer ({reason}). {remedy} (now {self.timeout_s:g}).") from error
        text = data.decode("utf-8", "replace")
        if reply.is_success:
            return _content(text)
        status, after = reply.status_code, reply.headers.get("Retry-After", "")
        remedy = _REMEDIES.get(status, _OTHER_REMEDY).format(model=self.model)
        said = f"it answers HTTP {status}: {one_line(text)!r}. {remedy}"
        if status in _BUSY or status >= 500:
            raise _TryAgain(said, float(after) if after.isdigit() else 0.0)
        raise ServerError(f"{self.base_url}: {said}")


def _content(reply: str) -> str:
    """The answer inside a chat completion."""
    try:
        message = json.loads(reply)["choices"][0]["message"]
        # a server that marks refusals apart leaves `content` empty
        text = message["content"] if message.get("content") is not None else message["refusal"]
        if not isinstance(text, str):
            raise TypeError
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise _TryAgain(
            f"its reply is no chat completion ({one_line(reply)!r}). Is engine.base_url an OpenAI-compatible server?"
        ) from error
    return text.strip()


def data_uri(picture: Picture) -> str:
    """The picture as a PNG inside a URI: no file of ours is ever reachable by the server."""
    buffer = io.BytesIO()
    picture.open().save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
