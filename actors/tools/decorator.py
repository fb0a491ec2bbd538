"""`@tool`: a function with annotations becomes a tool, and stays a function."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any, Generic, Literal, ParamSpec, TypeAlias, TypeVar, overload

import attrs
import msgspec

from ropewalk.actors.errors import InvalidTool
from ropewalk.actors.tools.context import ToolContext
from ropewalk.actors.tools.docstrings import parameter_texts, without_parameters
from ropewalk.actors.tools.kinds import underlying
from ropewalk.actors.tools.schema import read_signature
from ropewalk.actors.tools.tool import Errors, Replay, Tool, ToolCall

__all__ = ["FunctionTool", "tool"]

P = ParamSpec("P")
R = TypeVar("R")
Binding: TypeAlias = Literal["object", "class"]


@attrs.frozen(eq=False)
class FunctionTool(Tool, Generic[P, R]):
    """A tool made from a function by `tool`; calling it runs the plain function, without checks and conversion."""

    function: Callable[P, R] = attrs.field(kw_only=True, repr=False)
    arguments: Any = attrs.field(kw_only=True, repr=False)
    context_names: tuple[str, ...] = attrs.field(kw_only=True, repr=False)
    binding: Binding | None = attrs.field(kw_only=True, repr=False)
    """What a method still has to be bound to; such a tool is taken from an object or class, not given to an agent."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> FunctionTool[..., R]:
        """The tool of one object (or class), for a function decorated in a class body."""
        target = owner if self.binding == "class" else instance
        if self.binding is None or target is None:
            return self
        bound: Callable[..., R] = MethodType(self.function, target)
        return attrs.evolve(self, call=_caller(bound, self.context_names), function=bound, binding=None)

    @property
    def __wrapped__(self) -> Callable[P, R]:
        return self.function

    @property
    def __name__(self) -> str:
        return str(getattr(self.function, "__name__", self.name))

    def convert(self, tool_input: dict[str, Any]) -> dict[str, Any]:
        """The keyword arguments of the function, converted to its annotations; raises `msgspec.ValidationError` naming the place."""
        converted: dict[str, Any] = msgspec.convert(tool_input, self.arguments, strict=False)
        return converted

    def _implementation(self) -> Callable[..., Any]:
        return self.function


def _caller(function: Callable[..., Any], context_names: tuple[str, ...]) -> ToolCall:
    def call(arguments: dict[str, Any], context: ToolContext) -> Any:
        return function(**arguments)

    def call_with_context(arguments: dict[str, Any], context: ToolContext) -> Any:
        return function(**arguments, **dict.fromkeys(context_names, context))

    return call_with_context if context_names else call


@overload
def tool(function: Callable[P, R], /) -> FunctionTool[P, R]: ...


@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float | None = None,
    replay: Replay = "never",
    concurrency: int | None = None,
    errors: Errors = "full",
) -> Callable[[Callable[P, R]], FunctionTool[P, R]]: ...


def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    **options: Any,
) -> Any:
    """Make a tool of a function: ``@tool``, or ``@tool(name=..., timeout=...)``.

    Its name, description and schema come from the function's name, docstring and annotations. A parameter is described by a
    string in its `Annotated`, else by the docstring. A parameter annotated `ToolContext` gets the call's context and is not
    shown to the model. Raises `InvalidTool`, which names the tool, the parameter and the cure.

    :param name: instead of the function's own.
    :param description: instead of the docstring without its section on parameters.
    :param options: `timeout`, `replay`, `concurrency`, `errors`, as for `Tool`.
    """
    if function is None:
        return partial(_made, name=name, description=description, options=options)
    return _made(function, name, description, options)


def _made(function: Any, name: str | None, description: str | None, options: dict[str, Any]) -> FunctionTool[..., Any]:
    if isinstance(function, Tool):
        raise InvalidTool(f"tool {function.name!r} is a tool already; decorate the function once")
    of_class = isinstance(function, classmethod)
    function = getattr(function, "__func__", function) if isinstance(function, staticmethod | classmethod) else function
    if not callable(function) or isinstance(function, type):
        raise InvalidTool(f"{function!r} is not a function; write @tool above a function, or @tool(name=...)")
    source = underlying(function)
    if name is None and (name := getattr(function, "__name__", None)) is None:
        raise InvalidTool(f"{function!r} has no name of its own; write tool(name=...)")
    documented = source.__doc__ or ""
    signature = read_signature(name, function, parameter_texts(documented))
    return FunctionTool(
        name,
        without_parameters(documented) or name if description is None else description,
        signature.input_schema,
        _caller(function, signature.context_names),
        function=function,
        arguments=signature.arguments,
        context_names=signature.context_names,
        binding=("class" if of_class else "object") if signature.needs_binding else None,
        **options,
    )
