"""A run of the mini setting in a forked process that tells its parent, through a pipe, in which phase it is."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

PHASES = ("loading", "starting evaluation", "step", "save", "evaluation", "writing results")
_SAVED = re.compile(r"\.(step-\d+\.ckpt|last|best)\.\d+\.partial")
_RESULTS = re.compile(r"\.((start\.)?\w+\.jsonl|results\.json)\.\d+\.partial")  # answers kept begin with two dots
_pipe, _last = -1, ""


def now(phase: str) -> None:
    """Tells the parent that a phase begins."""
    global _last
    if _pipe >= 0 and phase != _last:
        _last = phase
        os.write(_pipe, phase.encode() + b"\n")


class Phases(Callback):
    """The phases of a fit or validation, and which examples each batch has had, with its loss.

    Args:
        order: Where the examples are listed, one file a rank.
    """

    def __init__(self, order: str) -> None:
        self.order = order

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        now("starting evaluation")

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        now("step")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        ids = [id for side in (batch.unsafe, batch.retain) if side is not None for id in side.example_ids]
        line = [trainer.current_epoch, batch_idx, ids, outputs["loss"].item().hex()]
        with open(f"{self.order}-{trainer.global_rank}.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        now("evaluation")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        now("writing results")  # which comes next

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        now("writing results")


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    """Files that are being written, out of Python's own audit events."""
    if event == "open" and isinstance(arguments[0], str) and arguments[0].endswith(".partial"):
        name = os.path.basename(arguments[0])
        if _SAVED.fullmatch(name) or _RESULTS.fullmatch(name):
            _heard.before = _last  # type: ignore[attr-defined]
            now("save" if _SAVED.fullmatch(name) else "writing results")
    elif event == "os.rename" and str(arguments[0]).endswith(".partial") and getattr(_heard, "before", ""):
        now(_heard.before)  # type: ignore[attr-defined]
        _heard.before = ""  # type: ignore[attr-defined]


def run(arguments: list[str], pipe: int, log: Path, rank: int, ranks: int, port: int) -> None:
    """In the child of a fork: runs one command of mirage and ends the process with its status."""
    global _pipe
    status = 1
    try:
        for descriptor in (1, 2):
            os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND), descriptor)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if ranks > 1:
            os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(ranks)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        _pipe = pipe
        now("loading")
        sys.addaudithook(_heard)
        from mirage.cli import main

        status = main(arguments)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
