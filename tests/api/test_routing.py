"""Direct routes answer as FastAPI's own would."""

from __future__ import annotations

import gzip
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, Path, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field

from sandgate.api import errors
from sandgate.api.app import create_app
from sandgate.api.errors import ApiError
from sandgate.api.requests import NetworkUpdateBody, TimeoutBody
from sandgate.api.routing import DirectRoute, new_router


class Answer(BaseModel):
    """What a function was called with."""

    got: dict[str, Any] = Field(alias="GOT")
    nothing: str | None = None


async def _host(request: Request) -> str:
    return request.headers["host"]


Host = Annotated[str, Depends(_host)]


async def _known(part: Annotated[str, Path(description="Of the path.")], host: Host) -> str:
    if part == "unknown":
        raise ApiError(404, f"nothing is called so at {host}")
    return part


Known = Annotated[str, Depends(_known)]
Key = Annotated[str | None, Header(alias="X-Key", pattern="^[a-z]+$")]
Limit = Annotated[int, Query(ge=1)]


async def _set(body: TimeoutBody, known: Known, host: Host, key: Key = None) -> Answer:
    return Answer(GOT={"body": body.model_dump(), "known": known, "host": host, "key": key})


async def _change(body: NetworkUpdateBody, known: Known) -> None:
    if body.allow_out == ["raise"]:
        raise ApiError(409, f"not to {known}")


async def _show(known: Known, limit: Limit = 7) -> Answer:
    return Answer(GOT={"known": known, "limit": limit, "text": "\N{SNOWMAN}"})


async def _restricted(part: Annotated[str, Path(pattern="^[a-z]+$")]) -> Answer:
    return Answer(GOT={"part": part})


async def _two(one: TimeoutBody, two: TimeoutBody) -> None:
    return None


async def _response(known: Known, response: Response) -> None:
    response.headers["x-known"] = known


async def _list(known: Known) -> list[str]:
    return [known]


def _plain(part: str) -> Answer:
    return Answer(GOT={"part": part})


def _app(router: APIRouter) -> FastAPI:
    router.add_api_route(
        "/{part}/set", _set, methods=["POST"], status_code=201, response_model_exclude_none=True
    )
    router.add_api_route("/{part}/change", _change, methods=["PUT"], status_code=204)
    router.add_api_route("/{part}/show", _show)
    router.add_api_route("/{part}/restricted", _restricted)
    router.add_api_route("/two", _two, methods=["POST"], status_code=204)
    router.add_api_route("/{part}/response", _response, status_code=204)
    router.add_api_route("/{part}/list", _list)
    router.add_api_route("/{part}/plain", _plain)
    app = FastAPI(routes=router.routes)
    errors.install(app, app.routes)
    return app


@pytest.fixture(scope="module")
def direct() -> FastAPI:
    """With direct routes."""
    return _app(new_router("test"))


@pytest.fixture(scope="module")
def general() -> FastAPI:
    """With FastAPI's."""
    return _app(APIRouter(strict_content_type=False))


