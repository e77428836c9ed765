"""AlignmentData: the unsafe set, the retain set and the samples, checked before any model is loaded."""

from __future__ import annotations

import json
import logging
import math
from array import array
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from mirage.data.answer_file import AnswerFile, Reanswered
from mirage.data.base import Source
from mirage.data.collate import Collator
from mirage.data.crossing import CrossedForms, Crossing
from mirage.data.fitting import too_long, unfit_questions
from mirage.data.lazy import Chosen, sampled
from mirage.data.loading import Pairs, ResumableLoader, Steps, shard, weighed
from mirage.data.mixture import Mixture, RetainSet
from mirage.data.order import Order
from mirage.errors import DataError
from mirage.schema import EvalSample, Example, Rewriter, short_hash

_log = logging.getLogger(__name__)


class AlignmentData(L.LightningDataModule):
    """The two training sets and the test questions, in batches of a fixed ratio.

    Args:
        source: Where the unsafe set, the samples and (unless `retain` is given) the retain set come from.
        retain: Sources to mix the retain set from, with weights.
        retain_size: Size of that mixture; by default all of it that the weights allow.
        retain_answers: File of `mirage prepare answers`: the retain set is answered as in it, by the model that is about to
            be trained. Training then teaches when to refuse, and not another manner of answering.
        gamma: Retain examples per unsafe example, any number above 0. With it the loss is l_u + gamma * l_r.
        batch_size: Unsafe examples per device and step (retain examples where a method has no unsafe part).
        max_length: Longest sequence in tokens, by default the model's own limit. An example that does not fit is reported
            before the model is loaded, never cut.
        max_answer_tokens: Learn (or unlearn) only the first so many tokens of every answer: cheaper where the beginning
            decides, as it does for refusals. All of it by default.
        skip_too_long: Skip the examples that do not fit, and list them in the results, instead of refusing to train.
        pad_to_square: Pad pictures to a square with the processor's mean colour first, as LLaVA-1.5 was trained.
        crossing: Questions of both sets in forms that do not give the label away (see `Crossing`); off by default.
        num_workers: Processes per device that open pictures; 0 for none.
        seed: Seed of the data order; the run's seed by default.
        method: The method that the data are for, of which its `processor`, `context_length` and `unsafe_answers` are used.
            The command line hands over its model; no config sets it.
    """

    def __init__(
        self,
        source: Source,
        retain: list[RetainSet] | None = None,
        retain_size: int | None = None,
        retain_answers: Path | None = None,
        gamma: float = 1.0,
        batch_size: int = 32,
        max_length: int | None = None,
        max_answer_tokens: int | None = None,
        skip_too_long: bool = False,
        pad_to_square: bool = False,
        crossing: Crossing | None = None,
        num_workers: int = 1,
        seed: int = 0,
        method: Any = None,
    ) -> None:
        super().__init__()
        if not (math.isfinite(gamma) and gamma > 0):
            raise ValueError(f"data.gamma is {gamma}: retain examples per unsafe example must be a number above 0.")
        if num_workers < 0:
            raise ValueError(f"data.num_workers is {num_workers}: it must be 0 or more.")
        for name, count in {
            "batch_size": batch_size,
            "max_length": max_length,
            "max_answer_tokens": max_answer_tokens,
            "retain_size": retain_size,
        }.items():
            if count is not None and count < 1:
                raise ValueError(f"data.{name} is {count}: it must be at least 1.")
        if retain_size is not None and retain is None:
            raise ValueError(
                f"data.retain_size is {retain_size}, the size of the mixture of data.retain, which is not set. Set it, or "
                "leave retain_size out."
            )
        self.source, self.retain, self.retain_size = source, retain, retain_size
        self._answers = None if retain_answers is None else AnswerFile(retain_answers, "mirage prepare answers")
        self.gamma, self.batch_size, self.max_length = gamma, batch_size, max_length
        self.max_answer_tokens, self.skip_too_long, self.pad_to_square = max_answer_tokens, skip_too_long, pad_to_square
        self.crossing, self.num_workers, self.seed = crossing, num_workers, seed
        self.crossed: CrossedForms | None = None
        self.method = method
        self.attack_words: Sequence[str] | None = None  # set by whoever builds the callbacks
        self.form_only_accuracy: dict[str, float] | None = None  # before and after crossing, set by whoever measures it
        self.unsafe_set: Sequence[Example] = ()
        self.retain_set: Sequence[Example] = ()
        self.held_out_set: Sequence[Example] = ()
        self._too_long: list[str] = []
        self._ready = ""  # the stage that it was set up for; fit is more than the others

    def setup(self, stage: str) -> None:
        """Reads and checks everything, so that bad input is reported before the model is loaded.

        Raises:
            DataError: Naming file, record and remedy.
        """
        if self._ready in ("fit", stage):
            return
        if self.method is None:
            raise ValueError(
                "AlignmentData has no method: give it the model that is trained, as the command line does."
            )
        if issues := [issue for source in self._sources for issue in source.validate()]:
            raise DataError.of(issues)
        processor, limit = self.method.processor, self.max_length or self._model_limit
        several = self.trainer is not None and self.trainer.world_size > 1
        self.collate = Collator(processor, limit, self.pad_to_square, self.max_answer_tokens, several)
        if stage == "fit":
            answers = self.method.unsafe_answers
            unsafe = () if answers is None else self._not_empty("unsafe", self.source.unsafe(answers))
            retain = self._not_empty("retain", self._retained())
            if self.crossing is not None:
                self.crossed = CrossedForms(
                    self.crossing, unsafe, retain, self.rewriter, self.source.answer_for, self._excluded(), self.seed,
                    processor.image_token,
                )  # fmt: skip
            self.unsafe_set = self._not_empty("unsafe", self._fitting(unsafe, True)) if answers is not None else ()
            self.retain_set = self._not_empty("retain", self._fitting(retain, False))
        self.held_out_set = self._fitting(self.source.held_out())
        self._ready = stage

    def eval_samples(self, eval_set: str) -> Sequence[EvalSample]:
        """The test questions of one evaluation set."""
        return self.source.eval_samples(eval_set)

    def check_questions(self, samples: Sequence[EvalSample], max_new_tokens: int) -> None:
        """Checks that the model can be asked every question and rewrite and has room for its answer.

        Raises:
            DataError: Naming each that is too long, or holds an image placeholder.
        """
        most = max(1, self._model_limit - max_new_tokens + 1)  # one token of an answer is in the text that is checked
        collate = Collator(self.method.processor, most, self.pad_to_square)
        if issues := [*unfit_questions(samples, collate, self._model_limit, max_new_tokens)]:
            raise DataError.of(issues)

    @property
    def rewriter(self) -> Rewriter | None:
        """How the source's questions are rewritten for an attack; None where general rewriters do."""
        return self.source.rewriter

    def labelled_questions(self) -> Iterator[tuple[str, bool]]:
        """Every question of both training sets, and whether it is of the unsafe set. Harmful answers are not needed."""
        for is_unsafe, examples in ((True, self.source.unsafe_questions()), (False, self._retained())):
            for example in examples:
                yield example.prompt, is_unsafe
                yield from ((turn.question, is_unsafe) for turn in example.later_turns)

    def asked(self, *, crossed: bool) -> Iterator[tuple[str, bool, str]]:
        """Question, whether it is unsafe, and name of its picture, as training asks them; a sample of large sets.

        Args:
            crossed: In the forms of two laps, or as the source has them.
        """
        for unsafe, examples in ((True, self.unsafe_set), (False, self.retain_set)):
            for example in sampled(examples):
                asked = [example]
                if crossed and self.crossed is not None:
                    asked = [self.crossed.of(example, lap, unsafe=unsafe) for lap in range(2)]
                for each in asked:
                    yield each.prompt, unsafe, "" if each.image is None else each.image.name

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches are `Pair`s; every epoch is a whole number of optimizer steps.

        Under `trainer.overfit_batches` every epoch has the first so many batches again.
        """
        trainer = self._trainer
        order = Order(len(self.unsafe_set), len(self.retain_set), self.batch_size, self.gamma, self.seed)
        accumulate = trainer.accumulate_grad_batches
        overfit: int | float = trainer.overfit_batches  # type: ignore[attr-defined]

        def position() -> int:
            done = trainer.global_step
            if overfit:
                batches = overfit if isinstance(overfit, int) else int(overfit * len(steps))
                done %= -(-batches // accumulate)
            return done * accumulate

        steps = Steps(order, trainer.global_rank, trainer.world_size, accumulate, position)
        return ResumableLoader(
            Pairs(self.unsafe_set, self.retain_set, self.collate, self.crossed),
            sampler=steps,
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Held-out retain examples with weights; one empty batch if the source has none, so that samples still run."""
        if not self.held_out_set:
            return DataLoader([None], batch_size=None)  # type: ignore[arg-type]
        return self._sharded(self.held_out_set)

    test_dataloader = val_dataloader

    def unsafe_loader(self) -> DataLoader[Any]:
        """The unsafe set once, every example in each of its forms, this rank's share: for reference log-probabilities."""
        if self.crossed is None:
            return self._sharded(self.unsafe_set)
        return self._sharded([form for each in self.unsafe_set for form in self.crossed.every(each, unsafe=True)])

    def sides_used_again(self, batches: int) -> list[str]:
        """The sides of which some example is used twice in the same form within so many batches, all ranks together."""
        forms = self.crossing.forms_per_example if self.crossing is not None else 1
        unsafe = batches * self.batch_size
        sets = {"unsafe": (self.unsafe_set, unsafe), "retain": (self.retain_set, unsafe * self.gamma)}
        return [side for side, (examples, used) in sets.items() if used > forms * len(examples)]

    def fingerprint(self) -> str:
        """A hash of both training sets: their ids in order (of large sets a sample), answers' limit and forms."""
        ids = [example.id for examples in (self.unsafe_set, self.retain_set) for example in sampled(examples)]
        cut = [] if self.max_answer_tokens is None else [self.max_answer_tokens]
        crossed = [] if self.crossed is None else [json.dumps(self.crossed.describe())]
        return short_hash(len(self.unsafe_set), len(self.retain_set), *ids, *cut, *crossed)

    def summary(self) -> dict[str, Any]:
        """What is trained on and what is skipped, as JSON values, for the results."""
        skipped = [*(str(issue) for source in self._sources for issue in source.skipped()), *self._too_long]
        return {
            "unsafe": len(self.unsafe_set), "retain": len(self.retain_set), "gamma": self.gamma,
            "max_answer_tokens": self.max_answer_tokens, "fingerprint": self.fingerprint(),
            "skipped": list(dict.fromkeys(skipped)),  # a source may be listed twice
            "crossing": None if self.crossed is None else self.crossed.describe() | {
                "form_only_accuracy": self.form_only_accuracy
            },
        }  # fmt: skip

    def _sharded(self, examples: Sequence[Example]) -> DataLoader[Any]:
        return DataLoader(
            shard(examples, self._trainer.global_rank, self._trainer.world_size),  # type: ignore[arg-type]
            batch_size=2 * self.batch_size,
            collate_fn=partial(weighed, self.collate),
            num_workers=0,
            pin_memory=torch.cuda.is_available(),
        )

    def _retained(self) -> Sequence[Example]:
        if self.retain is None:
            return self._reanswered(self.source.retain())
        sets = [self._reanswered(each.source.retain()) for each in self.retain]
        return Mixture(sets, [each.weight for each in self.retain], self.retain_size, self.seed)

    def _reanswered(self, examples: Sequence[Example]) -> Sequence[Example]:
        if self._answers is None:
            return examples
        ids = (each.question_id for each in sampled(examples) if not each.later_turns)
        return Reanswered(examples, self._answers.by_id(ids))

    def _not_empty(self, side: str, examples: Sequence[Example]) -> Sequence[Example]:
        if not len(examples):
            raise DataError(
                f"The {side} set of {self.source.name} is empty: nothing would be trained. Check the source's settings."
            )
        return examples

    def _excluded(self) -> Sequence[str]:
        """Opening words that crossed forms must not have."""
        assert self.crossing is not None
        if self.crossing.exclude != "attack":
            return self.crossing.exclude
        if self.attack_words is None:
            raise ValueError(
                "data.crossing.exclude is 'attack', and this run has no attack, or one whose word is still to be mined. "
                "Name the words in data.crossing.exclude."
            )
        return self.attack_words

    def _fitting(self, examples: Sequence[Example], unsafe: bool | None = None) -> Sequence[Example]:
        """The examples that the model can take: all of them, or an error, or, with `skip_too_long`, all others."""
        if self.crossed is None or unsafe is None:
            refused = dict(too_long(examples, self.collate))
        else:
            forms = partial(self.crossed.every, unsafe=unsafe)
            refused = dict(too_long(examples, self.collate, forms, self.crossed.most_bytes_added))
        if not refused:
            return examples
        error = DataError.of(list(refused.values()))
        if not self.skip_too_long:
            raise error
        self._too_long += refused.values()
        _log.warning("skipped %d of %d examples that do not fit:\n%s", len(refused), len(examples), error)
        return Chosen(examples, array("L", (place for place in range(len(examples)) if place not in refused)))

    @property
    def _model_limit(self) -> Any:
        """The longest sequence that the model takes, in tokens."""
        return min(self.method.processor.tokenizer.model_max_length, self.method.context_length or math.inf)

    @property
    def _sources(self) -> list[Source]:
        return [self.source, *(each.source for each in self.retain or ())]

    @property
    def _trainer(self) -> L.Trainer:
        assert self.trainer is not None
        return self.trainer
