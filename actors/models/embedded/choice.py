"""Which tool a request asks for, decided by a model of 135 million parameters.

Asked to write a tool's name it would write the first one it was shown. So it is not asked to write: the likelihood it gives
to each name is compared, in two prompts that show the tools in opposite order, less half of the likelihood each name has
after a request that says nothing (contextual calibration, after Zhao et al. 2021). Pure: what is to be asked, and what the
answers come to.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from ropewalk.actors.models.embedded.examples import Example, example_of

__all__ = ["NO_TOOL", "Candidate", "Question", "best", "branches", "candidates", "filling", "questions"]

NO_TOOL = "chat"
NO_TOOL_DESCRIPTION = "Anything else: greetings, thanks, jokes, general questions."
NO_TOOL_REQUESTS = ("Hello!", "Who was Napoleon?", "What is bread made of?")
EMPTY_REQUESTS = ("N/A", "...", "Something.", "[request]")
CALIBRATION = 0.5
"""How much of a name's likelihood without a request is taken away."""
UNSEEN = -25.0
"""The logarithm of the likelihood of what was not even listed."""
LONGEST_DESCRIPTION = 160
LONGEST_REQUEST = 1200


@attrs.frozen
class Candidate:
    """A tool, or no tool, whose `spec` is empty: its `label` is what stands for it in the prompts."""

    label: str
    description: str
    example: Example
    spec: Mapping[str, Any] = attrs.field(factory=dict[str, Any])


@attrs.frozen
class Question:
    """A prompt after which the likelihood of every label is wanted; `before` stands between it and the label. `weight` is how much it counts."""

    prompt: str
    before: str
    weight: float


def candidates(tool_specs: Sequence[Mapping[str, Any]]) -> list[Candidate]:
    """What may be chosen, no tool last."""
    made: list[Candidate] = []
    for spec in tool_specs:
        description = " ".join(str(spec.get("description") or "").split())[:LONGEST_DESCRIPTION]
        example = example_of(spec["name"], description, spec["inputSchema"]["json"])
        made.append(Candidate(f"{spec['name']}_tool" if spec["name"] == NO_TOOL else spec["name"], description, example, spec))
    return [*made, Candidate(NO_TOOL, NO_TOOL_DESCRIPTION, Example(NO_TOOL_REQUESTS[0], {}))]


def questions(options: Sequence[Candidate], request: str) -> list[Question]:
    """The prompts to ask about one request, those about requests that say nothing included: they are the same each time."""
    asked = [Question(*prompt, 1.0) for prompt in _prompts(options, request[-LONGEST_REQUEST:])]
    for empty in EMPTY_REQUESTS:
        asked += [Question(*prompt, -CALIBRATION / len(EMPTY_REQUESTS)) for prompt in _prompts(options, empty)]
    return asked


def _prompts(options: Sequence[Candidate], request: str) -> Iterator[tuple[str, str]]:
    *tools, none = options
    listed = "\n".join(f"- {option.label}: {option.description}" for option in [*reversed(tools), none])
    no_tool = [(text, none.label) for text in NO_TOOL_REQUESTS]
    shown = no_tool + [(tool.example.request, tool.label) for tool in reversed(tools)]
    turns = "".join(f"{_turn('user', text)}{_turn('assistant', label)}" for text, label in shown)
    yield f"{_turn('system', 'Pick the tool for each request.' + chr(10) + listed)}{turns}{_turn('user', request)}<|im_start|>assistant\n", ""
    listed = "\n".join(f"- {option.label}: {option.description}" for option in options)
    shown = [(tool.example.request, tool.label) for tool in tools] + no_tool
    yield f"Tools:\n{listed}\n\n" + "".join(f"Request: {text}\nTool: {label}\n\n" for text, label in shown) + f"Request: {request}\nTool:", " "


def _turn(role: str, text: str) -> str:
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


def branches(labels: Mapping[str, Sequence[int]]) -> Iterator[tuple[tuple[int, ...], dict[int, list[str]]]]:
    """Where labels, as tokens, part from one another: what they have in common up to there, and which go on with which token."""
    waiting: list[tuple[tuple[int, ...], list[str]]] = [((), list(labels))]
    while waiting:
        common, names = waiting.pop()
        ways: dict[int, list[str]] = {}
        for name in names:
            # One that ends where others go on ends in what no token is.
            token = labels[name][len(common)] if len(labels[name]) > len(common) else -1
            ways.setdefault(token, []).append(name)
        if len(ways) > 1:
            yield common, ways
        waiting += [((*common, token), those) for token, those in ways.items() if len(those) > 1 and token != -1]


def best(options: Sequence[Candidate], scores: Sequence[tuple[float, Mapping[str, float]]]) -> Candidate:
    """The option that all questions together speak for. `scores` are the weight of each and the logarithm of the likelihood of each label."""
    total = dict.fromkeys((option.label for option in options), 0.0)
    for weight, likelihoods in scores:
        given = {label: likelihoods.get(label, UNSEEN) for label in total}
        highest = max(given.values())
        whole = highest + math.log(sum(math.exp(likelihood - highest) for likelihood in given.values()))
        for label, likelihood in given.items():
            total[label] += weight * (likelihood - whole)
    return max(options, key=lambda option: total[option.label])


def filling(option: Candidate, request: str) -> tuple[str, list[dict[str, Any]]]:
    """The system prompt and the messages after which the model writes the input of a tool."""
    schema = option.spec["inputSchema"]["json"]
    told = "".join(f"\n- {name}: {part.get('description') or part.get('type', 'any')}" for name, part in schema.get("properties", {}).items())
    system = f"Write the input of {option.label} for the request, as JSON, with the words of the request.\n{option.description}{told}"
    shown = [("user", option.example.request), ("assistant", json.dumps(option.example.input, ensure_ascii=False)), ("user", request[-LONGEST_REQUEST:])]
    return system, [{"role": role, "content": [{"text": text}]} for role, text in shown]
