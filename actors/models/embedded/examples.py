"""One example of a tool's use, made from its name, description and schema alone.

A small model copies what it was shown better than it follows what it was told, so each tool is shown once: a request in
plain words and the input that answers it. The values are taken from the schema where it has any (`const`, `enum`,
`examples`, `default`, "such as ..." in a description), else from a table of what parameters of such names usually hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import attrs

__all__ = ["Example", "example_of", "sample"]

USUAL: dict[str, Any] = {
    "amount": 20,
    "body": "See you soon.",
    "city": "Paris",
    "color": "blue",
    "command": "status",
    "content": "See you soon.",
    "count": 3,
    "country": "Spain",
    "currency": "EUR",
    "date": "2026-05-01",
    "day": "Friday",
    "description": "a short text",
    "destination": "Lisbon",
    "email": "tom@example.com",
    "expression": "2 + 2",
    "file": "notes.txt",
    "filename": "notes.txt",
    "from": "Madrid",
    "id": "A1",
    "item": "lamp",
    "key": "colour",
    "language": "Spanish",
    "limit": 5,
    "location": "Paris",
    "message": "See you soon.",
    "minutes": 10,
    "month": "May",
    "name": "Anna",
    "nights": 1,
    "note": "buy milk",
    "number": 7,
    "origin": "Madrid",
    "path": "notes.txt",
    "phone": "555-0100",
    "price": 20,
    "product": "lamp",
    "quantity": 5,
    "query": "history of tea",
    "question": "history of tea",
    "recipient": "tom@example.com",
    "subject": "Hello",
    "symbol": "ACME",
    "text": "good night",
    "time": "10:00",
    "timezone": "UTC",
    "title": "Imagine",
    "to": "tom@example.com",
    "unit": "metre",
    "url": "https://example.com",
    "user": "Anna",
    "value": 20,
    "year": 2026,
}
PLAIN: dict[str, Any] = {"string": "something", "integer": 3, "number": 2.5, "boolean": True, "null": None}
SUCH_AS = re.compile(r"(?:such as|for example|e\.g\.,?|like)\s+[\"'`]?([^\"'`,;.()]+(?:\.\d+)?)", re.IGNORECASE)
DEEPEST = 6


@attrs.frozen
class Example:
    """A request and the input of the tool that answers it."""

    request: str
    input: dict[str, Any]


def example_of(name: str, description: str, schema: Mapping[str, Any]) -> Example:
    """An example for a tool; `schema` is the JSON schema of its input."""
    made = sample("", schema, schema)
    given: dict[str, Any] = made if isinstance(made, dict) else {}
    said = " ".join(description.split()).split(". ")[0].rstrip(".") or name.replace("_", " ")
    left: list[str] = []
    for parameter, value in given.items():
        # "The weather in a city" and city=Paris: the weather in Paris.
        words = re.sub(r"[_\s]+", "", parameter)
        pattern = r"\b(?:(?:an?|the|some|another)\s+)?" + r"\s?".join(map(re.escape, words)) + r"\b"
        said, found = re.subn(pattern, lambda _, value=value: _shown(value), said, count=1, flags=re.IGNORECASE)  # type: ignore[misc]
        if not found:
            left.append(_shown(value))
    return Example(_request(said, left), given)


def _request(said: str, left: list[str]) -> str:
    rest = ", ".join(left)
    if re.match(r"(the|an?)\b", said, re.IGNORECASE):
        return f"What is {said[0].lower()}{said[1:]}{' for ' + rest if rest else ''}?"
    if re.match(r"(how|what|when|where|who|which|whether)\b", said, re.IGNORECASE):
        return f"{said}{' for ' + rest if rest else ''}?"
    return f"{said}{': ' + rest if rest else ''}."


def _shown(value: object) -> str:
    return value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)


def sample(name: str, schema: Any, root: Mapping[str, Any], depth: int = 0) -> Any:
    """A value that a schema allows: of objects only what is required, of texts something a person would say."""
    if not isinstance(schema, Mapping) or depth > DEEPEST:
        return PLAIN["string"]
    schema = _resolved(schema, root)
    for key in ("const", "default"):
        if schema.get(key) is not None:
            return schema[key]
    for key in ("enum", "examples"):
        if isinstance(schema.get(key), list) and schema[key]:
            return schema[key][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(key), list) and schema[key]:
            return sample(name, schema[key][0], root, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object":
        properties = schema.get("properties", {})
        wanted = schema.get("required", ()) or list(properties)[:1]
        return {part: sample(part, properties.get(part, {}), root, depth + 1) for part in wanted}
    if kind == "array":
        return [sample(name.removesuffix("s"), schema.get("items", {}), root, depth + 1)]
    return _simple(name, str(kind), schema)


def _simple(name: str, kind: str, schema: Mapping[str, Any]) -> Any:
    told = SUCH_AS.search(str(schema.get("description", "")))
    if kind == "string":
        if told is not None:
            return told.group(1).strip()
        usual = next((USUAL[word] for word in [name.lower(), *reversed(re.split(r"[_\W]+", name.lower()))] if word in USUAL), PLAIN["string"])
        return str(usual)
    if kind in ("integer", "number"):
        usual = USUAL.get(name.lower())
        value = usual if isinstance(usual, int) else PLAIN[kind]
        low, high = schema.get("minimum"), schema.get("maximum")
        if isinstance(low, int | float) and value < low:
            value = low
        return high if isinstance(high, int | float) and value > high else value
    return PLAIN.get(kind, PLAIN["string"])


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = schema.get("$ref")
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return schema
    found: Any = root
    for part in reference[2:].split("/"):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else schema
