"""A server that speaks OpenAI's chat protocol (vLLM, `transformers serve` and others): the only code that asks one.

Engines say what is asked; here stand the connection, time-outs, repeats, several requests at a time, and what is said
when a server is down, slow, refuses, or answers nonsense.
"""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from http.client import HTTPException, HTTPMessage
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

Key = TypeVar("Key", bound=Hashable)
Body = dict[str, Any]

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_LARGEST_REPLY = 16 * 2**20  # bytes
_BUSY = frozenset({408, 409, 425, 429})  # besides 5xx: these pass as well


class ServerError(ValueError):
    """A server that gave no answer: one sentence says which, what happened and what to do."""


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


class ChatServer:
    """One model behind one address. Nothing is asked before `replies`.

    Args:
        base_url: Where the server is, such as `http://127.0.0.1:8000/v1`; without a path, `/v1` is meant.
        model: The model's name on the server.
        concurrency: How many requests are under way at the same time.
        timeout_s: Seconds that one request may take.
        retries: How often a request is repeated after a time-out, a lost connection, a busy server (HTTP 408, 409, 425,
            429 or 5xx), or a reply that cannot be read; the wait before it doubles each time.
        api_key_env: Name of the environment variable that holds the key, where the server wants one.

    Raises:
        ValueError: If a setting cannot be; messages name it as a setting of `engine`.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        concurrency: int,
        timeout_s: float,
        retries: int,
        api_key_env: str | None,
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"engine.base_url is {base_url!r}: it must look like http://127.0.0.1:8000/v1.")
        if parts.username is not None or parts.password is not None:
            raise ValueError("engine.base_url holds a user name or password: put the key into engine.api_key_env.")
        if concurrency < 1:
            raise ValueError(f"engine.concurrency is {concurrency}: it must be at least 1.")
        if not timeout_s > 0 or retries < 0:
            raise ValueError(
                f"engine.timeout_s is {timeout_s} and engine.retries is {retries}: "
                "the first must be above 0, the second at least 0."
            )
        self.base_url = base_url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")
        self.model = model
        self.concurrency, self.timeout_s, self.retries, self.api_key_env = concurrency, timeout_s, retries, api_key_env

    def replies(self, bodies: Iterable[tuple[Key, Body]], on_reply: Callable[[Key, str], None]) -> None:
        """Asks all `bodies` (without their `model`) and tells each reply's text, under its key, as soon as it is there.

        `on_reply` is called from the calling thread. Bodies are taken from the iterator as they are needed.

        Raises:
            ServerError: If one got no answer. No other request is begun then; those under way are still told.
        """
        headers = self._headers()
        stop = threading.Event()
        under_way: dict[Future[str], Key] = {}
        failure: BaseException | None = None

        def collect() -> None:
            nonlocal failure
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                key = under_way.pop(future)
                error = future.exception()
                if error is None:
                    on_reply(key, future.result())
                elif failure is None and not isinstance(error, _NotAsked):
                    failure = error

        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="mirage-server")
        try:
            for key, body in bodies:
                if stop.is_set():
                    break
                data = json.dumps({"model": self.model, **body}).encode()
                under_way[pool.submit(self.ask, data, headers, stop)] = key
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

    def ask(self, data: bytes, headers: dict[str, str], stop: threading.Event) -> str:
        """The text of the reply to one request, retried.

        Raises:
            ServerError: If none came; then `stop` is set, and no other request is begun.
        """
        for attempt in range(self.retries + 1):
            if stop.is_set():
                raise _NotAsked
            try:
                return self._attempt(data, headers)
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

    def _attempt(self, data: bytes, headers: dict[str, str]) -> str:
        url = f"{self.base_url}/chat/completions"
        request = urllib.request.Request(url, data=data, headers=headers, method="POST")
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
        if error.code in _BUSY or error.code >= 500:
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
