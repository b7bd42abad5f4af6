"""Time the generation of text, beside transformers on the same GPU, and check greedy text.

    python tools/bench_generate.py model.bin                      # one prompt, then 64 at once
    python tools/bench_generate.py model.bin --peer               # and transformers' generate
    python tools/bench_generate.py model.bin --check 500          # is greedy text right?

Tokens per second count what reaches the program, over whole calls: reading the prompt, too. A
window repeats a call for some seconds; the median window is printed, with the slowest and the
fastest. The peer is a GPT-2 of the
same shape and precision with a cache of fixed size, eager and compiled. A check recomputes every
token by a whole forward pass over the window that it was drawn from, and prints where the
likeliest token is another one, with the distance of the two best logits there.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from cupygpt.cli import run_cli  # isort: skip - before NumPy: see cupygpt/__init__.py
import numpy as np

from cupygpt.checkpoint.model_file import ModelFile
from cupygpt.device.choose import choose_device
from cupygpt.device.device import Device
from cupygpt.errors import ConfigError
from cupygpt.exchange.source import find_weights, load_weights
from cupygpt.model.generate import Generator, Sampling
from cupygpt.model.gpt import GPT
from cupygpt.model.memory_plan import shape_of_run
from cupygpt.ops.linear import linear_forward
from cupygpt.sample import load_generator
from cupygpt.training.trainer import allocate_buffers

WAYS = {"greedy": Sampling(0.0), "temperature 0.8": Sampling(0.8)}


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("source", help="model file, run folder or Hugging Face folder")
    add("--rows", type=int, nargs="+", default=[1, 64], help="prompts at once (default: 1 64)")
    add("--tokens", type=int, help="tokens of a text (default: to the end of the window)")
    add("--prompt-tokens", type=int, default=8, help="length of a prompt (default: %(default)s)")
    add("--windows", type=int, default=3, help="timed windows of each kind (default: %(default)s)")
    add("--seconds", type=float, default=5.0, help="length of a window (default: %(default)s)")
    add("--peer", action="store_true", help="also time transformers")
    add("--check", type=int, metavar="N", help="check N tokens of greedy text, and time nothing")
    add("--device", default="auto")
    add("--debug", action="store_true", help="show tracebacks of errors")
    args = parser.parse_args()
    return run_cli(lambda: bench(args), debug=args.debug)


def bench(args: argparse.Namespace) -> None:
    """Print a line for each kind of call, or the result of the check."""
    source = find_weights(args.source)
    model, device = load_weights(source), choose_device(args.device).device
    rows = [1] if args.check else args.rows
    window = source.trained_length or model.config.maxT
    generator = load_generator(model, device, window, rows=max(rows))
    if generator.rows < max(rows):
        raise ConfigError(f"memory suffices for {generator.rows} texts at once, not {max(rows)}.")
    print(f"{source.path}: {model.config.describe()}, {model.precision}, {device.describe()}")
    prompt = [int(i) for i in np.random.default_rng(0).integers(0, model.config.V, 8)]
    prompt = [prompt[i % 8] for i in range(args.prompt_tokens)]
    if args.check:
        check(generator, prompt, args.check)
        return
    count = args.tokens or window - len(prompt)
    for n in rows:
        for way, sampling in WAYS.items():
            report(args, f"cupygpt, {way}", n, count, ours(generator, prompt, n, sampling))
        if args.peer:
            for name, run in transformers_ways(model, device, len(prompt), n, count):
                report(args, name, n, count, run)


def ours(
    generator: Generator, prompt: list[int], n: int, sampling: Sampling
) -> Callable[[int], int]:
    """A function that writes n texts of a length and returns the number of tokens."""

    def run(count: int) -> int:
        seeds = [(number,) for number in range(n)]
        steps = generator.generate_batch([prompt] * n, count, sampling, seeds)
        return n * sum(1 for _ in steps)

    return run


def report(
    args: argparse.Namespace, name: str, n: int, count: int, run: Callable[[int], int]
) -> None:
    """Time `run` and print a line."""
    run(count)
    speeds = []
    for _ in range(args.windows):
        started, elapsed, tokens = time.perf_counter(), 0.0, 0
        while elapsed <= args.seconds:
            tokens += run(count)
            elapsed = time.perf_counter() - started
        speeds.append(tokens / elapsed)
    spread = f"{min(speeds):,.0f} … {max(speeds):,.0f}"
    print(
        f"{n:4} × {count} tokens  {name:40}{statistics.median(speeds):10,.0f} tok/s  ({spread})",
        flush=True,
    )


def transformers_ways(
    model: ModelFile, device: Device, prompt_tokens: int, n: int, count: int
) -> Iterator[tuple[str, Callable[[int], int]]]:
    """transformers' generate with weights of its own, of this shape and precision."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    c = model.config
    shape = GPT2Config(vocab_size=c.V, n_positions=c.maxT, n_embd=c.C, n_layer=c.L, n_head=c.NH)
    dtype = torch.bfloat16 if model.precision == "bf16" else torch.float32
    where = "cuda" if device.is_gpu else "cpu"
    peer = GPT2LMHeadModel(shape).to(where, dtype).eval()
    ids = torch.randint(0, c.V, (n, prompt_tokens), device=where)

    def run(count: int, **more: object) -> int:
        with torch.no_grad():
            out = peer.generate(
                ids, attention_mask=torch.ones_like(ids), min_new_tokens=count,
                max_new_tokens=count, do_sample=False, pad_token_id=0, **more,
            )  # fmt: skip
        return int(out[:, prompt_tokens:].numel())

    yield "transformers, growing cache", run
    static = {"cache_implementation": "static"}
    yield "transformers, static cache", lambda count: run(count, disable_compile=True, **static)
    try:
        run(min(count, 8), **static)
    except Exception as error:  # noqa: BLE001
        print(f"transformers, compiled: it does not run ({type(error).__name__}: {error})"[:300])
        return
    yield "transformers, static cache, compiled", lambda count: run(count, **static)


