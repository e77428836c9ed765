"""The engine that asks a server which speaks OpenAI's chat protocol (vLLM, `transformers serve` and others)."""

from __future__ import annotations

import base64
import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from mirage.evaluation.generate.base import Engine, OnAnswer, check_at_least_one
from mirage.schema import EvalSample, Picture

if TYPE_CHECKING:
    from httpx2 import Client

Key = TypeVar("Key")
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

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        max_new_tokens: int = 64,
        concurrency: int = 8,
        timeout_s: float = 120.0,
        retries: int = 4,
        backoff_s: float = 0.5,
        api_key_env: str | None = None,
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
            raise ValueError(
                "engine.base_url must look like http://127.0.0.1:8000/v1, without a name, password or query: a key "
                "goes into engine.api_key_env."
            )
        check_at_least_one("engine.", max_new_tokens=max_new_tokens, concurrency=concurrency)
        if not timeout_s > 0 or retries < 0 or not backoff_s >= 0:
            raise ValueError(
                f"engine.timeout_s is {timeout_s}, engine.retries is {retries} and engine.backoff_s is {backoff_s}: "
                "the first must be above 0, the others at least 0."
            )
        self.base_url = base_url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")
        self.model, self.max_new_tokens, self.concurrency = model, max_new_tokens, concurrency
        self.timeout_s, self.retries, self.backoff_s, self.api_key_env = timeout_s, retries, backoff_s, api_key_env

    def settings(self) -> dict[str, Any]:
        served = {"engine": self.name, "base_url": self.base_url, "model": self.model}
        return served | {"max_new_tokens": self.max_new_tokens, "temperature": 0}

    def answers(self, samples: Sequence[EvalSample], on_answer: OnAnswer | None = None) -> list[list[str]]:
        answers = [[""] * len(sample.questions) for sample in samples]

        def keep(place: tuple[int, int], text: str) -> None:
            index, shot = place
            answers[index][shot] = text
            if on_answer is not None:
                on_answer(samples[index].id, shot, text)

        self._replies(self._questions(samples), keep)
        return answers

    def complete(self, prompts: Sequence[str], *, temperature: float, seed: int) -> list[str]:
        answers = [""] * len(prompts)
        bodies = ((place, self._body(prompt, temperature) | {"seed": seed}) for place, prompt in enumerate(prompts))
        self._replies(bodies, answers.__setitem__)
        return answers

    def _questions(self, samples: Sequence[EvalSample]) -> Iterator[tuple[tuple[int, int], Body]]:
        """(Index, shot) and request of every question; the shots of a sample in a row, which servers' caches like."""
        for index, sample in enumerate(samples):
            url = data_uri(sample.image) if sample.image is not None else None
            picture = [{"type": "image_url", "image_url": {"url": url}}] if url else []
            for shot, question in enumerate(sample.questions):
                yield (index, shot), self._body([*picture, {"type": "text", "text": question}], 0)

    def _body(self, content: Any, temperature: float) -> Body:
        asked = {"model": self.model, "messages": [{"role": "user", "content": content}]}
        return asked | {"max_tokens": self.max_new_tokens, "temperature": temperature}

    def _replies(self, bodies: Iterable[tuple[Key, Body]], on_reply: Callable[[Key, str], None]) -> None:
        """Asks all `bodies` and gives each reply to `on_reply`, under its key, as soon as it is there.

        `on_reply` is called from the calling thread. Bodies are taken from the iterator as they are needed.

        Raises:
            ServerError: If one got no answer. No other request is begun then; those under way are still waited for.
        """
        import httpx2

        under_way: dict[Future[str], Key] = {}
        failures: list[BaseException] = []
        stop = threading.Event()

        def collect() -> None:
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                key, error = under_way.pop(future), future.exception()
                if error is None:
                    on_reply(key, future.result())
                elif not isinstance(error, CancelledError):
                    failures.append(error)

        # a redirect, which would carry the key to another host, is not followed
        with (
            httpx2.Client(headers=self._headers(), timeout=self.timeout_s, follow_redirects=False) as client,
            ThreadPoolExecutor(self.concurrency, thread_name_prefix="mirage-server") as pool,
        ):
            try:
                for key, body in bodies:
                    if stop.is_set():
                        break
                    under_way[pool.submit(self._ask, client, body, stop)] = key
                    # a window, not all at once: only so many encoded pictures are in memory
                    while len(under_way) >= 2 * self.concurrency:
                        collect()
                while under_way:  # after a failure too: what the server is answering just now is kept
                    collect()
            finally:
                stop.set()
        if failures:
            raise failures[0]

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
            reason = _short(str(error) or type(error).__name__)
            remedy = "Start the server, correct engine.base_url, or raise engine.timeout_s"
            raise _TryAgain(f"no answer ({reason}). {remedy} (now {self.timeout_s:g}).") from error
        text = data.decode("utf-8", "replace")
        if reply.is_success:
            return _content(text)
        status, after = reply.status_code, reply.headers.get("Retry-After", "")
        remedy = _REMEDIES.get(status, _OTHER_REMEDY).format(model=self.model)
        said = f"it answers HTTP {status}: {_short(text)!r}. {remedy}"
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
            f"its reply is no chat completion ({_short(reply)!r}). Is engine.base_url an OpenAI-compatible server?"
        ) from error
    return text.strip()


def _short(text: str, limit: int = 160) -> str:
    line = " ".join(text.split())
    return line[:limit] + ("..." if len(line) > limit else "")


def data_uri(picture: Picture) -> str:
    """The picture as a PNG inside a URI: no file of ours is ever reachable by the server."""
    buffer = io.BytesIO()
    picture.open().save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
