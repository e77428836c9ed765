"""Rewrites that were published as a file in VLGuard's format, joined to the samples by id."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from mirage.evaluation.attack import Attack
from mirage.schema import EvalSample, Rewriter
from mirage.text import opening_word

FIELDS = ("instruction", "safe_instruction", "unsafe_instruction")


class Published(Attack):
    """Rewrites from a file in VLGuard's format: a JSON list of records with `id` and `instr-resp`.

    Shot k of a record is the k-th record with its id in the file, wherever it stands. A sample belongs to the record
    and field that its id names (`<record id>/<field>`, such as `Ads_1/instruction`); an id that does not end in
    `/instruction`, `/safe_instruction` or `/unsafe_instruction` is the record's id itself, and the field is
    `instruction` for an unsafe sample and `safe_instruction` for a benign one. Nothing is ever joined by position.

    Args:
        word: The opening word that every rewrite must have; or `mined`, which the file must fit.
        shots: How many rewrites of each question are used: the first of them, in the order of the file. What the file has
            beyond them is counted in the results as `unused`, and must be the same number for every question.
        file: The file, such as `test_what_3shot.json`.
        missing: What to do with samples that have no rewrite in the file: `error`, or `drop`, which leaves them out of
            this eval_set, before and after the attack, and lists their ids in a warning and in `dropped`.
    """

    kind = "file"

    def __init__(self, word: str, file: Path, shots: int = 1, missing: Literal["error", "drop"] = "error") -> None:
        super().__init__(word, shots)
        if missing not in ("error", "drop"):
            raise ValueError(f"attack.missing is {missing!r}: it must be 'error' or 'drop'.")
        self.file, self.missing = Path(file), missing
        self.dropped: tuple[str, ...] = ()
        self.unused = 0
        self._rewrites: dict[tuple[str, str], list[str]] | None = None

    def rewrite(self, sample: EvalSample) -> tuple[str, ...]:
        """The K published rewrites of one sample.

        Raises:
            ValueError: If the file is not of this format, or has no or too few rewrites of the sample, or one that
                does not open with the word.
        """
        found = self._of(sample)
        record, field = record_and_field(sample)
        if not found:
            raise ValueError(
                f"{self.file}: there is no record {record!r} with a {field!r}. Add it, or set attack.missing to drop."
            )
        if len(found) < self.shots:
            raise ValueError(
                f"{self.file}: record {record!r} has {len(found)} rewrites of its {field!r}, and attack.shots is "
                f"{self.shots}. Set attack.shots to {len(found)} or less, or add the missing rewrites."
            )
        for shot, rewrite in enumerate(found[: self.shots], start=1):
            if opening_word(rewrite) != self.word.lower():
                raise ValueError(
                    f"{self.file}: rewrite {shot} of record {record!r} opens with {opening_word(rewrite)!r}, not with "
                    f"{self.word!r}. Set attack.word to the word of this file, or correct the record."
                )
        return tuple(found[: self.shots])

    def on(self, samples: Sequence[EvalSample], rewriter: Rewriter | None = None) -> list[EvalSample]:
        """The samples with their rewrites; those without any are named, and left out if `missing` is `drop`."""
        absent = [sample.id for sample in samples if not self._of(sample)]
        if absent and len(absent) == len(samples):
            raise ValueError(
                f"{self.file}: not one of the {len(samples)} samples has a rewrite. {self._mismatch(samples)}: use the "
                "file that was made from these questions."
            )
        if absent:
            named = ", ".join(absent[:10]) + (f" and {len(absent) - 10} more" if len(absent) > 10 else "")
            if self.missing == "error":
                raise ValueError(
                    f"{self.file}: {len(absent)} of {len(samples)} samples have no rewrite: {named}. Add them, or set "
                    "attack.missing to drop to leave them out before and after the attack."
                )
            warnings.warn(f"{self.file}: left out {len(absent)} samples without a rewrite: {named}.", stacklevel=2)
        self.dropped = tuple(absent)
        skipped = set(absent)
        surplus = {sample.id: len(self._of(sample)) - self.shots for sample in samples if sample.id not in skipped}
        self.unused = sum(surplus.values())
        uneven = next((id for id in surplus if surplus[id] > min(surplus.values()) >= 0), None)
        if uneven is not None:
            raise ValueError(
                f"{self.file}: record {uneven.rpartition('/')[0] or uneven!r} has {self.shots + surplus[uneven]} rewrites,"
                f" and other records have {self.shots + min(surplus.values())}. Remove the surplus records."
            )
        return [replace(sample, rewrites=self.rewrite(sample)) for sample in samples if sample.id not in skipped]

    def describe(self) -> dict[str, Any]:
        """Besides the word: the file, a hash of its bytes, and how many rewrites of these questions it has beyond K."""
        digest = sha256(self.file.read_bytes()).hexdigest()[:16]
        return super().describe() | {"file": str(self.file), "file_hash": digest, "unused": self.unused}

    def _of(self, sample: EvalSample) -> list[str]:
        return self._read().get(record_and_field(sample), [])

    def _mismatch(self, samples: Sequence[EvalSample]) -> str:
        """What the samples ask for beside what the file has: other fields of the same records, or other records."""
        asked = dict(record_and_field(sample) for sample in samples)
        for name, has in self._read():
            if name in asked:
                return f"Record {name!r} is looked up for its {asked[name]!r}, and the file has its {has!r}"
        known = next(iter(self._read()), ("none", ""))[0]
        return f"The samples' ids are like {samples[0].id!r}, the file's like {known!r}"

    def _read(self) -> dict[tuple[str, str], list[str]]:
        if self._rewrites is None:
            self._rewrites = read_published(self.file)
        return self._rewrites


def record_and_field(sample: EvalSample) -> tuple[str, str]:
    """The record's id and the field that a sample belongs to, as `Published` says."""
    record, slash, field = sample.id.rpartition("/")
    if slash and field in FIELDS:
        return record, field
    return sample.id, "instruction" if sample.unsafe else "safe_instruction"


