"""The tools a chat has unless it is told otherwise: small ones that reach nothing outside the process but the clock."""

from __future__ import annotations

import ast
import datetime
import math
import operator
import warnings
from collections.abc import Callable
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ropewalk.actors.tools import tool
from ropewalk.runtime.clock import Clock
from ropewalk.runtime.runtime import enclosing_runtime

__all__ = ["DEMONSTRATION_TOOLS", "calculate", "calculator", "current_time"]

MOST_CHARACTERS = 300
MOST_BITS = 10_000

Number = int | float

BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
CONSTANTS = {"pi": math.pi, "e": math.e, "tau": math.tau}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "min": min,
    "max": max,
    "round": round,
    **{name: getattr(math, name) for name in ("sqrt", "exp", "log", "log2", "log10", "sin", "cos", "tan", "asin", "acos", "atan", "atan2", "floor", "ceil")},
    **{name: getattr(math, name) for name in ("degrees", "radians", "hypot", "gcd", "lcm")},
}


@tool
async def calculator(expression: str) -> str:
    """Calculate an expression.

    Args:
        expression: arithmetic such as 17 * 23; there are + - * / // % **, parentheses, pi, e, sqrt(), log(), sin(), round(), min(), max()
    """
    return str(calculate(expression))


@tool
async def current_time(zone: str = "UTC") -> str:
    """The date and time now.

    Args:
        zone: a time zone such as UTC or Europe/Berlin
    """
    try:
        there = datetime.UTC if zone.upper() == "UTC" else ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"there is no time zone {zone!r:.100}; name one such as UTC or Europe/Berlin") from None
    runtime = enclosing_runtime()
    clock = Clock() if runtime is None else runtime.clock
    return datetime.datetime.fromtimestamp(clock.time(), there).strftime("%A, %Y-%m-%d %H:%M:%S %Z")


DEMONSTRATION_TOOLS = (calculator, current_time)


def calculate(expression: str) -> Number:
    """What an arithmetic expression comes to. Raises `ValueError` for what is none, and for numbers beyond 10,000 bits."""
    if len(expression) > MOST_CHARACTERS:
        raise ValueError(f"the expression has more than {MOST_CHARACTERS} characters")
    try:
        with warnings.catch_warnings(action="ignore"):  # of what only looks odd, such as 1or 2
            tree = ast.parse(expression.strip(), mode="eval")
        return _value(tree.body)
    except SyntaxError:
        raise ValueError(f"{expression!r} is not an arithmetic expression") from None
    except (ArithmeticError, TypeError) as error:
        raise ValueError(f"{expression!r} has no value: {error}") from None


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return _bounded(value)
        case ast.Name(id=name) if name in CONSTANTS:
            return CONSTANTS[name]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in UNARY:
            return _bounded(UNARY[type(op)](_value(operand)))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in BINARY:
            return _operation(BINARY[type(op)], _value(left), _value(right))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            return _bounded(FUNCTIONS[name](*map(_value, arguments)))
        case _:
            raise ValueError(f"{ast.unparse(node)!r} cannot be calculated: there are numbers, + - * / // % **, {', '.join([*CONSTANTS, *FUNCTIONS])}")


def _operation(operation: Callable[[Any, Any], Any], left: Number, right: Number) -> Number:
    # The size is known before: what would take a machine's whole memory is not begun.
    if operation is operator.pow and isinstance(left, int) and isinstance(right, int) and abs(left) > 1 and left.bit_length() * right > MOST_BITS:
        raise ValueError("the result is too large")
    return _bounded(operation(left, right))


def _bounded(value: Any) -> Number:
    if not isinstance(value, int | float):
        raise ValueError("the result is not a real number")
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise ValueError("the result is too large")
    return value
