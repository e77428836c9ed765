"""Official JSON files in their declared shape, and one clear sentence wherever they are not what they should be."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from mirage.shapes import AnyShape, Shape, checked


class HumanAnswer(Shape):
    """What one human answered."""

    answer: str


TEN = Field(min_length=10, max_length=10)  # humans: the metric averages over every choice of nine


@dataclass(frozen=True)
class OfficialFile:
    """A file of a benchmark, with the words for what is wrong with it.

    Args:
        path: Where it is.
        expected: What it should be, such as `VQA v2.0 open-ended questions`.
        remedy: What to do if it is not, as a sentence.
    """

    path: Path
    expected: str
    remedy: str

    def error(self, problem: str) -> ValueError:
        """The error to raise: file, expectation, problem and remedy in one sentence or two."""
        return ValueError(f"{self.path}: expected {self.expected}, but {problem}. {self.remedy}")

    def check(self, field: str, value: str, expected: str) -> None:
        """Checks that a field of the file's head is what it should be.

        Raises:
            ValueError: If it is not.
        """
        if value != expected:
            raise self.error(f"its {field} is {value!r}")

    def read(self, shape: type[AnyShape], under: str = "") -> AnyShape:
        """The content in its shape; where the top level is a list or a dictionary, `under` is its field in the shape.

        Raises:
            ValueError: If the file is missing, is not UTF-8, is not whole JSON, or has another shape; it names the first
                field that is wrong.
        """
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise self.error("there is no such file") from None
        except OSError as error:
            raise self.error(f"it cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise self.error("it is not UTF-8 text") from error
        except json.JSONDecodeError as error:
            raise self.error(f"it is not whole JSON ({error.msg}, line {error.lineno} column {error.colno})") from error
        shaped, issues = checked(shape, {under: content} if under else content, str(self.path), "")
        if shaped is None:
            raise self.error(f"{issues[0].field} {issues[0].remedy.partition('. ')[0].removesuffix('.')}")
        return shaped
