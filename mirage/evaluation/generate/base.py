"""What every engine offers: the answers of one model, wherever it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

from mirage.schema import EvalSample

OnAnswer = Callable[[str, int, str], None]
"""Called with sample id, shot and answer as soon as an answer is there, always from the thread that asked for it."""


class Engine(ABC):
    """Base of every engine: asks a model and changes nothing."""

    name: ClassVar[str]
    """The engine in one word, such as `hf`."""

    @property
    def image_placeholder(self) -> str | None:
        """The text that the model reads as a picture, so that no question may hold it; None where there is none."""
        return None

    def in_step(self) -> AbstractContextManager[None]:
        """A block within which ranks may ask different numbers of questions, none included."""
        return nullcontext()

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything that decides an answer and nothing that does not, as JSON values, for fingerprints."""

    @abstractmethod
    def answers(
        self, samples: Sequence[EvalSample], on_answer: OnAnswer | None = None, temperature: float = 0.0, seed: int = 0
    ) -> list[list[str]]:
        """The answers to each sample's questions, in order: `answers[sample][shot]`.

        They are greedy at temperature 0. Above it each token is sampled from the whole distribution: the same seed gives
        the same answers, as far as the model can, and the caller's random state is left as it was. Answers that
        `on_answer` was given are kept by the caller if a later one fails.
        """

    def complete(self, prompts: Sequence[str], *, temperature: float, seed: int) -> list[str]:
        """One answer to each prompt (text alone), in order."""
        samples = [EvalSample(id="", source="", image=None, question=prompt, unsafe=False) for prompt in prompts]
        return [text for (text,) in self.answers(samples, temperature=temperature, seed=seed)]


def check_at_least_one(prefix: str = "", **settings: int) -> None:
    """Checks settings whose names the user knows with this prefix.

    Raises:
        ValueError: If one is below 1.
    """
    for name, value in settings.items():
        if value < 1:
            raise ValueError(f"{prefix}{name} is {value}: it must be at least 1.")
