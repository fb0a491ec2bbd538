"""A chat behind FastAPI: one runtime for everybody, and each turn streamed to its reader as server-sent events.

`python examples/fastapi_app.py` serves on your own machine and says what to type; with `--try` somebody talks to it, and it ends.
"""

import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal, cast

import uvicorn
from fastapi import Body, Depends, FastAPI, HTTPException
from fastapi.sse import EventSourceResponse, ServerSentEvent

from ropewalk import AgentSpec, InvalidSessionId, RopewalkError, Runtime, Session, TextDelta, ToolEnded, ToolStarted, TurnEnded
from ropewalk.testing import Reply, ScriptedModel

# The model plays a script here. Leave model= out, or give it "openai:NAME", to talk to a real one.
model = ScriptedModel(lambda messages: Reply(text=f"You said: {messages[-1]['content'][0]['text']}", pace=0.1))
assistant = AgentSpec(name="assistant", model=model)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    async with Runtime() as app.state.runtime:  # leaving it gives the turns under way a few seconds to end
        yield


app = FastAPI(lifespan=lifespan)


async def session_of(user: str) -> Session:
    """The user's session, made when they first come. Put your own sign-in here: this believes whatever name it is told."""
    try:
        return cast(Session, await app.state.runtime.open(user, assistant))
    except InvalidSessionId as error:
        raise HTTPException(422, str(error)) from error


YourSession = Annotated[Session, Depends(session_of)]
Prompt = Annotated[str, Body(embed=True)]


@app.post("/chat/{user}", response_class=EventSourceResponse)
async def chat(session: YourSession, prompt: Prompt, on_leave: Literal["continue", "cancel"] = "continue") -> AsyncIterator[ServerSentEvent]:
    """Streams a turn. When the reader's connection closes, the turn goes on without them, or ends, as `on_leave` says."""
    try:
        async with session.stream(prompt, kinds={TextDelta, ToolStarted, ToolEnded, TurnEnded}, on_leave=on_leave) as events:
            async for event in events:
                yield ServerSentEvent(event=type(event).__name__, id=event.cursor, data=event.to_dict())
    except RopewalkError as error:  # the prompt was refused, or its turn failed
        yield ServerSentEvent(event="Failed", data=type(error).__name__)


@app.post("/chat/{user}/stop")
async def stop(session: YourSession) -> dict[str, bool]:
    """Ends the running turn; what was streamed of the answer stays in the conversation."""
    return {"stopped": await session.cancel()}


@app.get("/chat/{user}")
async def history(session: YourSession) -> dict[str, Any]:
    return {"status": session.status, "messages": await session.messages()}


if __name__ == "__main__":
    if "--try" in sys.argv:
        from fastapi.testclient import TestClient

        with TestClient(app) as somebody:
            print(somebody.post("/chat/ada", json={"prompt": "I am Ada."}).text, end="")
            print(somebody.get("/chat/ada").json())
    else:
        print("""Now type: curl -N -H 'content-type: application/json' -d '{"prompt": "Hi"}' http://127.0.0.1:8000/chat/ada""")
        uvicorn.run(app, port=int(os.environ.get("PORT", "8000")), timeout_graceful_shutdown=5)
