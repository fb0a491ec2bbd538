"""Four tools such as an assistant has, and eight plain requests, two for each: what a model is tried with that is to call tools."""

from __future__ import annotations

from ropewalk.actors.tool_check.check import Request
from ropewalk.actors.tools import tool

__all__ = ["REQUESTS", "TOOLS"]


@tool
def get_weather(city: str) -> str:
    """The weather in a city now."""
    return f"{city}: sunny, 21 degrees"


@tool
def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression."""
    return "42"


@tool
def current_time(timezone: str) -> str:
    """The current time in a time zone."""
    return "10:42"


@tool
def send_email(to: str, subject: str, body: str) -> str:
    """Send an email to somebody."""
    return "sent"


TOOLS = (get_weather, calculator, current_time, send_email)

REQUESTS = (
    Request("What is the weather in Berlin?", "get_weather", {"city": "Berlin"}),
    Request("How much is 17 * 23?", "calculator", {"expression": "17 * 23"}),
    Request("What time is it in Tokyo?", "current_time", {"timezone": "Asia/Tokyo"}),
    Request("Send an email to anna@example.com saying that I am late.", "send_email", {"to": "anna@example.com"}),
    Request("Is it raining in London today?", "get_weather", {"city": "London"}),
    Request("Compute 144 / 12 please.", "calculator", {"expression": "144 / 12"}),
    Request("Tell me the current time in New York.", "current_time", {"timezone": "America/New_York"}),
    Request("Please email bob@example.com the subject Lunch and ask if he is free.", "send_email", {"to": "bob@example.com"}),
)
