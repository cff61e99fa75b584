"""Types of request fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, Strict
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

_LONGEST = 2**31
"""Beyond it a number of seconds is a mistake, and arithmetic with moments fails."""


NOT_OFFERED = "not_offered"
"""Type of the error about a service of E2B's that Sandgate has not got."""
_NOT_YET = "is not supported yet; leave it out"


def refuse(message: str, kind: str = "sandgate") -> PydanticCustomError:
    """An error whose text reaches the user as it is."""
    # The text goes in as a value: as a template, its braces would mean something.
    return PydanticCustomError(kind, "{text}", {"text": message})


@dataclass(frozen=True, slots=True)
class NotYet:
    """Marks a field that has no effect here: only values that ask for nothing pass.

    Another value is 400, or 501 where it stands for a whole service that there is not yet.
    """

    field: str
    neutral: tuple[Any, ...] = (None,)
    """Values that ask for nothing."""
    why: str = _NOT_YET
    service: bool = False
    """Whether the field stands for a service: MCP, volumes."""

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"enum": list(self.neutral), "description": f"'{self.field}' {self.why}."}

    def _check(self, value: Any) -> None:
        if not any(type(value) is type(item) and value == item for item in self.neutral):
            kind = NOT_OFFERED if self.service else "sandgate"
            raise refuse(f"'{self.field}' {self.why}", kind)


def _check_text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("text", "text must be Unicode without surrogates") from None
    return value


def _check_env(value: Mapping[str, str]) -> Mapping[str, str]:
    for name, content in value.items():
        if not name or "=" in name or "\0" in name:
            raise refuse(
                f"invalid name {name!r} in envVars: a variable's name is not empty and has "
                "neither '=' nor a NUL character"
            )
        if "\0" in content:
            raise refuse(f"invalid value of {name!r} in envVars: it has a NUL character")
    return value


Seconds = Annotated[int, Strict(), Field(ge=-_LONGEST, le=_LONGEST)]
Port = Annotated[int, Strict(), Field(ge=1, le=65535)]
Flag = Annotated[bool, Strict()]
ModeName = Literal["enforce", "report"]
Text = Annotated[str, Strict(), AfterValidator(_check_text)]
Env = Annotated[dict[Text, Text], AfterValidator(_check_env)]
