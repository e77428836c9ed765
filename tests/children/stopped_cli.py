"""The command line in a process that signals itself: `SIGNAL=SIGTERM:answer:37:1 python stopped_cli.py fit ...`.

There rank 1 receives SIGTERM when it has kept its 37th answer; `batch:2` is after the second batch of training, `import`
when Lightning is imported. The other ranks answer so slowly that they would not end by themselves. The file that SIGNALLED
names holds when the signal was sent, and when the command came to its end on rank 0.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

NAME, PLACE, VISIT, RANK = os.environ["SIGNAL"].split(":")
MINE = os.environ.get("LOCAL_RANK", "0") == RANK


def note_time() -> None:
    with Path(os.environ["SIGNALLED"]).open("a") as file:
        file.write(f"{time.time()}\n")


def send() -> None:
    note_time()
    os.kill(os.getpid(), getattr(signal, NAME))


def watched(function: Callable[..., Any]) -> Any:
    """The function; this process is signalled after the visit that is named, and other ranks are slow."""
    visits = count(1)

    def replaced(*arguments: Any) -> Any:
        done = function(*arguments)
        if not MINE:
            time.sleep(1)
        elif next(visits) == int(VISIT):
            send()
        return done

    return replaced


class Importing:
    """Signals this process when Lightning is imported."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name == "lightning":
            send()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
    if PLACE == "import":
        sys.meta_path.insert(0, Importing())  # type: ignore[arg-type]
    elif PLACE == "answer":
        from mirage.evaluation.run.records import AnswerLog

        AnswerLog.add = watched(AnswerLog.add)  # type: ignore[method-assign]
    else:
        from mirage.methods.base import AlignmentModule

        AlignmentModule.training_step = watched(AlignmentModule.training_step)  # type: ignore[method-assign]
    from mirage.cli import main

    status = main()
    if os.environ.get("LOCAL_RANK", "0") == "0":
        note_time()
    sys.exit(status)
