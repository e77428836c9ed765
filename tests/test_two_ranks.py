"""Two real processes: what breaks on one ends both before any harm, and shares of any size count as one process.

Each promise has a twin that takes its protection away and expects its test to fail: the proof that the test sees it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import results_of
from children import mini_training
from children.processes import run_children, said

from mirage.checkpoint.io import read_checkpoint
from mirage.evaluation.run.records import read_records

pytestmark = pytest.mark.slow

KINDS = {"nan": "unsafe loss of examples {}", "gradient": "gradient of a step with"}


def end_of(folder: Path, rank: int) -> dict[str, Any]:
    return dict(torch.load(folder / f"end-{rank}.pt", weights_only=True))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_on_one_rank_stops_both_before_the_step(
    kind: str, tmp_path: Path, protected: bool = True
) -> None:
    codes = run_children(mini_training.run, tmp_path, ranks=2, breaks=kind, protected=protected)
    assert codes == [1, 1], said(tmp_path)
    ends = [end_of(tmp_path, rank) for rank in (0, 1)]
    what = KINDS[kind].format(ends[1]["culprits"])
    for rank in (0, 1):  # each says what happened on both
        assert "Not finite in step 2, rank" in said(tmp_path, rank) and f"rank 1: {what}" in said(tmp_path, rank)
        assert all(id in said(tmp_path, rank) for id in ends[1]["culprits"].split(", "))
    folder = tmp_path / "checkpoints"
    assert (
        (folder / "last").read_text().strip()
        == max(path.name for path in folder.glob("*.ckpt"))
        == "step-00000002.ckpt"
    )
    saved = read_checkpoint(folder / "step-00000002.ckpt")["state_dict"]
    for end in ends:
        assert all(torch.equal(value, end["weights"][name]) for name, value in saved.items())


def test_twin_without_the_check_the_spoilt_step_is_taken(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        test_what_is_not_finite_on_one_rank_stops_both_before_the_step("nan", tmp_path, protected=False)
    assert not all(value.isfinite().all() for value in end_of(tmp_path, 0)["weights"].values())


@pytest.mark.parametrize(("samples", "batch_size"), [(7, 2), (1, 3)])
def test_two_ranks_validate_as_one_process(
    samples: int, batch_size: int, tmp_path: Path, protected: bool = True
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    validate = partial(run_children, mini_training.run, samples=samples, batch_size=batch_size, protected=protected)
    assert validate(one) == 0, said(one)
    assert validate(two, ranks=2) == [0, 0], said(two)
    for side, shots in mini_training.SHOTS.items():
        alone, together = (results_of(folder / "validate")[side] for folder in (one, two))
        assert together == alone and together["before"]["n"] == samples
        file = Path("validate", "records", f"{side}.jsonl")
        records = read_records(two / file)[1]
        assert records == read_records(one / file)[1] and len(records) == samples * (1 + shots)
    first, *both = (end_of(*place)["metrics"] for place in ((one, 0), (two, 0), (two, 1)))
    for metrics in both:
        assert metrics["val/retain"] == pytest.approx(first["val/retain"], rel=1e-6)


def test_twin_with_lightnings_sampler_uneven_shares_do_not_count_as_one_process(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        test_two_ranks_validate_as_one_process(7, 2, tmp_path, protected=False)


def test_nothing_to_ask_is_an_error_on_every_rank(tmp_path: Path) -> None:
    assert run_children(mini_training.run, tmp_path, ranks=2, samples=0) == [1, 1]
    assert all("is empty: nothing would be measured" in said(tmp_path, rank) for rank in (0, 1))
