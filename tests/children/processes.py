"""Functions and commands in child processes that may be killed, one or one a rank, without importing torch anew."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from unittest import mock

SECONDS = 600  # after which a child hangs, also on a machine with other work
PATHS = [str(folder) for folder in Path(__file__).parents[1:3]]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["children.preloaded"])
MIRAGE = "import sys; from mirage.cli import main; sys.exit(main())"


def run_children(
    target: Callable[..., None], folder: Path, ranks: int = 1, of_rank: dict[int, Any] | None = None, **settings: Any
) -> Any:
    """How `target(folder, **settings)` ended: its exit status (-9 if killed), or that of each rank.

    Several ranks are also given `rank` and `port`, and what `of_rank` says of each.
    """
    with socket.socket() as sample:
        sample.bind(("127.0.0.1", 0))
        port = sample.getsockname()[1]
    each = [{"rank": rank, "port": port, **(of_rank or {}).get(rank, {})} for rank in range(ranks)]
    each = [{**settings, **(one if ranks > 1 else {})} for one in each]
    children: list[Any] = [CONTEXT.Process(target=target, args=(folder,), kwargs=one) for one in each]
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join([*PATHS, os.environ.get("PYTHONPATH", "")])):
        for child in children:  # the first one starts the server that imports torch
            child.start()
    for child in children:
        child.join(SECONDS)
    hung = [child for child in children if child.is_alive()]
    for child in hung:
        child.kill()
    assert not hung, f"no end after {SECONDS} s: {said(folder)[-3000:]}"
    codes = [child.exitcode for child in children]
    return codes[0] if ranks == 1 else codes


def run_command(
    *arguments: str, code: str = MIRAGE, cwd: Path | None = None, ranks: int = 1, **environment: str
) -> CompletedProcess[str]:
    """How `python -c CODE ARGUMENTS` ended, by default `mirage ARGUMENTS`, and what its ranks printed."""
    settings = {"code": code, "arguments": arguments, "cwd": cwd or Path.cwd(), "given": {**os.environ, **environment}}
    with tempfile.TemporaryDirectory() as folder:
        ended = run_children(command, Path(folder), ranks, **settings)
        codes = [ended] if ranks == 1 else ended
        failed = max(range(ranks), key=lambda rank: codes[rank] != 0)
        printed = (Path(folder) / "stdout").read_text()
        return CompletedProcess(arguments, codes[failed], printed, said(Path(folder), failed))


def command(
    folder: Path,
    code: str,
    arguments: tuple[str, ...],
    cwd: Path,
    given: dict[str, str],
    rank: int | None = None,
    port: int = 0,
) -> None:
    """In the child: runs `code` as the main program."""
    os.environ.clear()
    os.environ |= given
    begin(folder, rank, port)
    os.dup2(os.open(folder / "stdout", os.O_CREAT | os.O_WRONLY | os.O_APPEND), 1)
    sys.stdout = os.fdopen(1, "w")
    os.chdir(cwd)
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<command>", "exec"), {"__name__": "__main__"})


def begin(folder: Path, rank: int | None, port: int) -> None:
    """In the child: its last words go to `folder/stderr-RANK`, and a rank finds the others at `port`."""
    folder.mkdir(parents=True, exist_ok=True)
    os.dup2(os.open(folder / f"stderr-{rank or 0}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    if rank is not None:
        os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def said(folder: Path, rank: int = 0) -> str:
    """The last words of a child."""
    return (folder / f"stderr-{rank}").read_text()
