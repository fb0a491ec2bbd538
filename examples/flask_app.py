"""A chat behind Flask: each visitor has an agent of their own between requests, and prompts of one that come at once wait their turn.

`python examples/flask_app.py` serves on your own machine and says what to type; with `--try` two visitors talk to it at once, and it
ends. The agents live in this process: serve it with one process and many threads.
"""

import os
import secrets
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from flask import Flask, request, session

from ropewalk import Agent, Limits, MailboxFull, ModelError, TurnFailed
from ropewalk.testing import ScriptedModel

# The model plays a script here. Leave model= out, or give it "openai:NAME", to talk to a real one.
model = ScriptedModel(lambda messages: f"You began with {messages[0]['content'][0]['text']!r}")

app = Flask(__name__)
app.secret_key = os.environ.get("SECRET_KEY") or secrets.token_bytes()  # signs the cookie that says which agent is whose
agents: dict[str, Agent] = {}


def your_agent() -> Agent:
    """The visitor's own agent, made when they first come. Whichever thread calls it, its turns run one after the other."""
    visitor: str = session.setdefault("visitor", secrets.token_urlsafe())
    return agents.get(visitor) or agents.setdefault(visitor, Agent(model=model, callback_handler=None, limits=Limits(seconds=60), mailbox=8))


@app.post("/chat")
def chat() -> dict[str, Any]:
    result = your_agent()(request.form["prompt"])
    return {"answer": str(result), "stop_reason": result.stop_reason}


@app.get("/history")
def history() -> list[dict[str, Any]]:
    return your_agent().messages


@app.errorhandler(MailboxFull)
def too_many(error: MailboxFull) -> tuple[dict[str, str], int]:
    return {"error": "Too many of your prompts wait already; try again in a moment."}, 429


@app.errorhandler(ModelError)
@app.errorhandler(TurnFailed)
def no_answer(error: Exception) -> tuple[dict[str, str], int]:
    return {"error": "The model gave no answer. What was said before is still there; try again."}, 502


def visit(name: str) -> str:
    browser = app.test_client()  # with cookies of its own
    for prompt in (f"I am {name}.", "How do you do?", "Who am I?"):
        said = browser.post("/chat", data={"prompt": prompt}).get_json()
    return f"{name} was told: {said['answer']} Their history has {len(browser.get('/history').get_json())} messages."


if __name__ == "__main__":
    if "--try" in sys.argv:
        with ThreadPoolExecutor() as visitors:
            print(*visitors.map(visit, ("Ada", "Bob")), sep="\n")
    else:
        print("Now type: curl -b jar -c jar -d 'prompt=Hi, I am Ada.' http://127.0.0.1:5000/chat")
        app.run(port=int(os.environ.get("PORT", "5000")))
