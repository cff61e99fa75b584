"""Routers whose routes find out by themselves what to call their functions with.

FastAPI's way to do so is general, and takes longer than most of our functions. A
:class:`DirectRoute` knows what those take: dependencies, a part of the path, a model of the body.
A request that has more than that (a query, a header that stands for a parameter), or a body that is
not JSON or not valid, goes FastAPI's way, which finds the words for errors. So what is valid is
said in one place, as is what the OpenAPI document says.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from fastapi import APIRouter, Request, Response
from fastapi.params import Depends, Header, Path, Query
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from sandgate.api.errors import declared

_Handler = Callable[[Request], Coroutine[Any, Any, Response]]
_Binder = Callable[[Request], Awaitable[Any]]
_JSON = "application/json"


class _Unusual(Exception):
    """FastAPI's way is the one for this request."""


class DirectRoute(APIRoute):
    """A route whose function, a coroutine, returns a model or None; others are as with FastAPI.

    A dependency is called as often as it is named: it should do no more than look something up.
    """

    direct: bool
    """Whether it is such a route."""

    def get_route_handler(self) -> _Handler:
        """What answers requests (FastAPI calls it once, from its constructor)."""
        general = super().get_route_handler()
        binders = None if self.dependencies else _binders(self.endpoint, may_have_body=True)
        returned = get_type_hints(self.endpoint).get("return")
        self.direct = binders is not None and (returned is type(None) or _is_model(returned))
        if binders is None or not self.direct:
            return general
        function, status = self.endpoint, self.status_code or 200
        without_none = self.response_model_exclude_none

        async def handle(request: Request) -> Response:
            try:
                values = await _bind(binders, request)
            except (_Unusual, ClientDisconnect):
                return await general(request)
            answer: BaseModel | None = await function(**values)
            if answer is None:
                return Response(status_code=status)
            text = answer.model_dump_json(by_alias=True, exclude_none=without_none)
            return Response(text, status, media_type=_JSON)

        return handle


def new_router(tag: str, statuses: Iterable[int] = ()) -> APIRouter:
    """A router of direct routes, all of which may answer with these error statuses."""
    return APIRouter(
        tags=[tag],
        responses=declared(statuses),
        route_class=DirectRoute,
        strict_content_type=False,
    )


async def _bind(binders: Mapping[str, _Binder], request: Request) -> dict[str, Any]:
    return {name: await binder(request) for name, binder in binders.items()}


def _binders(
    function: Callable[..., Any], *, may_have_body: bool = False
) -> dict[str, _Binder] | None:
    """What gives the parameters of `function`; None if it or one of them is of another kind."""
    if not inspect.iscoroutinefunction(function):
        return None
    hints = get_type_hints(function, include_extras=True)
    found: dict[str, _Binder] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        hint, required = hints[name], parameter.default is inspect.Parameter.empty
        if required and _is_model(hint):
            binder = _body(hint) if may_have_body else None
            may_have_body = False  # several would be parts of one object
        elif required:
            binder = _required(name, hint)
        else:
            binder = _optional(hint, parameter.default)
        if binder is None:
            return None
        found[name] = binder
    return found


def _required(name: str, hint: Any) -> _Binder | None:
    if hint is Request:
        return _request
    if get_origin(hint) is not Annotated:
        return None
    kind, *notes = get_args(hint)
    match notes:
        case [Depends(dependency=dependency)] if dependency is not None:
            return _dependency(dependency)
        case [Path(metadata=[], alias=None)] if kind is str:
            return _part(name)
    return None


def _optional(hint: Any, default: object) -> _Binder | None:
    if get_origin(hint) is not Annotated:
        return None
    match get_args(hint)[1:]:
        case (Header(alias=str(alias)),):
            return _absent(lambda request: alias in request.headers, default)
        case (Query(),):
            return _absent(lambda request: bool(request.scope["query_string"]), default)
    return None


def _is_model(hint: object) -> bool:
    return isinstance(hint, type) and issubclass(hint, BaseModel)


async def _request(request: Request) -> Request:
    return request


def _dependency(function: Callable[..., Any]) -> _Binder | None:
    binders = _binders(function)
    if binders is None:
        return None

    async def call(request: Request) -> Any:
        return await function(**await _bind(binders, request))

    return call


def _part(name: str) -> _Binder:
    """A part of the path."""

    async def part(request: Request) -> Any:
        return request.path_params[name]

    return part


def _absent(is_given: Callable[[Request], bool], default: object) -> _Binder:
    """The default of what is hardly ever given."""

    async def absent(request: Request) -> object:
        if is_given(request):
            raise _Unusual
        return default

    return absent


def _body(model: type[BaseModel]) -> _Binder:
    async def body(request: Request) -> BaseModel:
        content = await request.body()
        if request.headers.get("content-type") != _JSON:
            raise _Unusual
        try:
            return model.model_validate(json.loads(content))
        except (ValueError, RecursionError):  # errors of json and pydantic are ValueErrors
            raise _Unusual from None

    return body
