"""The embedded model: the provider that Ropewalk brings with it."""

from __future__ import annotations

import importlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from ropewalk.actors.errors import ModelError
from ropewalk.actors.messages import Message
from ropewalk.actors.models.embedded.choice import UNSEEN, Candidate, Question, best, branches, candidates, filling, questions
from ropewalk.actors.models.embedded.packages import MODEL_NAME, model_file
from ropewalk.actors.models.embedded.plain import is_request, last_request, shown
from ropewalk.runtime.clock import Clock
from ropewalk.runtime.errors import InvalidOption

if TYPE_CHECKING:
    from ropewalk.actors.models.embedded.engine import Engine

__all__ = ["EmbeddedModel", "shared_model"]

LIKELIEST = 2000
"""Of how many tokens the likelihood is asked for."""
ANSWER = {"temperature": 0.0, "repeat_penalty": 1.1, "max_tokens": 400}
COPYING = {"repeat_penalty": 1.0, "max_tokens": 300}
"""For the input of a tool, which repeats the words of the request."""
LONGEST_TEXT = 200
CALIBRATIONS_KEPT = 1024


class EmbeddedModel:
    """A language model of 135 million parameters on this machine: no key, no network. Needs ``ropewalk models install``.

    A runtime that uses it keeps one engine process for it, from the first call to the last, restarted when it dies. As many
    answers as there are `slots` are written at once; more wait for one. A tool is called when the request asks for one; what
    it gave is then answered in words. Without a system prompt it is told to answer in one short sentence.

    :param context: how many tokens a conversation and its answer may have together.
    :param threads: how many the engine computes with; None is one a core, eight at most.
    :param params: merged into every request, such as ``{"temperature": 0.7, "max_tokens": 100}``. As they are, answers repeat.

    Raises `NoModel` where it is not installed.
    """

    def __init__(self, *, slots: int = 8, context: int = 2048, threads: int | None = None, params: Mapping[str, Any] | None = None) -> None:
        threads = min(8, os.cpu_count() or 1) if threads is None else threads
        for name, value in (("slots", slots), ("context", context), ("threads", threads)):
            if type(value) is not int or value < 1:
                raise InvalidOption(f"{name} is a whole number of at least 1, not {value!r:.200}")
        self.file = model_file()
        # This takes half a second, which no event loop should have to wait for.
        load_client()
        self.context_window = context
        self.slots = slots
        self.threads = threads
        self.params = {**ANSWER, **(params or {})}
        self._engines: dict[object, list[Engine]] = {}
        self._calibrations: dict[str, Mapping[str, float]] = {}
        self._tokenized: dict[str, tuple[int, ...]] = {}
        self._clock = Clock()

    def __repr__(self) -> str:
        return f"EmbeddedModel({MODEL_NAME!r}, slots={self.slots}, context={self.context_window})"

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[None]:
        """Keep the engine's process alive for the calls made in this event loop. Raises `ModelError` when it cannot be started."""
        from ropewalk.actors.models.embedded.engine import Engine, EngineSettings

        token = anyio.lowlevel.current_token()
        here = self._engines.setdefault(token, [])
        engine = Engine(EngineSettings(str(self.file), MODEL_NAME, self.slots, self.context_window, self.threads), self._clock)
        here.append(engine)
        try:
            async with anyio.create_task_group() as tasks:
                if engine is here[0]:
                    engine.want()
                    await tasks.start(engine.run)
                else:
                    tasks.start_soon(engine.run)
                try:
                    yield
                    here.remove(engine)  # whoever asks now asks another
                    await engine.left()
                finally:
                    tasks.cancel_scope.cancel()
        finally:
            if engine in here:
                here.remove(engine)
            if not here:
                self._engines.pop(token, None)

    @property
    def engine(self) -> Engine:
        """The engine of the running event loop. Raises `ModelError` outside `serving`."""
        here = self._engines.get(anyio.lowlevel.current_token())
        if not here:
            raise ModelError("the embedded model is used in a runtime, or inside `async with model.serving():`, which keeps its engine alive")
        return here[0]

    async def count_tokens(self, messages: Sequence[Message], *, system_prompt: str | None = None, tool_specs: Sequence[dict[str, Any]] = ()) -> int:
        """How many tokens the engine itself counts in a request. Tools take none: they are chosen in requests of their own."""
        from ropewalk.actors.models.openai_request import request_body

        seen, system_prompt = shown(messages, system_prompt)
        body = request_body(MODEL_NAME, seen, system_prompt=system_prompt)
        engine = self.engine
        with engine.used():
            counted = await engine.ask("POST", "/v1/chat/completions/input_tokens", {"messages": body["messages"]})
        return int(counted["input_tokens"])

    async def stream(
        self,
        messages: Sequence[Message],
        *,
        system_prompt: str | None = None,
        tool_specs: Sequence[dict[str, Any]] = (),
        tool_choice: dict[str, Any] | None = None,
        **options: Any,
    ) -> AsyncIterator[dict[str, Any]]:
        """The answer, or the call of a tool, as Converse chunks; see `Model.stream`."""
        engine = self.engine
        with engine.used():
            chosen = await self._choose(engine, messages, tool_specs, tool_choice)
            if chosen is not None and chosen.spec:
                answer = self._call(engine, chosen, last_request(messages))
            else:
                seen, system_prompt = shown(messages, system_prompt)
                params = self.params if is_request(messages) else {**self.params, "repeat_penalty": 1.0}
                answer = engine.answer(seen, system_prompt, params)
            async with aclosing(answer) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def _call(self, engine: Engine, chosen: Candidate, request: str) -> AsyncGenerator[dict[str, Any]]:
        """The call of the tool, its input written by the model, which its schema constrains."""
        system, asked = filling(chosen, request)
        schema = {"name": "input", "strict": True, "schema": bounded(chosen.spec["inputSchema"]["json"])}
        params = {**self.params, **COPYING, "response_format": {"type": "json_schema", "json_schema": schema}}
        call = {"toolUseId": f"call_{self._clock.new_id()}", "name": chosen.spec["name"]}
        yield {"contentBlockStart": {"contentBlockIndex": 0, "start": {"toolUse": call}}}
        async with aclosing(engine.answer(asked, system, params)) as chunks:
            async for chunk in chunks:
                if "contentBlockStart" not in chunk and "messageStart" not in chunk:
                    yield _as_input(chunk)

    async def _choose(
        self, engine: Engine, messages: Sequence[Message], tool_specs: Sequence[dict[str, Any]], tool_choice: dict[str, Any] | None
    ) -> Candidate | None:
        """The tool to call, None for an answer in words."""
        if not tool_specs or not is_request(messages):
            return None
        options = candidates(tool_specs)
        if tool_choice is not None and "tool" in tool_choice:
            return next((option for option in options if option.spec.get("name") == tool_choice["tool"]["name"]), None)
        if tool_choice is not None and "any" in tool_choice and len(options) == 2:
            return options[0]
        asked = questions(options, last_request(messages))
        allowed = options[:-1] if tool_choice is not None and "any" in tool_choice else options
        # One choice after the other: what their prompts have in common is then read once and not in every slot.
        async with engine.choosing:
            tokens = {before: {option.label: await self._tokens(engine, before + option.label) for option in options} for before in {q.before for q in asked}}
            return best(allowed, [(question.weight, await self._likelihoods(engine, question, tokens[question.before])) for question in asked])

    async def _tokens(self, engine: Engine, text: str) -> tuple[int, ...]:
        known = self._tokenized.get(text)
        if known is None:
            known = self._tokenized[text] = tuple((await engine.ask("POST", "/tokenize", {"content": text}))["tokens"])
        return known

    async def _likelihoods(self, engine: Engine, question: Question, labels: Mapping[str, tuple[int, ...]]) -> Mapping[str, float]:
        """The logarithm of the likelihood of each label after a prompt; of those that calibrate, as it was the first time."""
        is_calibration = question.weight < 0
        known = self._calibrations.get(question.prompt) if is_calibration else None
        if known is not None:
            return known
        found = dict.fromkeys(labels, 0.0)
        for common, ways in branches(labels):
            text = (await engine.ask("POST", "/detokenize", {"tokens": list(common)}))["content"] if common else ""
            asked = {"prompt": question.prompt + text, "n_predict": 1, "temperature": 0.0, "n_probs": LIKELIEST, "ignore_eos": True}
            # Where the one token written is half a letter, the engine gives no likelihoods at all: then nothing speaks for any.
            given = likelihoods_in((await engine.ask("POST", "/completion", asked)).get("completion_probabilities") or ())
            for token, names in ways.items():
                for name in names:
                    found[name] += given.get(token, UNSEEN)
        if is_calibration:
            if len(self._calibrations) >= CALIBRATIONS_KEPT:
                self._calibrations.clear()
            self._calibrations[question.prompt] = found
        return found


