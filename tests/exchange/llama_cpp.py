"""python llama_cpp.py MODEL.gguf REQUESTS.json: what llama.cpp's server answers, as JSON.

The file holds [path, body] pairs; the answers stand in the last line. This is a program of its own,
because llama.cpp prints what it likes, and ends its process on errors.
"""

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import xllamacpp


def main() -> None:
    model, requests = sys.argv[1:]
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 0, 1, 0
    params.warmup = False
    server = xllamacpp.Server(params)
    answers = [
        ask(server.listening_address + path, body)
        for path, body in json.loads(Path(requests).read_text(encoding="utf-8"))
    ]
    sys.stdout.write("\n" + json.dumps(answers) + "\n")


def ask(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


if __name__ == "__main__":
    main()
