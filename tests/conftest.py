"""Fixtures for every test: no network, process state restored afterwards, local servers, and the folder of the real kit."""

from __future__ import annotations

import gc
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from local_server import Answer, LocalServer, Serve

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported anywhere
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads on busy cores are several times slower

# the same examples every time, also where the machine is busy
settings.register_profile("suite", deadline=None, derandomize=True, database=None)
settings.load_profile("suite")

gc.disable()  # as in `mirage.cli`: what modules consist of stays, and looking through it takes seconds


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test comes first, so that no worker waits for it at the end."""
    items.sort(key=lambda item: item.path.name != "test_tutorial.py")


def pytest_collection_finish() -> None:
    """All modules are imported."""
    gc.freeze()
    gc.enable()


@pytest.fixture
def real_kit() -> Path:
    """The folder that holds `smol-llava` and `vlguard`; the test is skipped, saying so, where there is none."""
    folder = os.environ.get("MIRAGE_REAL_KIT")
    if not folder:
        pytest.skip("needs the real kit: set MIRAGE_REAL_KIT to its folder")
    return Path(folder)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Environment, signal handlers and random numbers are as they were."""
    environment, state = dict(os.environ), random.getstate()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    os.environ.clear()
    os.environ.update(environment)
    random.setstate(state)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts local servers, and stops them at the end."""
    started: list[LocalServer] = []

    def start(answer: Answer) -> LocalServer:
        started.append(LocalServer(answer))
        return started[-1]

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint of an architecture, built once a session."""
    import tiny_models

    root = tmp_path_factory.mktemp("checkpoints")
    return lambda kind: root / kind if (root / kind).exists() else tiny_models.build(kind, root / kind)