def _client(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


_GOOD = b'{"timeout": 5}'
_JSON = {"content-type": "application/json"}
REQUESTS: list[tuple[str, str, bytes | None, dict[str, str]]] = [
    ("POST", "/a/set", _GOOD, _JSON),
    ("POST", "/a%20b/set", _GOOD, _JSON),
    ("POST", "/unknown/set", _GOOD, _JSON),
    ("POST", "/unknown/set", b"{", _JSON),
    ("POST", "/a/set", _GOOD, {"content-type": "application/json; charset=utf-8"}),
    ("POST", "/a/set", _GOOD, {"content-type": "application/merge-patch+json"}),
    ("POST", "/a/set", _GOOD, {"content-type": "text/plain"}),
    ("POST", "/a/set", _GOOD, {}),
    ("POST", "/a/set", None, _JSON),
    ("POST", "/a/set", b"{", _JSON),
    ("POST", "/a/set", b"\xff", _JSON),
    ("POST", "/a/set", '{"timeout": 5}'.encode("utf-16"), _JSON),
    ("POST", "/a/set", gzip.compress(_GOOD), _JSON | {"content-encoding": "gzip"}),
    ("POST", "/a/set", b"[" * 100_000, _JSON),
    ("POST", "/a/set", b"null", _JSON),
    ("POST", "/a/set", b"[]", _JSON),
    ("POST", "/a/set", b'{"timeout": 5, "timeout": 6}', _JSON),
    ("POST", "/a/set", b'{"timeout": 5.0}', _JSON),
    ("POST", "/a/set", b'{"timeout": NaN}', _JSON),
    ("POST", "/a/set", b'{"timeout": 99999999999}', _JSON),
    ("POST", "/a/set", b'{"timeout": "5"}', _JSON),
    ("POST", "/a/set", b'{"timeout": 5, "more": 1}', _JSON),
    ("POST", "/a/set", _GOOD, _JSON | {"x-key": "abc"}),
    ("POST", "/a/set", _GOOD, _JSON | {"x-key": "123"}),
    ("POST", "/a/set?limit=x", _GOOD, _JSON),
    ("PUT", "/a/change", b"{}", _JSON),
    ("PUT", "/a/change", b'{"allowOut": ["raise"]}', _JSON),
    ("PUT", "/a/change", b'{"allowOut": ["\\ud800"]}', _JSON),
    ("PUT", "/a/change", b'{"mode": "neither"}', _JSON),
    ("GET", "/a/show", None, {}),
    ("GET", "/a/show?limit=3", None, {}),
    ("GET", "/a/show?limit=0", None, {}),
    ("GET", "/a/show?other=1", None, {}),
    ("GET", "/a/restricted", None, {}),
    ("GET", "/1/restricted", None, {}),
    ("POST", "/two", b'{"one": {"timeout": 1}, "two": {"timeout": 2}}', _JSON),
    ("POST", "/two", _GOOD, _JSON),
    ("GET", "/a/response", None, {}),
    ("GET", "/a/list", None, {}),
    ("GET", "/a/plain", None, {}),
    ("GET", "/a/set", None, {}),
    ("GET", "/nowhere", None, {}),
]


@pytest.mark.parametrize(("method", "path", "content", "headers"), REQUESTS)
async def test_a_direct_route_answers_as_fastapis_own_does(
    direct: FastAPI,
    general: FastAPI,
    method: str,
    path: str,
    content: bytes | None,
    headers: dict[str, str],
) -> None:
    answers = []
    for app in (direct, general):
        async with _client(app) as client:
            answer = await client.request(method, path, content=content, headers=headers)
            kept = answer.headers.get("content-type") if answer.content else None
            answers.append(
                (answer.status_code, answer.content, kept, answer.headers.get("x-known"))
            )
    assert answers[0] == answers[1]
    assert answers[0][0] != 500


async def test_what_is_usual_does_not_go_fastapis_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(_: Request) -> Response:
        return Response(status_code=418)

    monkeypatch.setattr(APIRoute, "get_route_handler", lambda _: refuse)
    async with _client(_app(new_router("test"))) as client:
        answer = await client.post("/a/set", content=_GOOD, headers=_JSON)
        assert answer.status_code == 201
        assert answer.json() == {
            "GOT": {"body": {"timeout": 5}, "known": "a", "host": "test", "key": None}
        }
        assert (await client.put("/a/change", json={})).status_code == 204
        assert (await client.get("/a/show")).status_code == 200
        # What a parameter stands for, and what must be put into words.
        for path, content, more in (
            ("/a/set", b"{}", {}),
            ("/a/set?x=1", b"{", {}),
            ("/a/set", _GOOD, {"x-key": "abc"}),
        ):
            answer = await client.post(path, content=content, headers=_JSON | more)
            assert answer.status_code == 418
        assert (await client.get("/a/show?limit=3")).status_code == 418
        for path in ("restricted", "response", "list", "plain"):
            assert (await client.get(f"/a/{path}")).status_code == 418, path


def test_what_is_asked_for_most_is_direct() -> None:
    found = {
        (method, route.path): route.direct
        for route in create_app().routes
        if isinstance(route, DirectRoute)
        for method in route.methods or ()
    }
    for method, path in (
        ("POST", "/v2/sandboxes"),
        ("POST", "/sandboxes"),
        ("GET", "/sandboxes/{sandbox_id}"),
        ("DELETE", "/sandboxes/{sandbox_id}"),
        ("POST", "/sandboxes/{sandbox_id}/timeout"),
        ("PUT", "/sandboxes/{sandbox_id}/network"),
    ):
        assert found[method, path], (method, path)
