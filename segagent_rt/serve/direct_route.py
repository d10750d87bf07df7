"""Routes whose endpoints are called at once, once path, query and body have been checked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable
from inspect import Parameter, signature
from typing import Any, TypeAlias, TypeVar, get_type_hints

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.routing import Match

from segagent_rt.errors import InputError
from segagent_rt.serve.guard import App, Receive, Scope, Send

B = TypeVar("B", bound=BaseModel)

AnswerError: TypeAlias = Callable[[Request, Exception], Awaitable[Response]]

JSON = "application/json"


class DirectRoute(APIRoute):
    """A route that FastAPI documents, without its dependency injection.

    An endpoint takes the `Request`, parameters of the path and of the query, and a pydantic model
    as its body.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        endpoint, hints = self.endpoint, get_type_hints(self.endpoint, include_extras=True)
        wanted = signature(endpoint).parameters
        requests = [name for name in wanted if hints[name] is Request]
        bodies = {name: hints[name] for name in wanted if _is_model(hints[name])}
        others = [name for name in wanted if name not in requests and name not in bodies]
        paths = {name: TypeAdapter(hints[name]) for name in others if name in self.param_convertors}
        queries = {
            name: (TypeAdapter(hints[name]), wanted[name].default)
            for name in others
            if name not in paths
        }

        async def handle(request: Request) -> Response:
            values: dict[str, Any] = dict.fromkeys(requests, request)
            for name, adapter in paths.items():
                values[name] = _checked(adapter, name, request.path_params[name])
            sent = request.query_params if request.scope["query_string"] else {}
            for name, (adapter, default) in queries.items():
                given = sent.get(name, default)
                if given is Parameter.empty:
                    raise InputError(f"the request lacks `{name}`", hint=f"add ?{name}=...")
                values[name] = given if given is default else _checked(adapter, name, given)
            for name, model in bodies.items():
                if not is_json(request):
                    raise InputError("the body is not JSON", hint=f"send it as {JSON}")
                values[name] = parse_body(await request.body(), model)
            answer: Response = await endpoint(**values)
            return answer

        return handle


class DirectRoutes:
    """Answers some routes of an application before its middleware, and leaves it the others.

    FastAPI's way from a request to an endpoint is a noticeable part of what the server adds to the
    time of a click.

    Args:
        app: has the routes as well: it describes them, and answers other methods of their paths.
        routes: tried in their order.
        answer_error: makes an answer of whatever an endpoint raises.
    """

    def __init__(self, app: App, routes: Iterable[DirectRoute], answer_error: AnswerError) -> None:
        self._app, self._answer_error = app, answer_error
        self._routes = [(route, route.get_route_handler()) for route in routes]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        for route, handle in self._routes if scope["type"] == "http" else ():
            match, found = route.matches(scope)
            if match is Match.FULL:
                scope.update(found)
                request = Request(scope, receive)
                try:
                    answer = await handle(request)
                except Exception as error:
                    answer = await self._answer_error(request, error)
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)


def is_json(request: Request) -> bool:
    """Whether a request says that its body is JSON. Forms of foreign pages cannot say so."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == JSON


def parse_body(content: bytes, model: type[B]) -> B:
    """A JSON body as a model.

    Raises:
        InputError: it is no JSON, or not as the model says.
    """
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise InputError(first_problem(error.errors(include_input=False))) from None


def first_problem(errors: Any) -> str:
    """The first of pydantic's errors in one sentence, without what the client sent."""
    first = errors[0] if errors else {}
    place = ".".join(str(each)[:60] for each in first.get("loc", ()) if each != "body")
    return f"{place or 'the request'}: {first.get('msg', 'is not valid')}"


def _is_model(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, BaseModel)


def _checked(adapter: TypeAdapter[Any], name: str, given: Any) -> Any:
    try:
        return adapter.validate_python(given)
    except ValidationError as error:
        problem = first_problem(error.errors(include_input=False))
        raise InputError(f"{name}: {problem.partition(': ')[2]}") from None
