"""The engine's process: llama.cpp's own server, which lives as long as its standard input is open.

`engine` starts this file by its path, so that the process imports nothing but the engine. The first line it reads are the
settings, as JSON; the one line it writes is ``{"address": ...}``. When whoever started it is gone, however it went, its
standard input ends, and so does it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any


def main() -> None:
    """Read the settings, start the server, say where it listens, and stay until nobody is there."""
    settings = json.loads(sys.stdin.readline())
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
    params.cache_ram_mib = settings["cache_megabytes"]
    params.ui = False
    params.verbosity = -1
    server = xllamacpp.Server(params)
    print(json.dumps({"address": server.listening_address}), file=out, flush=True)
    while sys.stdin.readline():
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
