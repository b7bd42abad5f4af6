"""python -m cupygpt.sample: text from a run's checkpoint or from a model file."""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cupygpt.checkpoint.checkpoint import best_step, model_path
from cupygpt.checkpoint.model_file import ModelFile, load_model
from cupygpt.cli import run_cli
from cupygpt.console.safe_text import safe_text
from cupygpt.console.stream import set_up_streams
from cupygpt.data.tokenizer import (
    StreamDecoder,
    Tokenizer,
    default_tokenizer_spec,
    load_tokenizer,
)
from cupygpt.device.choose import choose_device
from cupygpt.device.device import Device
from cupygpt.device.precision import FP32, PRECISIONS, supports_precision
from cupygpt.errors import CheckpointError, ConfigError, TokenizerError
from cupygpt.model.generate import Generator, Sampling
from cupygpt.model.memory_plan import check_decoding_fits
from cupygpt.model.tensors import cut_packed, parameter_specs
from cupygpt.run_folder.folder import newest_run
from cupygpt.run_folder.record import RECORD, read_record


@dataclass(frozen=True)
class Source:
    """The weights to sample from, and the tokenizer they were trained with, if known."""

    path: Path
    tokenizer: str | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    set_up_streams()
    args = _parser().parse_args(arguments)
    return run_cli(lambda: sample(args), debug=args.debug)


def sample(args: argparse.Namespace) -> None:
    """Load the weights, then print `--num` texts while they are generated."""
    _check(args)
    source = find_source(args.source)
    model = load_model(source.path)
    for warning in model.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    tokenizer = _tokenizer(args.tokenizer or source.tokenizer, model.config.V)
    start = [] if tokenizer.eot is None else [tokenizer.eot]
    prompt = start + [int(i) for i in tokenizer.encode(args.prompt)] if args.prompt else start
    if not prompt:
        raise ConfigError("this tokenizer has no end of text to start from; pass a --prompt.")
    choice = choose_device(args.device)
    if choice.warning:
        sys.stderr.write(f"warning: {choice.warning}\n")
    generator = load_generator(model, choice.device)
    sys.stderr.write(f"{source.path}: {model.config.describe()}\n")
    _print_texts(args, generator, tokenizer, prompt)


def load_generator(model: ModelFile, device: Device) -> Generator:
    """The weights of a file on `device`, in the file's precision if the device computes in it.

    Raises DeviceError where memory does not suffice.
    """
    precision = PRECISIONS[model.precision]
    if not supports_precision(device, precision):
        precision = FP32
    config = model.config
    check_decoding_fits(config, precision, device.free_bytes())
    flat = device.zeros(config.num_parameters, precision.storage)
    device.upload(flat, precision.encode(model.parameters))
    return Generator(device, config, cut_packed(flat, parameter_specs(config)), precision)


def _tokenizer(spec: str | None, V: int) -> Tokenizer:
    """The tokenizer `spec`, or the usual one for V ids; TokenizerError unless it has V ids."""
    spec = spec or default_tokenizer_spec(V)
    if spec is None:
        raise TokenizerError(
            f"no tokenizer is known for a vocabulary of {V}; pass --tokenizer FILE."
        )
    tokenizer = load_tokenizer(spec)
    if tokenizer.vocab_size != V:
        raise TokenizerError(
            f"tokenizer {tokenizer.name} has {tokenizer.vocab_size} ids, the model {V}; pass the "
            f"--tokenizer it was trained with."
        )
    return tokenizer


def _print_texts(
    args: argparse.Namespace, generator: Generator, tokenizer: Tokenizer, prompt: Sequence[int]
) -> None:
    sampling = Sampling(args.temperature, args.top_k, args.top_p)
    started, count = time.perf_counter(), 0
    for number in range(args.num):
        if args.num > 1:
            sys.stdout.write(f"{'' if number == 0 else chr(10)}--- {number + 1} of {args.num}\n")
        sys.stdout.write(args.prompt)
        decoder = StreamDecoder(tokenizer)
        for token in generator.generate(prompt, args.tokens, sampling, (args.seed, number)):
            sys.stdout.write(safe_text(decoder.feed(token)))
            sys.stdout.flush()
            count += 1
        sys.stdout.write(safe_text(decoder.flush()) + "\n")
    elapsed = time.perf_counter() - started
    sys.stderr.write(f"{count} tokens in {elapsed:.1f} s, {count / elapsed:.0f} tok/s\n")


def find_source(name: str | None) -> Source:
    """The model file itself, or the best checkpoint of a run folder, else its newest."""
    path = newest_run() if name is None else Path(name)
    if path.is_file():
        return Source(path, None)
    if not path.is_dir():
        raise CheckpointError(f"{path}: there is no such run folder or model file.")
    tokenizer = None
    if (path / RECORD).is_file():
        tokenizer = read_record(path)["data"].get("tokenizer")
    return Source(model_path(path, best_step(path)), tokenizer)


def _check(args: argparse.Namespace) -> None:
    for name, low in (("tokens", 1), ("num", 1), ("top_k", 0), ("temperature", 0), ("seed", 0)):
        if getattr(args, name) < low:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} is {getattr(args, name)}, but must be at least {low}.")
    if not 0 < args.top_p <= 1:
        raise ConfigError(f"--top-p is {args.top_p}, but must be above 0 and at most 1.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cupygpt.sample",
        description="Print text from a trained model.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "source", nargs="?", metavar="RUN|model.bin", help="run folder or model file (newest run)"
    )
    parser.add_argument("--prompt", default="", help="text to continue")
    parser.add_argument("--tokens", type=int, default=256, help="length of each text")
    parser.add_argument("--num", type=int, default=1, help="number of texts")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest")
    parser.add_argument("--top-k", type=int, default=0, help="only the k likeliest, 0 = all")
    parser.add_argument("--top-p", type=float, default=1.0, help="only the likeliest of this mass")
    parser.add_argument("--seed", type=int, default=42, help="same seed, same text")
    parser.add_argument("--tokenizer", help="gpt2, bytes or a file")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser


if __name__ == "__main__":
    sys.exit(main())
