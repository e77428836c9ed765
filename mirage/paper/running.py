"""Runs the rows of the paper's table, each in a process of its own, and says what became of them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from mirage.atomic import write_text
from mirage.paper.plan import Row, missing
from mirage.text import first_names


def run_rows(rows: Sequence[Row], models: Path, data: Path, out: Path) -> dict[str, str]:
    """Runs what is not finished, and returns for each row that is not then why, in a sentence.

    A row goes on where it stopped. Its config is `out`/configs/<row>.yaml and what it prints `out`/logs/<row>.log.

    Raises:
        SystemExit: After SIGTERM or Ctrl-C, once the row that ran has written its checkpoint.
    """
    failed = {}
    for at, row in enumerate(rows, start=1):
        file, text = out / "configs" / f"{row.name}.yaml", yaml.safe_dump(row.config, sort_keys=False, width=110)
        done, log = row.finished(), out / "logs" / f"{row.name}.log"
        before = file.read_text(encoding="utf-8") if file.is_file() else text
        print(f"[{at}/{len(rows)}] {row.name}: {'finished' if done else f'{row.command[0]}, {log}'}", flush=True)
        if done and before != text:
            failed[row.name] = f"it was finished with other settings than now, those of {file}. Choose another --out."
        elif not done and (absent := missing([row], models, data)):
            failed[row.name] = f"missing: {first_names([*map(str, absent)], 3)}. --dry-run says where to get them."
        elif not done:
            write_text(file, text)
            command, *options = row.command
            status, last = call([command, "--config", str(file), *options], log)
            if not row.finished():
                failed[row.name] = f"{last or 'it said nothing'} (exit status {status}, {log})"
        if row.name in failed:
            print(f"{row.name}: {failed[row.name]}", file=sys.stderr, flush=True)
    return failed


def call(arguments: Sequence[str], log: Path) -> tuple[int, str]:
    """Runs mirage with its output at the end of `log`; its exit status, and its last sentence about an error or line.

    Raises:
        SystemExit: With 130 or 143 after Ctrl-C or SIGTERM, which the process is given to end by itself.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    received: list[int] = []
    with log.open("a+", encoding="utf-8", errors="replace") as file:
        start = file.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "mirage", *arguments], stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )

        def stop(number: int, _: object) -> None:
            received.append(number)
            process.terminate()  # again after Ctrl-C, which reached it too: it takes that for one

        handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            status = process.wait()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        file.seek(start)
        lines = [line.strip() for line in file if line.strip()]
    if received:
        print("mirage: stopped. The same command goes on.", file=sys.stderr)
        raise SystemExit(128 + received[0])
    said = [line.removeprefix("mirage: ") for line in lines if line.startswith("mirage: ")] or lines
    return status, said[-1] if said else ""
