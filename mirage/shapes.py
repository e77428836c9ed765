"""The shape of a JSON record, declared with pydantic, and every issue of a record with its remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from mirage.errors import DataIssue


class Shape(BaseModel):
    """Base of every record shape. Nothing is converted (`"3"` is no number); unknown fields are ignored.

    A validator raises `ValueError` with the remedy alone ("is empty. Write ..."): the field's name is put before it.
    """

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class ExactShape(Shape):
    """A shape that refuses unknown fields."""

    model_config = ConfigDict(extra="forbid")


AnyShape = TypeVar("AnyShape", bound=Shape)

AnyText = Annotated[str, StringConstraints(min_length=0)]  # only with a constraint does pydantic refuse lone surrogates
"""A text that may be empty."""
Text = Annotated[str, StringConstraints(pattern=r"\S")]
"""A text with at least one character that is no space."""

_REMEDIES = {
    "missing": "is missing. Add it, or remove the record.",
    "string_pattern_mismatch": "is empty. Write the text, or remove the record.",
    "string_unicode": "holds half of a character (a lone surrogate, \\ud800 to \\udfff). Correct the text.",
}
_EXPECTED = {
    "string": "a text", "bool": "true or false", "list": "a list", "tuple": "a list", "dict": "an object",
    "model": "an object", "int": "a whole number", "float": "a number", "none": "null",
}  # fmt: skip
_JSON_NAMES = {
    type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list",
    tuple: "a list",
}  # fmt: skip


def checked(shape: type[AnyShape], record: object, file: str, where: str) -> tuple[AnyShape | None, list[DataIssue]]:
    """The parsed JSON value in its shape and no issue, or None and every issue of it.

    `where` is its place in the file for messages, such as `record 412` or `line 7`.
    """
    try:
        return shape.model_validate(record), []
    except ValidationError as error:
        return None, issues_of(error, file, where, [field.alias or name for name, field in shape.model_fields.items()])


def issues_of(error: ValidationError, file: str, where: str, known: Sequence[str] = ()) -> list[DataIssue]:
    """Everything that pydantic found wrong, each with its remedy; `known` are the fields that a record may have."""
    return [
        DataIssue(file, where, _field(detail["loc"]), _remedy(detail, known))
        for detail in error.errors(include_url=False)
    ]


def _field(location: tuple[Any, ...]) -> str:
    name = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return name.removeprefix(".") or "the record"


def _remedy(detail: Any, known: Sequence[str]) -> str:
    kind: str = detail["type"]
    if kind == "extra_forbidden":
        listed = f" It may have: {', '.join(known)}." if len(detail["loc"]) == 1 else ""
        return f"is no field of this file.{listed} Remove it, or correct its name."
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    expected = _EXPECTED.get(kind.removesuffix("_type"))
    remedy = f" It must be {expected}." if expected else f" {detail['msg']}. Correct it."
    return _REMEDIES.get(kind) or f"is {_JSON_NAMES.get(type(detail['input']), 'an object')}.{remedy}"
