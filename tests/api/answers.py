"""What the tests ask of an answer."""

from __future__ import annotations

from typing import Any

import httpx


def error(answer: httpx.Response, status: int) -> str:
    """The message of an error in the one shape."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    body: dict[str, Any] = answer.json()
    assert set(body) - {"error_code"} == {"code", "message"}
    assert body["code"] == status
    message = body["message"]
    assert isinstance(message, str) and message
    return message