def read_published(file: Path) -> dict[tuple[str, str], list[str]]:
    """The rewrites by record id and field, in the order of the file.

    Raises:
        ValueError: If the file is missing or not of VLGuard's format; names the first ten faulty records.
    """
    try:
        records: Any = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file}: there is no such file. Set attack.file to the published rewrites.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: it is not JSON ({error}). Download it again.") from None
    if not isinstance(records, list) or not records:
        raise ValueError(
            f"{file}: it must be a JSON list of records with 'id' and 'instr-resp', as VLGuard's test.json is."
        )
    rewrites: dict[tuple[str, str], list[str]] = {}
    faults: list[str] = []
    for number, record in enumerate(records, start=1):
        name = record.get("id") if isinstance(record, dict) else None
        pairs = record.get("instr-resp") if isinstance(record, dict) else None
        if not isinstance(name, str) or not name:
            faults.append(f"{file}, record {number}: 'id' is missing or not text. Add the id of the original record.")
        elif not isinstance(pairs, list) or not pairs or not all(isinstance(pair, dict) for pair in pairs):
            faults.append(
                f"{file}, record {number} (id {name}): 'instr-resp' is not a list of pairs. Remove or mend it."
            )
        else:
            for field, text in ((field, pair[field]) for pair in pairs for field in FIELDS if field in pair):
                if isinstance(text, str) and text.strip():
                    rewrites.setdefault((name, field), []).append(text.strip())
                else:
                    faults.append(
                        f"{file}, record {number} (id {name}): {field!r} is empty. Write the rewrite or remove it."
                    )
    if faults:
        more = [f"... and {len(faults) - 10} more ({len(faults)} faults in all)."] if len(faults) > 10 else []
        raise ValueError("\n".join(faults[:10] + more))
    return rewrites
