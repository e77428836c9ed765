"""The same probes, asked of a server that speaks OpenAI's chat protocol (vLLM, `transformers serve` and others)."""

from __future__ import annotations

import base64
import io
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from http.client import HTTPException, HTTPMessage
from typing import IO, Any
from urllib.parse import urlsplit

from mirage.evaluation.generation import Engine, OnAnswer
from mirage.schema import Picture, Probe

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_LARGEST_REPLY = 16 * 2**20  # bytes


class ServerError(RuntimeError):
    """A server that gave no answer; the message says which, what happened and what to do."""


class _TryAgain(Exception):
    """An attempt failed in a way that may pass."""

    def __init__(self, what: str, wait_s: float = 0.0) -> None:
        super().__init__(what)
        self.wait_s = wait_s


class _NotAsked(Exception):
    """Another request has failed, so this one was not made (any more)."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host: it is an error here."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


class OpenAIEngine(Engine):
    """Answers by an OpenAI-compatible server, at temperature 0, several requests at a time.

    Args:
        base_url: Where the server is, such as `http://127.0.0.1:8000/v1`; without a path, `/v1` is meant.
        model: The model's name on the server.
        max_new_tokens: Longest answer, in tokens.
        concurrency: How many requests are under way at the same time.
        timeout_s: Seconds that one request may take.
        retries: How often a request is repeated after a time-out, a lost connection, HTTP 429 or HTTP 5xx, or a reply
            that cannot be read; the wait before it doubles each time.
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
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"engine.base_url is {base_url!r}: it must look like http://127.0.0.1:8000/v1.")
        if parts.username is not None or parts.password is not None:
            raise ValueError("engine.base_url holds a user name or password: put the key into engine.api_key_env.")
        for name, value, least in (("max_new_tokens", max_new_tokens, 1), ("concurrency", concurrency, 1)):
            if value < least:
                raise ValueError(f"engine.{name} is {value}: it must be at least {least}.")
        if not timeout_s > 0 or retries < 0:
            raise ValueError(
                f"engine.timeout_s is {timeout_s} and engine.retries is {retries}: "
                "the first must be above 0, the second at least 0."
            )
        self.base_url = base_url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")
        self.model, self.max_new_tokens = model, max_new_tokens
        self.concurrency, self.timeout_s, self.retries, self.api_key_env = concurrency, timeout_s, retries, api_key_env

    @property
    def name(self) -> str:
        return "openai"

    def settings(self) -> dict[str, Any]:
        return {
            "engine": self.name,
            "base_url": self.base_url,
            "model": self.model,
            "max_new_tokens": self.max_new_tokens,
            "temperature": 0,
        }

    def answers(self, probes: Sequence[Probe], on_answer: OnAnswer | None = None) -> list[list[str]]:
        answers = [[""] * len(probe.questions) for probe in probes]
        headers = self._headers()
        stop = threading.Event()
        under_way: dict[Future[str], tuple[int, int]] = {}
        failure: BaseException | None = None

        def collect() -> None:
            nonlocal failure
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                index, shot = under_way.pop(future)
                error = future.exception()
                if error is None:
                    answers[index][shot] = future.result()
                    if on_answer is not None:
                        on_answer(probes[index].id, shot, answers[index][shot])
                elif failure is None and not isinstance(error, _NotAsked):
                    failure = error

        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="mirage-openai")
        try:
            for index, shot, body in self._bodies(probes):
                if stop.is_set():
                    break
                under_way[pool.submit(self._ask, body, headers, stop)] = (index, shot)
                # a window, not all at once: only so many encoded pictures are in memory
                while len(under_way) >= 2 * self.concurrency:
                    collect()
            while under_way:  # after a failure too: what the server is answering just now is kept
                collect()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
        if failure is not None:
            raise failure
        return answers

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.api_key_env is not None:
            key = os.environ.get(self.api_key_env, "")
            if not key:
                raise ServerError(
                    f"{self.base_url}: the environment variable {self.api_key_env} holds no key. "
                    "Set it, or leave engine.api_key_env out."
                )
            headers["Authorization"] = f"Bearer {key}"
        return headers

    def _bodies(self, probes: Sequence[Probe]) -> Iterator[tuple[int, int, bytes]]:
        """Index, shot and request of every question; the shots of a probe in a row, which servers' caches like."""
        for index, probe in enumerate(probes):
            uri = data_uri(probe.image) if probe.image is not None else None
            for shot, question in enumerate(probe.questions):
                content: list[dict[str, Any]] = [{"type": "text", "text": question}]
                if uri is not None:
                    content.insert(0, {"type": "image_url", "image_url": {"url": uri}})
                body = {
                    "model": self.model,
                    "messages": [{"role": "user", "content": content}],
                    "max_tokens": self.max_new_tokens,
                    "temperature": 0,
                }
                yield index, shot, json.dumps(body).encode()

    def _ask(self, body: bytes, headers: dict[str, str], stop: threading.Event) -> str:
        """The answer to one request, retried.

        Raises:
            ServerError: If none came; then `stop` is set, and no other request is begun.
        """
        for attempt in range(self.retries + 1):
            if stop.is_set():
                raise _NotAsked
            try:
                return self._attempt(body, headers)
            except ServerError:
                stop.set()
                raise
            except _TryAgain as error:
                if attempt == self.retries:
                    stop.set()
                    times = f"{attempt + 1} times" if attempt else "once"
                    raise ServerError(f"{self.base_url}: asked {times}; {error}") from error
                pause_s = min(max(_FIRST_WAIT_S * 2**attempt, error.wait_s), _LONGEST_WAIT_S)
            stop.wait(pause_s)
        raise AssertionError("the last attempt returns or raises")

    def _attempt(self, body: bytes, headers: dict[str, str]) -> str:
        url = f"{self.base_url}/chat/completions"
        request = urllib.request.Request(url, data=body, headers=headers, method="POST")
        opener = urllib.request.build_opener(_NoRedirects)
        try:
            with opener.open(request, timeout=self.timeout_s) as reply:
                text = _read(reply, time.monotonic() + self.timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error)
        except (TimeoutError, urllib.error.URLError, HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise _TryAgain(
                    f"no answer within {self.timeout_s:g} s. Raise engine.timeout_s or lower engine.concurrency."
                ) from error
            raise _TryAgain(
                f"no connection ({reason or type(reason).__name__}). Start the server or correct engine.base_url."
            ) from error
        return _content(text)

    def _refused(self, error: urllib.error.HTTPError) -> None:
        """Says what an HTTP status means.

        Raises:
            _TryAgain: If it may pass.
            ServerError: If it will not.
        """
        try:
            detail = error.read(2000).decode("utf-8", "replace")
        except (OSError, HTTPException):
            detail = ""
        said = f"HTTP {error.code}: {_short(detail)}"
        if error.code == 429 or error.code >= 500:
            after = error.headers.get("Retry-After", "")
            remedy = "Lower engine.concurrency." if error.code == 429 else "See the server's own log."
            raise _TryAgain(f"it answers {said}. {remedy}", float(after) if after.isdigit() else 0.0) from error
        if error.code in (401, 403):
            remedy = "Set engine.api_key_env to the name of the variable that holds a valid key."
        elif error.code == 404:
            remedy = f"Correct engine.base_url, or engine.model (now {self.model!r})."
        elif 300 <= error.code < 400:
            remedy = "Redirects are not followed: give the final address as engine.base_url."
        else:
            remedy = f"The request is not accepted: check engine.model (now {self.model!r}) and the server's limits."
        raise ServerError(f"{self.base_url}: it answers {said}. {remedy}") from error


def data_uri(picture: Picture) -> str:
    """The picture as a PNG inside a URI: no file of ours is ever reachable by the server."""
    buffer = io.BytesIO()
    picture.open().save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _read(reply: Any, deadline: float) -> str:
    """The whole reply, within time (a server that drips bytes is slow too) and size."""
    data = bytearray()
    while chunk := reply.read1(65536):
        data += chunk
        if time.monotonic() > deadline:
            raise TimeoutError
        if len(data) > _LARGEST_REPLY:
            raise _TryAgain(f"it sends more than {_LARGEST_REPLY} bytes. Correct engine.base_url.")
    return data.decode("utf-8", "replace")


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
            f"its reply is no chat completion ({_short(reply)}). Is engine.base_url an OpenAI-compatible server?"
        ) from error
    return text.strip()


def _short(text: str, limit: int = 160) -> str:
    line = " ".join(text.split())
    return repr(line[:limit] + ("..." if len(line) > limit else ""))
