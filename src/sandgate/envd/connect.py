"""The Connect protocol with its JSON codec: error codes, frames, proto3 JSON fields. No I/O.

Source: the Connect protocol specification, and what the E2B SDKs send.
"""

from __future__ import annotations

import binascii
import json
import struct
from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

FLAG_COMPRESSED = 0x01
FLAG_END = 0x02
_PREFIX = struct.Struct(">BI")


class Code(StrEnum):
    """Connect error codes. The value is the one on the wire."""

    CANCELED = "canceled"
    UNKNOWN = "unknown"
    INVALID_ARGUMENT = "invalid_argument"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    NOT_FOUND = "not_found"
    ALREADY_EXISTS = "already_exists"
    PERMISSION_DENIED = "permission_denied"
    RESOURCE_EXHAUSTED = "resource_exhausted"
    FAILED_PRECONDITION = "failed_precondition"
    ABORTED = "aborted"
    OUT_OF_RANGE = "out_of_range"
    UNIMPLEMENTED = "unimplemented"
    INTERNAL = "internal"
    UNAVAILABLE = "unavailable"
    DATA_LOSS = "data_loss"
    UNAUTHENTICATED = "unauthenticated"

    @property
    def http_status(self) -> int:
        """Status of a unary response that carries this error."""
        return _STATUS[self]


_STATUS = {
    Code.CANCELED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}


class ConnectError(Exception):
    """A failure that the caller is told of, with its Connect code."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def to_json(self) -> dict[str, str]:
        """The error object of a unary body or of an end frame."""
        return {"code": self.code.value, "message": self.message}


def invalid(message: str) -> ConnectError:
    """An `invalid_argument` error."""
    return ConnectError(Code.INVALID_ARGUMENT, message)


@dataclass(frozen=True, slots=True)
class Frame:
    """One enveloped message of a stream."""

    flags: int
    payload: bytes


def encode_frame(payload: bytes, flags: int = 0) -> bytes:
    """`payload` behind its flag byte and its length."""
    return _PREFIX.pack(flags, len(payload)) + payload


def encode_end(error: ConnectError | None = None) -> bytes:
    """The last frame of a stream; without an error it says that all went well."""
    body = {} if error is None else {"error": error.to_json()}
    return encode_frame(json.dumps(body).encode(), FLAG_END)


class FrameDecoder:
    """Cuts a byte stream into frames, however it was split on the way."""

    def __init__(self, limit: int) -> None:
        """:param limit: longest payload accepted, in bytes."""
        self._limit = limit
        self._buffer = bytearray()

    @property
    def partial(self) -> bool:
        """Whether bytes of an unfinished frame are held."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that `data` completes.

        :raises ConnectError: if a frame is longer than the limit, or compressed.
        """
        self._buffer += data
        while len(self._buffer) >= _PREFIX.size:
            flags, size = _PREFIX.unpack_from(self._buffer)
            if size > self._limit:
                message = f"message of {size} bytes is longer than {self._limit}; send less at once"
                raise ConnectError(Code.RESOURCE_EXHAUSTED, message)
            if flags & FLAG_COMPRESSED:
                message = "compressed messages are not supported; send them as identity"
                raise ConnectError(Code.UNIMPLEMENTED, message)
            end = _PREFIX.size + size
            if len(self._buffer) < end:
                return

            payload = bytes(self._buffer[_PREFIX.size : end])
            del self._buffer[:end]
            yield Frame(flags, payload)


class Message:
    """Typed, tolerant access to a proto3 JSON object.

    Fields are asked for by their lowerCamelCase name and found under snake_case too; `null` is the
    same as absent; unknown fields are ignored. Each accessor raises :class:`ConnectError`
    (`invalid_argument`, naming the field) when the value has another type.
    """

    def __init__(self, fields: Mapping[str, object], where: str = "") -> None:
        self._fields = {_camel(k): v for k, v in fields.items() if v is not None}
        self._where = where

    @classmethod
    def parse(cls, body: bytes) -> Message:
        """Read a JSON object; an empty body is an empty message."""
        if not body:
            return cls({})
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError) as exc:
            raise invalid(f"the message is not valid JSON: {exc}") from exc
        if not isinstance(fields, dict):
            raise invalid("the message must be a JSON object")
        return cls(fields)

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def _wrong(self, name: str, expected: str) -> ConnectError:
        value = self._fields.get(name)
        return invalid(f"{self._where}{name} must be {expected}, not {value!r:.80}")

    def text(self, name: str) -> str:
        """A string; absent is empty."""
        return self.optional_text(name) or ""

    def optional_text(self, name: str) -> str | None:
        """A string, or None if absent."""
        value = self._fields.get(name)
        if value is not None and not isinstance(value, str):
            raise self._wrong(name, "a string")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of strings."""
        value = self._fields.get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(name, "a list of strings")
        return value

    def text_map(self, name: str) -> dict[str, str]:
        """An object whose values are strings."""
        value = self._fields.get(name, {})
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            raise self._wrong(name, "an object of strings")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean."""
        value = self._fields.get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def uint32(self, name: str) -> int:
        """An unsigned 32-bit number, also when written as a string; absent is 0."""
        value = self._fields.get(name, 0)
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 10:
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 32:
            raise self._wrong(name, "a number from 0 to 4294967295")
        return value

    def data(self, name: str) -> bytes:
        """Bytes in base64, standard or URL-safe, padded or not."""
        value = self.text(name).rstrip("=").replace("-", "+").replace("_", "/")
        try:
            return b64decode(value + "=" * (-len(value) % 4), validate=True)
        except (binascii.Error, ValueError) as exc:
            raise self._wrong(name, "base64") from exc

    def enum(self, name: str, numbers: Mapping[str, int]) -> int:
        """An enum by name or number; absent is 0."""
        value = self._fields.get(name, 0)
        if isinstance(value, str) and value in numbers:
            return numbers[value]
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise self._wrong(name, "one of " + ", ".join(numbers))

    def message(self, name: str) -> Message | None:
        """A nested message, or None if absent."""
        value = self._fields.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return Message(value, f"{self._where}{name}.")

    def required(self, name: str) -> Message:
        """A nested message that must be there."""
        nested = self.message(name)
        if nested is None:
            raise invalid(f"{self._where}{name} is missing")
        return nested


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part[:1].upper() + part[1:] for part in rest) if rest else name
