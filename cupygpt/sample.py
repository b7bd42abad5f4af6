"""python -m cupygpt.sample: text from a run, a model file or a Hugging Face folder."""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence

from cupygpt.checkpoint.model_file import ModelFile
from cupygpt.cli import run_cli
from cupygpt.console.stream import say, set_up_streams
from cupygpt.console.text_output import TextOutput
from cupygpt.data.document_start import text_prompt
from cupygpt.data.tokenizer import Tokenizer, load_tokenizer_for
from cupygpt.device.choose import choose_device
from cupygpt.device.device import Device
from cupygpt.device.precision import precision_of_file
from cupygpt.errors import ConfigError
from cupygpt.exchange.source import find_weights, load_weights
from cupygpt.flags.writing import RANGES
from cupygpt.model.generate import Generator, Sampling, one_after_the_other
from cupygpt.model.memory_plan import MOST_ROWS, rows_that_fit
from cupygpt.model.parameters import parameters_on


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    set_up_streams()
    args = _parser().parse_args(arguments)
    return run_cli(lambda: sample(args), debug=args.debug)


def sample(args: argparse.Namespace) -> None:
    """Load the weights, then print `--num` texts while they are generated."""
    _check(args)
    source = find_weights(args.source)
    model = load_weights(source)
    for warning in model.warnings:
        say(f"warning: {warning}")
    for line in source.notes:
        say(f"note: {line}")
    if args.window and args.window > model.config.maxT:
        raise ConfigError(
            f"--window is {args.window}, but the model has {model.config.maxT} positions."
        )
    tokenizer = load_tokenizer_for(model.config.V, args.tokenizer or source.tokenizer)
    prompt, note = text_prompt(args.prompt, tokenizer, source.text_start)
    choice = choose_device(args.device)
    if choice.warning:
        say(f"warning: {choice.warning}")
    window, rows = args.window or source.trained_length, min(args.num, MOST_ROWS)
    generator = load_generator(model, choice.device, window, rows)
    say(f"{source.path}: {model.config.describe()}")
    if generator.window < model.config.maxT:
        why = "--window" if args.window else "those that were trained; --window changes it"
        say(f"written from {generator.window} of the model's {model.config.maxT} positions ({why})")
    if note:
        say(note)
    _print_texts(args, generator, tokenizer, prompt)


def load_generator(
    model: ModelFile, device: Device, window: int | None = None, rows: int = 1
) -> Generator:
    """The weights of a file on `device`, in the file's precision if the device computes in it.

    `window`: how many positions are used, by default all. It writes up to `rows` texts at once, or
    as many as memory allows. Raises DeviceError where it does not suffice for one.
    """
    precision = precision_of_file(model.precision, device)
    config = model.config
    rows = rows_that_fit(config, precision, device.free_bytes(), rows)
    params = parameters_on(device, config, model.parameters, precision)
    return Generator(device, config, params, precision, window=window, rows=rows)


def _print_texts(
    args: argparse.Namespace, generator: Generator, tokenizer: Tokenizer, prompt: Sequence[int]
) -> None:
    output = TextOutput(sys.stdout)
    started, total, ended = time.perf_counter(), 0, 0
    for number, text in enumerate(_texts(args, generator, tokenizer, prompt), 1):
        if args.num > 1:
            output.line(f"--- {number} of {args.num}")
        shown = [token for token in prompt if token != tokenizer.eot]
        output.write(tokenizer.decode_bytes(shown))
        count = 0
        for token in text:
            output.write(tokenizer.decode_bytes([token]))
            count += 1
        output.end()
        if args.num > 1 or output.is_terminal:
            output.line("")
        total, ended = total + count, ended + (count < args.tokens)
    elapsed = time.perf_counter() - started
    say(f"{total} tokens in {elapsed:.1f} s, {total / elapsed:.0f} tok/s")
    if ended:
        texts = "the text" if args.num == 1 else f"{ended} of {args.num} texts"
        say(f"{texts} ended at end of text; --ignore-eot goes on.")


def _texts(
    args: argparse.Namespace, generator: Generator, tokenizer: Tokenizer, prompt: Sequence[int]
) -> Iterator[Iterator[int]]:
    """The texts in order, written in batches of as many as the generator writes at once."""
    sampling = Sampling(args.temperature, args.top_k, args.top_p)
    stop = None if args.ignore_eot else tokenizer.eot
    for first in range(0, args.num, generator.rows):
        seeds = [(args.seed, i) for i in range(first, min(first + generator.rows, args.num))]
        prompts = [prompt] * len(seeds)
        steps = generator.generate_batch(prompts, args.tokens, sampling, seeds, stop=stop)
        yield from one_after_the_other(steps, len(seeds))


def _check(args: argparse.Namespace) -> None:
    for name, allowed in RANGES.items():
        value = getattr(args, name)
        if value is not None and not allowed.holds(value):
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} is {value}, but must be {allowed.words}.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cupygpt.sample",
        description="Print text from a trained model. A file or a pipe gets exactly the bytes that "
        "the model writes; a terminal gets a dot for each character that would control it.",
    )
    add = parser.add_argument
    add(
        "source",
        nargs="?",
        metavar="RUN|model.bin|FOLDER",
        help="run folder (RUN, RUN@newest or RUN@STEP: its best, newest or any checkpoint), model "
        "file, or Hugging Face folder (default: the newest run)",
    )
    add(
        "--prompt",
        default="",
        help="text to continue, after an end of text unless the training data had too few of it "
        "(default: the training data's beginning)",
    )
    add("--tokens", type=int, default=256, help="longest length of a text (default: %(default)s)")
    add("--ignore-eot", action="store_true", help="go on where the model ends a text")
    add(
        "--num",
        type=int,
        default=1,
        help="number of texts; of several, each follows a line '--- 2 of 5' (default: %(default)s)",
    )
    add("--window", type=int, help="positions that are used (default: those that were trained)")
    add(
        "--temperature",
        type=float,
        default=0.8,
        help="0 takes the likeliest token, 1 draws as the model says (default: %(default)s)",
    )
    add("--top-k", type=int, default=0, help="draw from the k likeliest (default: from all)")
    add(
        "--top-p",
        type=float,
        default=1.0,
        help="draw from the likeliest that have this probability together (default: from all)",
    )
    add("--seed", type=int, default=42, help="same seed, same text (default: %(default)s)")
    add("--tokenizer", help="gpt2, bytes or a file (default: the run's, or by the vocabulary)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    add("--debug", action="store_true", help="show tracebacks of errors")
    return parser


if __name__ == "__main__":
    sys.exit(main())