def load_client() -> None:
    """Load what talks to the engine."""
    for module in ("embedded.engine", "openai_answer", "openai_request"):
        importlib.import_module(f"ropewalk.actors.models.{module}")
    importlib.import_module("ropewalk.actors.models.openai_client").trusted_certificates()


@cache
def shared_model() -> EmbeddedModel:
    """The one that all agents share who name no other, so that a runtime keeps one engine for them. Raises `NoModel`."""
    return EmbeddedModel()


def likelihoods_in(probabilities: Sequence[dict[str, Any]]) -> dict[int, float]:
    """The logarithm of the likelihood of each token that the engine lists for the first place it wrote."""
    return {entry["id"]: float(entry["logprob"]) for entry in probabilities[0]["top_logprobs"]} if probabilities else {}


def _as_input(chunk: dict[str, Any]) -> dict[str, Any]:
    """A chunk of the text that is a tool's input, as a chunk of the call."""
    if "contentBlockDelta" in chunk and "text" in (delta := chunk["contentBlockDelta"]["delta"]):
        return {"contentBlockDelta": {**chunk["contentBlockDelta"], "delta": {"toolUse": {"input": delta["text"]}}}}
    if "messageStop" in chunk and chunk["messageStop"].get("stopReason") == "end_turn":
        return {"messageStop": {**chunk["messageStop"], "stopReason": "tool_use"}}
    return chunk


def bounded(schema: Any) -> Any:
    """A schema whose texts and lists end: without bounds a small model goes on until it is cut off."""
    if isinstance(schema, list):
        return [bounded(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: bounded(value) if key not in ("enum", "const", "default", "examples") else value for key, value in schema.items()}
    if made.get("type") == "string" and not {"enum", "const", "maxLength", "pattern", "format"} & made.keys():
        made["maxLength"] = LONGEST_TEXT
    if made.get("type") == "array":
        made.setdefault("maxItems", 8)
    return made
