"""What the tests of `run_code` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
from e2b_code_interpreter import Execution, Sandbox

PORT = 49999
Make = Callable[..., Sandbox]


def works(sandbox: Sandbox, **options: Any) -> None:
    """The next call is answered as if nothing had happened."""
    code = "echo 42" if options.get("language") == "bash" else "40 + 2"
    execution = sandbox.run_code(code, **options)
    assert execution.error is None
    assert [execution.text, *execution.logs.stdout][-1] in ("42", "42\n")


def outcome(execution: Execution) -> list[str]:
    """Everything it said and is, as text."""
    values = [str(result.text).strip() for result in execution.results]
    return [*(line.strip() for line in execution.logs.stdout), *values]


def error_of(execution: Execution) -> tuple[str, str]:
    """Name and text of its error."""
    assert execution.error is not None, execution
    return execution.error.name, execution.error.value


def post(sandbox: Sandbox, path: str, body: object) -> httpx.Response:
    """A plain request to the interpreter."""
    url = f"https://{sandbox.get_host(PORT)}{path}"
    return httpx.post(url, json=body, timeout=30, verify=trust())


def trust() -> Any:
    import ssl

    return ssl.create_default_context()


def health(sandbox: Sandbox) -> str:
    return f"https://{sandbox.get_host(PORT)}/health"
