"""A route for handlers that are asked very often: what they need is handed to them without FastAPI's general search."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, get_origin
from urllib.parse import parse_qsl

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.middleware import Middleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.bodies import read_json
from app.api.dependencies import caller_of, get_caller, get_resources, require
from app.storage.keys import ApiKey

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class DirectRoute(APIRoute):
    """Calls `handler(resources, caller, query)` itself, the query being one Pydantic model; and hands on the request,
    too, where the handler takes that as its last argument.

    The handler's signature and its dependencies remain those of any other route: FastAPI documents them, this obeys
    them. FastAPI would walk the tree of dependencies and each field of the model anew for every request, which takes
    longer than most answers (docs/performance.md). Raises TypeError at start-up for a handler that asks for more.
    """

    def get_route_handler(self) -> Handler:
        handler, model, required = self.endpoint, self._query_model(), _required(self)
        several = (list, tuple)
        lists = frozenset(name for name, field in model.model_fields.items() if get_origin(field.annotation) in several)
        takes_request = self.dependant.request_param_name is not None

        async def handle(request: Request) -> Response:
            caller, resources = _admitted(request, required), request.app.state.resources
            query = _validated(model, lists, request.scope["query_string"])
            more = (request,) if takes_request else ()
            response: Response = await handler(resources, caller, query, *more)
            return response

        return handle

    def _query_model(self) -> type[BaseModel]:
        asked, fields = self.dependant, self.dependant.query_params
        others = [*asked.path_params, *asked.header_params, *asked.cookie_params, *asked.body_params]
        calls = [each.call for each in asked.dependencies if not isinstance(each.call, require)]
        model = fields[0].field_info.annotation if len(fields) == 1 else None
        if (
            others
            or calls != [get_resources, get_caller]
            or not isinstance(model, type)
            or not issubclass(model, BaseModel)
        ):
            raise TypeError(f"{self.path}: a DirectRoute's handler takes (resources, caller, query) and nothing else")
        return model


class DirectBodyRoute(APIRoute):
    """A DirectRoute that calls `handler(resources, raw)`, `raw` being a `bodies.RawBody`. Who may not write is told so
    before the body is read."""

    def get_route_handler(self) -> Handler:
        handler, asked, required = self.endpoint, self.dependant, _required(self)
        calls = [each.call for each in asked.dependencies if not isinstance(each.call, require)]
        if calls != [get_resources, read_json] or asked.query_params or asked.path_params or asked.header_params:
            raise TypeError(f"{self.path}: a DirectBodyRoute's handler takes (resources, raw) and nothing else")

        async def handle(request: Request) -> Response:
            _admitted(request, required)
            response: Response = await handler(request.app.state.resources, await read_json(request))
            return response

        return handle


def install_shortcut(app: FastAPI, routes: Iterable[BaseRoute]) -> None:
    """Puts a `Shortcut` to these routes before the application's layers, when all of its own have been added."""
    app.middleware_stack = Shortcut(
        app.build_middleware_stack(), routes=routes, layers=app.user_middleware, errors=app.exception_handlers
    )


class Shortcut:
    """Takes what asks for a direct route to its handler, through the application's own layers alone, past FastAPI's,
    Starlette's and the router, which search, or prepare what no such handler needs: more than a third of what a bare
    answer of FastAPI's costs."""

    def __init__(
        self, app: ASGIApp, *, routes: Iterable[BaseRoute], layers: Sequence[Middleware], errors: Mapping[Any, Any]
    ) -> None:
        """app: for all else. routes: of which those are taken that are direct and whose path is fixed. layers: around
        their handlers, the outermost first. errors: the application's handlers of exceptions"""
        self._app = app
        self._routes = {
            (method, route.path): (route, route.get_route_handler())
            for route in routes
            if isinstance(route, (DirectRoute, DirectBodyRoute)) and "{" not in route.path
            for method in route.methods or ()
        }
        # A bug is for who stands around all of it, as it is on any other route.
        foreseen = {error: answer for error, answer in errors.items() if error is not Exception}
        self._answered: ASGIApp = ExceptionMiddleware(self._answer, handlers=foreseen)
        for layer, arguments, options in reversed(layers):
            self._answered = layer(self._answered, *arguments, **options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_ours = scope["type"] == "http" and (scope["method"], scope["path"]) in self._routes
        await (self._answered if is_ours else self._app)(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The metrics name an answer by its route.
        scope["route"], handle = self._routes[scope["method"], scope["path"]]
        response = await handle(Request(scope, receive, send))
        await response(scope, receive, send)


def _required(route: APIRoute) -> list[require]:
    return [each.call for each in route.dependant.dependencies if isinstance(each.call, require)]


def _admitted(request: Request, required: Sequence[require]) -> ApiKey:
    """Whose request it is; as FastAPI's dependencies would find it."""
    caller = caller_of(request)
    for scope in required:
        scope.of(caller)
    return caller


def _validated(model: type[BaseModel], lists: frozenset[str], query: bytes) -> BaseModel:
    """As FastAPI reads a query model: the last value of a name, all of them where the field is a list or tuple."""
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    given: dict[str, Any] = dict(pairs)
    for name in lists & given.keys():
        given[name] = [value for each, value in pairs if each == name]
    try:
        return model.model_validate(given)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise RequestValidationError([{**each, "loc": ("query", *each["loc"])} for each in found]) from error
