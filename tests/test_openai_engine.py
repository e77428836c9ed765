"""The engine that asks a server: the same answers from a real one, and one clear sentence from a bad one."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from local_server import Body, Reply, Serve, asked, completion
from PIL import Image

from mirage.cli import main
from mirage.data.sources.mini import Mini
from mirage.evaluation.generate.huggingface import HuggingFaceEngine
from mirage.evaluation.generate.openai import OpenAIEngine, ServerError
from mirage.evaluation.run.records import read_records
from mirage.mini.questions import rewrites
from mirage.models.load import load_model
from mirage.models.pretrained import resolve_pretrained
from mirage.models.processor import load_processor
from mirage.schema import EvalSample

pytestmark = pytest.mark.slow

SERVE_NEEDS = ("fastapi", "uvicorn", "openai", "pydantic", "starlette", "accelerate")


class Painted:
    """A picture of one colour, that counts how often it is opened."""

    def __init__(self, shade: int) -> None:
        self.shade, self.opened = shade, 0

    @property
    def name(self) -> str:
        return f"shade {self.shade}"

    def open(self) -> Image.Image:
        self.opened += 1
        return Image.new("RGB", (30, 20), (self.shade, 255 - self.shade, 90))


def samples(count: int, shots: int = 2) -> list[EvalSample]:
    return [
        EvalSample(
            id=f"p{k}", source="test", image=Painted(20 * k) if k % 3 else None, question=f"Question {k}.",
            unsafe=False, rewrites=tuple(f"What is question {k}, shot {shot}?" for shot in range(1, shots + 1)),
        )
        for k in range(count)
    ]  # fmt: skip


def engine(url: str, **changed: Any) -> OpenAIEngine:
    settings = {"timeout_s": 5.0, "retries": 2, "backoff_s": 0.01, "concurrency": 4, **changed}
    return OpenAIEngine(url, "some-model", **settings)


def test_each_question_gets_its_answer_whatever_comes_first(serve: Serve) -> None:
    def answer(body: Body) -> Reply:
        time.sleep(0.03 * (hash(asked(body)) % 3))
        return completion(f" about: {asked(body)}\n")

    server, asking, heard = serve(answer), samples(7), {}
    answers = engine(server.url, concurrency=3, max_new_tokens=17).answers(
        asking, lambda id, shot, text: heard.__setitem__((id, shot), text)
    )
    assert answers == [[f"about: {question}" for question in item.questions] for item in asking]
    assert heard == {(f"p{k}", shot): text for k, own in enumerate(answers) for shot, text in enumerate(own)}
    assert 1 < server.most <= 3
    assert all(item.image is None or item.image.opened == 1 for item in asking)  # type: ignore[attr-defined]
    for body in server.bodies:
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("some-model", 0, 17)
        content, number = body["messages"][0]["content"], int(re.search(r"uestion (\d)", asked(body))[1])  # type: ignore[index]
        assert len(content) == 2 if number % 3 else isinstance(content, str)
        if number % 3:
            head, data = content[0]["image_url"]["url"].split(",")
            assert head == "data:image/png;base64"
            picture = Image.open(io.BytesIO(base64.b64decode(data)))
            assert picture.format == "PNG" and picture.getpixel((5, 5)) == (20 * number, 255 - 20 * number, 90)


def test_a_busy_or_broken_server_is_asked_again_after_waits_that_double(serve: Serve) -> None:
    refusals = iter([(500, "oops", {}), (503, "", {}), (200, "{", {}), (429, "slow down", {"Retry-After": "1"})])
    asked_at: list[float] = []

    def answer(body: Body) -> Reply:
        asked_at.append(time.monotonic())
        return next(refusals, completion("yes"))

    asker = engine(serve(answer).url, retries=4, backoff_s=0.05, concurrency=1)
    assert asker.answers(samples(2)) == [["yes"] * 3] * 2 and len(asked_at) == 6 + 4
    waited = [after - before for before, after in pairwise(asked_at[:5])]
    for seconds, least in zip(waited, [0.05, 0.1, 0.2, 1.0], strict=True):
        assert least <= seconds < least + 0.5


def test_prompts_are_completed_with_temperature_and_seed_and_a_refusal_marked_apart_is_the_answer(
    serve: Serve,
) -> None:
    server = serve(lambda body: completion(None, refusal=f"{asked(body)}/{body['seed']}"))
    prompts = [f"p{number}" for number in range(6)]
    assert engine(server.url).complete(prompts, temperature=0.7, seed=5) == [f"{prompt}/5" for prompt in prompts]
    assert {(body["temperature"], body["max_tokens"]) for body in server.bodies} == {(0.7, 64)}


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ((200, "<html>Welcome to the router</html>", {}), r"asked 3 times; its reply is no chat .*router.*\?"),
        ((200, '{"choices": []}', {}), r"asked 3 times; its reply is no chat completion .*\?"),
        ((200, "[" * 100_000, {}), r"asked 3 times; its reply is no chat completion .*\?"),
        ((200, '{"choices": [{"message": {"content": 7}}]}', {}), r"no chat completion"),
        ((500, "out of memory", {}), r"asked 3 times; it answers HTTP 500: 'out of memory'\. See the"),
        ((429, "", {}), r"asked 3 times; it answers HTTP 429: ''\. Lower engine\.concurrency\."),
        ((401, "bad key", {}), r"it answers HTTP 401: 'bad key'\. Set engine\.api_key_env"),
        ((404, "no model", {}), r"it answers HTTP 404: 'no model'\. Correct engine\.base_url, or engine\.model"),
        ((422, "too long", {}), r"it answers HTTP 422: 'too long'\. See the server's own log; check engine\.model"),
        ((302, "", {"Location": "http://127.0.0.1:9/v1"}), r"engine\.base_url \(redirects are not followed\)"),
    ],
)  # fmt: skip
def test_a_server_that_answers_nonsense_is_named_with_a_remedy(serve: Serve, reply: Reply, says: str) -> None:
    server = serve(lambda body: reply)
    with pytest.raises(ServerError, match=says) as caught:
        engine(server.url, concurrency=1).answers(samples(1, shots=1))
    assert str(caught.value).startswith(f"{server.url}/v1: ") and "\n" not in str(caught.value)
    assert len(server.bodies) == (3 if "3 times" in says or "no chat" in says else 1)


def test_a_server_that_is_down_is_said_to_be() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ServerError, match=rf"{url}/v1: asked 3 times; no answer \(.*refused.*\)\. Start the server"):
        engine(url).answers(samples(3))


@pytest.mark.parametrize("drip", [b"", b" "])
def test_a_slow_server_is_left_after_the_time_out(drip: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_drip, args=(listener, drip), daemon=True).start()
        started = time.monotonic()
        with pytest.raises(ServerError, match=r"asked 2 times; no answer .*raise engine\.timeout_s \(now 0\.3\)"):
            address = f"http://127.0.0.1:{listener.getsockname()[1]}"
            engine(address, timeout_s=0.3, retries=1).answers(samples(1, shots=0))
        assert time.monotonic() - started < 2.5


def _drip(listener: socket.socket, drip: bytes) -> None:
    """A byte now and then: every single read is in time, the reply never is."""
    connections = []
    listener.settimeout(0.05)
    while listener.fileno() >= 0:
        with suppress(OSError):
            connections.append(listener.accept()[0])
            connections[-1].sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        for connection in connections:
            with suppress(OSError):
                connection.sendall(drip)


def test_what_was_answered_before_a_failure_is_kept(serve: Serve) -> None:
    def answer(body: Body) -> Reply:
        return (400, "cannot", {}) if "question 4, shot 1" in asked(body) else completion("fine")

    server, kept = serve(answer), {}
    with pytest.raises(ServerError, match="HTTP 400"):
        engine(server.url, concurrency=2).answers(
            samples(40), lambda id, shot, text: kept.__setitem__((id, shot), text)
        )
    assert {(f"p{k}", shot) for k in range(4) for shot in range(3)} <= set(kept)
    assert len(server.bodies) < 30  # the rest was not asked any more
    assert set(kept.values()) == {"fine"}


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(lambda body: completion("yes"))
    keyed = engine(server.url, api_key_env="MIRAGE_TEST_KEY")
    for unusable in ("", "secret\nkey", "secret\u00e9"):
        monkeypatch.setenv("MIRAGE_TEST_KEY", unusable)
        with pytest.raises(ServerError, match="the environment variable MIRAGE_TEST_KEY holds no key") as caught:
            keyed.answers(samples(1))
        assert "secret" not in str(caught.value)
    assert server.bodies == []
    monkeypatch.setenv("MIRAGE_TEST_KEY", "abc123\n")
    keyed.answers(samples(1))
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer abc123"}
    assert "abc123" not in json.dumps(keyed.settings())
    engine(server.url).answers(samples(1))
    assert "Authorization" not in server.headers[-1]


def test_bad_settings_are_refused() -> None:
    urls = ("127.0.0.1:8000", "file:///etc/hosts", "http://user:secret@127.0.0.1:8000/v1")
    zero, negative = ("concurrency", "max_new_tokens", "timeout_s"), ("retries", "backoff_s")
    bad = [("base_url", url) for url in urls] + [(name, 0) for name in zero] + [(name, -1) for name in negative]
    for name, value in (*bad, ("timeout_s", float("nan"))):
        with pytest.raises(ValueError, match=rf"engine\.{name}") as caught:
            OpenAIEngine(**{"base_url": "http://127.0.0.1:8000/v1", "model": "m", name: value})
        assert "secret" not in str(caught.value)
    for url, meant in {"http://127.0.0.1:1/": "http://127.0.0.1:1/v1", "https://h/own/v2/": "https://h/own/v2"}.items():
        assert OpenAIEngine(url, "m").settings()["base_url"] == meant


@pytest.fixture(scope="module")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """`transformers serve` with the mini checkpoint on a port that the system chose: its address, and the folder."""
    missing = [name for name in SERVE_NEEDS if find_spec(name) is None]
    if missing:
        pytest.skip(f"`transformers serve` needs {', '.join(missing)}: install the project's dev extra")
    package = resolve_pretrained("package:mirage.mini/checkpoint")
    folder = Path(shutil.copytree(package, tmp_path_factory.mktemp("served") / "mini"))
    log = folder.parent / "log"
    # a folder is a model name like any other to it; offline, so that nothing is looked up elsewhere
    command = [
        sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", str(folder),
        "--host", "127.0.0.1", "--port", "0", "--device", "cpu", "--dtype", "float32",
    ]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(folder.parent / "hub")}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"running on (http://127\.0\.0\.1:[1-9]\d*)", log.read_text(errors="replace"))):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")
            time.sleep(0.1)
        yield found[1], folder
    finally:
        process.kill()
        process.wait()


def test_a_real_server_answers_as_the_model_itself(real_server: tuple[str, Path]) -> None:
    url, folder = real_server
    plain = Mini().eval_samples("benign")[:6]
    asking = [replace(item, rewrites=rewrites(item.question, "what", 2)) for item in plain]
    heard: list[str] = []
    served = OpenAIEngine(url, str(folder), max_new_tokens=24, concurrency=3, timeout_s=60.0).answers(
        asking, lambda id, shot, text: heard.append(text)
    )
    own = HuggingFaceEngine(load_model(str(folder)), load_processor(str(folder)), max_new_tokens=24, batch_size=32)
    assert served == own.answers(asking)
    assert len({text for answers in served for text in answers}) > 3 and len(heard) == 18
    with pytest.raises(ServerError, match=r"HTTP 400: .*another-model.*check engine\.model \(now 'another-model'\)"):
        OpenAIEngine(url, "another-model", retries=0).answers(samples(1))


def test_a_run_may_ask_a_real_server_by_its_config(real_server: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = real_server
    served = {"class_path": "OpenAIEngine", "init_args": {"base_url": url, "model": str(folder), "max_new_tokens": 12}}

    def validate(name: str, engine: dict[str, Any] | None) -> list[str]:
        attack = {"class_path": "Rewrite", "init_args": {"word": "what's", "shots": 1}}
        asking = {"eval_set": "unsafe", "attack": attack, "judge": {"class_path": "Exact"}, "max_new_tokens": 12}
        config = {
            "model": {"class_path": "MixedSFT", "init_args": {"pretrained": "package:mirage.mini/checkpoint"}},
            "data": {"source": {"class_path": "Mini", "init_args": {"num_eval": 3}}, "num_workers": 0},
            "trainer": {
                "default_root_dir": str(tmp_path / name), "accelerator": "cpu", "enable_progress_bar": False,
                "callbacks": [{"class_path": "OneWordAttack", "init_args": {**asking, "engine": engine}}],
            },
        }  # fmt: skip
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        assert main(["validate", "--config", str(tmp_path / "config.yaml")]) == 0
        run = tmp_path / name / "validate"
        unsafe = json.loads((run / "results.json").read_text())["unsafe"]
        assert unsafe["generation"]["engine"] == ("openai" if engine else "hf") and unsafe["after"]["n"] == 3
        return [record.answer for record in read_records(run / "records" / "unsafe.jsonl")[1]]

    assert validate("served", served) == validate("own", None)
