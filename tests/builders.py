"""Small objects that several test files need."""

from __future__ import annotations

from typing import Any

from mirage.schema import Record, Verdict


def record_of(id: str, shot: int = 0, verdict: Verdict = Verdict.REFUSED, **fields: Any) -> Record:
    """One judged answer; what is not given is made up."""
    made_up = {"eval_set": "unsafe", "question": "?", "answer": "!", "judge": "dice", "unsafe": True}
    return Record(id=id, shot=shot, verdict=verdict, **{**made_up, **fields})
