"""The shape of a JSON record: declared with pydantic, and every fault of a record as a `DataIssue` with its remedy."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from mirage.errors import DataIssue


class Shape(BaseModel):
    """Base of every record shape. Nothing is converted (`"3"` is no number); unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


AnyShape = TypeVar("AnyShape", bound=Shape)


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(
            "holds half of a character (a lone surrogate, \\ud800 to \\udfff). Correct the text."
        ) from None
    return text


def _not_empty(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty. Write the text, or remove the record.")
    return text


AnyText = Annotated[str, AfterValidator(_whole)]
"""A text that may be empty."""
Text = Annotated[AnyText, AfterValidator(_not_empty)]
"""A text with at least one character that is no space."""


def checked(shape: type[AnyShape], record: object, file: str, where: str) -> tuple[AnyShape | None, list[DataIssue]]:
    """The record in its shape and no issue, or None and every issue of it.

    A validator of a shape raises `ValueError` with the remedy alone ("is empty. Write ..."): the field's name is put
    before it.

    Args:
        shape: What the record should be.
        record: The parsed JSON value.
        file: The file's name, for messages.
        where: The record's place in it, such as `record 412` or `line 7`.
    """
    try:
        return shape.model_validate(record), []
    except ValidationError as error:
        return None, [
            DataIssue(file, where, _field(found["loc"]), _remedy(found)) for found in error.errors(include_url=False)
        ]


def json_name(value: object) -> str:
    """What a value is called in JSON, for messages: "a number", "null"."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list() | tuple():
            return "a list"
    return "an object"


_EXPECTED = {
    "string": "a text", "bool": "true or false", "list": "a list", "tuple": "a list", "dict": "an object",
    "model": "an object", "int": "a whole number", "float": "a number", "none": "null",
}  # fmt: skip


def _field(location: tuple[Any, ...]) -> str:
    name = ""
    for step in location:
        name += f"[{step}]" if isinstance(step, int) else f".{step}" if name else str(step)
    return name or "the record"


def _remedy(found: Any) -> str:
    kind: str = found["type"]
    if kind == "missing":
        return "is missing. Add it, or remove the record."
    if kind == "extra_forbidden":
        return "is no field of this file. Remove it, or correct its name."
    if kind == "value_error":
        return str(found["ctx"]["error"])
    if expected := _EXPECTED.get(kind.removesuffix("_type")):
        return f"is {json_name(found['input'])}. It must be {expected}."
    return f"is {json_name(found['input'])} ({found['msg']}). Correct it."
