"""The engine's process: llama.cpp's own server, which lives as long as the program that started it.

`engine` starts this file by its path, so that the process imports nothing but the engine. The first line it reads are the
settings, as JSON; the one line it writes is ``{"address": ...}``. When whoever started it is gone, however it went, its
standard input ends, and so does it. Where somebody else holds the other end, a fork of that program, it notices that it
has been given to another parent.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
from typing import Any

LOOKED_AFTER_SECONDS = 1.0
MORE_QUESTIONS = 8
"""How many are answered at once beside those that have a slot: how many tokens something has, and the like."""


def main() -> None:
    """Read the settings, start the server, say where it listens, and stay until nobody is there."""
    parent = os.getppid()
    line = sys.stdin.readline()
    if not line:
        return
    settings = json.loads(line)
    # Watched from the beginning: loading takes a while, and may hang.
    threading.Thread(target=_end_with_input, daemon=True).start()
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    os.nice(settings["nice"])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the engine prints is no address
    xllamacpp: Any = importlib.import_module("xllamacpp")  # it has no types

    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    params.model_alias = {settings["name"]}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [settings["api_key"]]
    params.n_parallel = settings["slots"]
    params.n_ctx = settings["slots"] * settings["context"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    params.n_threads_http = settings["slots"] + MORE_QUESTIONS
    params.cache_ram_mib = settings["cache_megabytes"]
    params.ui = False
    params.verbosity = -1
    server = xllamacpp.Server(params)
    print(json.dumps({"address": server.listening_address}), file=out, flush=True)
    threading.Event().wait()


def _end_with_input() -> None:
    while os.read(0, 1024):
        pass
    os._exit(0)


def _end_with_parent(parent: int) -> None:
    waiting = threading.Event()
    while os.getppid() == parent:
        waiting.wait(LOOKED_AFTER_SECONDS)
    os._exit(0)


if __name__ == "__main__":
    main()
