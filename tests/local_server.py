"""A small server with OpenAI's chat protocol; the test decides its answers (fixture `serve`)."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
Reply = tuple[int, str, dict[str, str]]  # status, text, headers
Answer = Callable[[Body], Reply]


def completion(text: str | None, **others: Any) -> Reply:
    message = {"role": "assistant", "content": text, **others}
    return 200, json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}), {}


def asked(body: Body) -> str:
    """The question inside a request."""
    (message,) = body["messages"]
    content = message["content"]
    return str(content if isinstance(content, str) else content[-1]["text"])


class LocalServer(ThreadingHTTPServer):
    """Answers as `answer` says, which a test may change at any time, and keeps every request."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.bodies: list[Body] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.under_way = self.most = 0
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.base_url = f"{self.url}/v1"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


Serve = Callable[[Answer], LocalServer]


class _Handler(BaseHTTPRequestHandler):
    server: LocalServer

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            server.paths.append(self.path)
            server.headers.append(dict(self.headers))
            server.under_way += 1
            server.most = max(server.most, server.under_way)
        known = self.path == "/v1/chat/completions"
        status, text, headers = server.answer(body) if known else (404, "no such path", {})
        with server.lock:
            server.under_way -= 1
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())
        except OSError:
            pass  # the client has given up

    def log_message(self, *_: Any) -> None:
        pass
