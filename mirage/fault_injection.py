"""Named places where a test can kill this process or fill its disk. Nothing happens unless MIRAGE_FAULT is set."""

from __future__ import annotations

import errno
import os
import re
import signal

FAULT_POINTS = {
    "write.before_first_byte": "the sibling file is open and empty",
    "write.after_fsync": "the sibling file is complete and on the disk, not yet in place",
    "write.after_rename": "the new file is in place, its folder not yet on the disk",
    "checkpoint.after_half": "half of the tensors of a checkpoint are written",
    "share.written": "this rank's share of split weights is on the disk, nothing else of the checkpoint need be",
    "checkpoint.before_last": "the checkpoint is in place, `last` still names the one before it",
}

_ARMED = re.compile(r"(?P<name>[\w.]+)(:(?P<end>[^@=]+))?(@(?P<visit>\d+))?(=(?P<error>E\w+))?")
_visits: dict[str, int] = {}


def fault_point(name: str, path: str | os.PathLike[str] = "") -> None:
    """Kills this process or raises an OSError if MIRAGE_FAULT names this place; otherwise does nothing.

    `MIRAGE_FAULT=NAME[:END][@VISIT][=ERRNO]`, such as `write.after_fsync:.ckpt@2` (killed in the second checkpoint) or
    `checkpoint.after_half=ENOSPC`. END is how `path` ends, VISIT counts matching visits from 1; without it, every one.
    """
    armed = _ARMED.fullmatch(os.environ.get("MIRAGE_FAULT", ""))
    if armed is None or armed["name"] != name or not os.fspath(path).endswith(armed["end"] or ""):
        return
    _visits[armed[0]] = _visits.get(armed[0], 0) + 1
    if armed["visit"] and _visits[armed[0]] != int(armed["visit"]):
        return
    if armed["error"]:
        number = getattr(errno, armed["error"])
        raise OSError(number, os.strerror(number), os.fspath(path))
    os.kill(os.getpid(), signal.SIGKILL)
