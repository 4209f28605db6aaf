"""Does a value have the type that a handler's parameter names? `message: str` gets text, `message: Question` a pydantic model.

As in FastAPI: pydantic reads the value, and a client that sends another type has made a mistake (400 `bad_request`, before the
handler runs). A parameter without an annotation, and one whose annotation pydantic does not know, gets the value as it is.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from deployments.request.openai import BadField

Check = Callable[[object], object]

CHECKED = frozenset(("message", "session_id", "user_id"))  # what clients send; the other parameters are made here
_SHOWN = 3  # mistakes in one value


def check_of(function: Callable[..., object], parameter: inspect.Parameter) -> Check | None:
    """Returns the value in the parameter's type, or raises BadField. None: any value will do."""
    annotation = _resolved(function, parameter.annotation)
    if parameter.name not in CHECKED or annotation in (parameter.empty, Any, object):
        return None
    if annotation is str:
        return lambda value: _text(parameter.name, value)
    try:
        return _by_pydantic(parameter.name, annotation)
    except Exception:  # not a type that pydantic knows
        return None


def _resolved(function: Callable[..., object], annotation: Any) -> Any:
    """The annotation itself, where `from __future__ import annotations` has left its text; without one, `empty`."""
    if annotation is inspect.Parameter.empty:
        return annotation
    function = inspect.unwrap(getattr(function, "func", function))
    if not inspect.isroutine(function):
        function = type(function).__call__
    scope = getattr(inspect.unwrap(getattr(function, "__func__", function)), "__globals__", {})
    one: Any = SimpleNamespace(__annotations__={"value": annotation})
    try:
        return typing.get_type_hints(one, scope, include_extras=True)["value"]
    except Exception:  # a name that the module does not have, such as one under TYPE_CHECKING
        return inspect.Parameter.empty


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise BadField(name, "must be a string")
    return value


def _by_pydantic(name: str, annotation: Any) -> Check:
    from pydantic import TypeAdapter, ValidationError

    adapter: TypeAdapter[Any] = TypeAdapter(annotation)

    def check(value: object) -> object:
        try:
            return adapter.validate_python(value)
        except ValidationError as error:
            mistakes = error.errors(include_url=False, include_context=False, include_input=False)
            raise BadField(name, "; ".join(_sentence(each) for each in mistakes[:_SHOWN])) from None

    return check


def _sentence(mistake: Any) -> str:
    path, problem = ".".join(str(step) for step in mistake["loc"]), mistake["msg"]
    return f"{path}: {problem}" if path else problem
