"""The OpenAPI document says what is true."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from node.fakes import World
from sandgate.api.later import NOT_YET


@pytest.fixture
async def document(api: httpx.AsyncClient) -> dict[str, Any]:
    """As anyone can get it."""
    del api.headers["X-API-KEY"]
    answer = await api.get("/openapi.json")
    assert answer.status_code == 200
    made: dict[str, Any] = answer.json()
    return made


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Method, path and description."""
    return [
        (method, path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
    ]


def test_every_operation_declares_its_errors_in_the_one_shape(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        if path == "/health":
            continue
        assert operation["security"] == [{"ApiKey": []}]
        assert "401" in operation["responses"], (method, path)
        for status, response in operation["responses"].items():
            if int(status) >= 400 and status != "501":
                schema = response["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Error"}, (method, path, status)


def test_what_is_not_offered_declares_501_and_no_success(document: dict[str, Any]) -> None:
    declared = {
        (method.upper(), path): set(operation["responses"])
        for method, path, operation in operations(document)
    }
    for method, path, _ in NOT_YET:
        statuses = declared[method, re.sub(r":\w+}", "}", path)]
        assert "501" in statuses and not any(status < "300" for status in statuses)


def test_schemas_name_what_is_refused(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["CreateBody"]["additionalProperties"] is False
    assert schemas["CreateBody"]["properties"]["mcp"]["enum"] == [None, {}]
    assert "HTTPValidationError" not in schemas
    references = set(str(document).split("'#/components/schemas/")[1:])
    assert {item.partition("'")[0] for item in references} <= set(schemas)


async def test_declared_statuses_are_the_ones_that_are_answered(
    api: httpx.AsyncClient, world: World, document: dict[str, Any]
) -> None:
    """Each operation with an id that is unknown, and with a body that is none."""
    api.headers["X-API-KEY"] = "e2b_" + "0123456789" * 4
    for method, path, operation in operations(document):
        url = path.replace("{sandbox_id}", "inothere").replace("{rest}", "a/b")
        for content in (b"{}", b"{", b'{"templateID": "unknown", "timeout": 1}'):
            answer = await api.request(
                method, url, content=content, headers={"Content-Type": "application/json"}
            )
            assert str(answer.status_code) in operation["responses"], (method, path, content)


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
async def test_other_methods_of_an_alias_are_not_taken_for_template_builds(
    api: httpx.AsyncClient, method: str
) -> None:
    answer = await api.request(method, "/templates/aliases/base")
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "GET"