def check(generator: Generator, prompt: list[int], count: int) -> None:
    """Compare greedy text with the likeliest tokens by whole forward passes."""
    text = [*prompt, *generator.generate(prompt, count, Sampling(0.0), (0,))]
    logits_of, window = whole_forward(generator), generator.window
    first, fed, checked = max(0, len(prompt) - window), len(prompt), 0
    margins = []
    while fed < len(text):
        past = min(first + window, len(text) - 1)  # this window draws the tokens fed … past
        logits = logits_of(text[first:past])[fed - 1 - first :]
        for row, token in zip(logits, text[fed : past + 1], strict=True):
            if token != row.argmax():
                second, largest = np.sort(row)[-2:]
                margins.append(float(largest - second))
        checked += past + 1 - fed
        fed, first = past + 1, past + 1 - max(1, window // 2)
    worst = f", best two logits at most {max(margins):.4f} apart there" if margins else ""
    print(f"greedy text of {checked} tokens, window {window}: {len(margins)} differ{worst}")


def whole_forward(generator: Generator) -> Callable[[list[int]], np.ndarray]:
    """A function from tokens to the logits (T, V) of a forward pass over all of them."""
    device, config, precision = generator.device, generator.config, generator.precision

    def logits_of(tokens: list[int]) -> np.ndarray:
        T = len(tokens)
        shape = shape_of_run(config, 1, T, precision, on_gpu=device.is_gpu)
        acts, scratch = allocate_buffers(device, replace(shape, training=False))
        model = GPT(config, generator.params, None, acts, scratch, precision=precision)
        ids = device.zeros(T, np.int32)
        device.upload(ids, np.array(tokens, np.int32))
        model.forward(ids.reshape(1, T))
        logits = device.zeros(T * config.Vp, np.float32).reshape(T, config.Vp)
        linear_forward(logits, acts.lnf[0], generator.params.wte, None, precision=precision)
        return device.download(logits)[:, : config.V]

    return logits_of


if __name__ == "__main__":
    sys.exit(main())
