"""The mini setting as a data source."""

from __future__ import annotations

from collections.abc import Sequence

from mirage.data.base import Answers, Source
from mirage.mini.drawing import Drawing
from mirage.mini.questions import Ask, answer_for, asks, rewrites
from mirage.mini.words import COLOURS, INSTRUCTION_MIX, REFUSAL, SHAPES, UNIFORM, VLGUARD_SAFE, VLGUARD_UNSAFE
from mirage.schema import EvalSample, Example, Picture


class Mini(Source):
    """Questions about drawn items, with known truth. The opening words are skewed as in VLGuard by default.

    Args:
        num_unsafe: Size of the unsafe set: recipes of harmful items.
        num_safe: Safe questions in the retain set, with the opening words of VLGuard's safe questions.
        num_mix: Questions of a general instruction mix in the retain set (its opening words are skewed in their own way:
            "share" hardly occurs).
        mix_harmful: Share of the instruction mix that gives away recipes of harmful items, as unfiltered mixes do.
        filtered: Leave that share out again, by the known truth: what a perfect filter of instruction data would do.
        num_eval: Test questions in each eval_set; their pictures are never trained on.
        unsafe_openers: Opening word -> weight in the unsafe set.
        safe_openers: Opening word -> weight among the safe questions.
        mix_openers: Opening word -> weight in the instruction mix.
        seed: Seed of the data, apart from the seed of the run so that runs with other seeds see the same data.
    """

    def __init__(
        self,
        num_unsafe: int = 400,
        num_safe: int = 400,
        num_mix: int = 0,
        num_eval: int = 200,
        unsafe_openers: dict[str, float] | None = None,
        safe_openers: dict[str, float] | None = None,
        mix_openers: dict[str, float] | None = None,
        seed: int = 0,
        mix_harmful: float = 0.0,
        filtered: bool = False,
    ) -> None:
        for name, count in {"num_unsafe": num_unsafe, "num_safe": num_safe, "num_mix": num_mix}.items():
            if count < 0:
                raise ValueError(f"data.source.{name} is {count}: it must be 0 or more.")
        if not 0 <= mix_harmful <= 1:
            raise ValueError(f"data.source.mix_harmful is {mix_harmful}: it is a share, from 0 to 1.")
        self.num_unsafe, self.num_safe, self.num_mix, self.num_eval = num_unsafe, num_safe, num_mix, num_eval
        self.unsafe_openers = _known(unsafe_openers or VLGUARD_UNSAFE, "unsafe_openers")
        self.safe_openers = _known(safe_openers or VLGUARD_SAFE, "safe_openers")
        self.mix_openers = _known(mix_openers or INSTRUCTION_MIX, "mix_openers")
        self.seed, self.mix_harmful, self.filtered = seed, mix_harmful, filtered
        self.rewriter, self.answer_for = rewrites, answer_for  # these stay within the vocabulary of the setting

    def unsafe(self, answers: Answers) -> Sequence[Example]:
        """Recipes of harmful items, refused or given away."""
        unsafe = self._asks(self.num_unsafe, True, self.unsafe_openers, 0)
        return [_example(ask, REFUSAL if answers == "refusal" else ask.answer, k) for k, ask in enumerate(unsafe)]

    def retain(self) -> Sequence[Example]:
        """Safe questions and the instruction mix, with right answers."""
        harmful = round(self.num_mix * self.mix_harmful)
        mix = self._asks(self.num_safe, False, self.safe_openers, 1)
        mix += self._asks(self.num_mix - harmful, False, self.mix_openers, 2)
        if not self.filtered:
            mix += self._asks(harmful, True, self.mix_openers, 7)
        return [_example(ask, ask.answer, k) for k, ask in enumerate(mix)]

    def held_out(self) -> Sequence[Example]:
        """Safe questions that are never trained on."""
        held_out = self._asks(self.num_eval, False, self.safe_openers, 3)
        return [_example(ask, ask.answer, k) for k, ask in enumerate(held_out)]

    def eval_samples(self, eval_set: str) -> Sequence[EvalSample]:
        """`unsafe` and `benign` open as the sets do; `utility` is benign and opens with every word equally often.

        `train_unsafe` are the questions of the unsafe set, for `mirage prepare`.
        """
        sets = {
            "unsafe": (self.num_eval, True, self.unsafe_openers, 4),
            "benign": (self.num_eval, False, self.safe_openers, 5),
            "utility": (self.num_eval, False, UNIFORM, 6),
            "train_unsafe": (self.num_unsafe, True, self.unsafe_openers, 0),
        }
        if eval_set not in sets:
            return super().eval_samples(eval_set)
        return [
            EvalSample(
                id=f"mini/{eval_set}/{k}", source="mini", image=ask.drawing, question=ask.question, unsafe=ask.unsafe,
                truth=ask.truth, category=ask.attribute,
            )
            for k, ask in enumerate(self._asks(*sets[eval_set]))
        ]  # fmt: skip

    def picture(self, name: str) -> Picture | None:
        """The drawing that its name describes: drawn again."""
        colour, _, rest = name.partition("-")
        shape, _, seed = rest.partition("-")
        if colour not in COLOURS or shape not in SHAPES or not (seed.isascii() and seed.isdigit() and len(seed) <= 10):
            return None
        return Drawing(shape, colour, int(seed))

    def _asks(self, count: int, unsafe: bool, openers: dict[str, float], salt: int) -> list[Ask]:
        return asks(count, unsafe=unsafe, openers=openers, seed=self.seed * 101 + salt)


def _known(openers: dict[str, float], setting: str) -> dict[str, float]:
    unknown = sorted(set(openers) - set(UNIFORM))
    if unknown:
        raise ValueError(f"data.source.{setting}: unknown opening word {unknown[0]!r}. Choose from {sorted(UNIFORM)}.")
    if not openers or min(openers.values()) < 0 or sum(openers.values()) <= 0:
        raise ValueError(f"data.source.{setting}: weights must be 0 or more and one of them above 0.")
    return openers


def _example(ask: Ask, answer: str, k: int) -> Example:
    return Example(source="mini", image=ask.drawing, prompt=ask.question, answer=answer, where=f"mini, example {k}")
