"""Make an entry of cupygpt/training/reference_curves.json from a finished run.

    python tools/make_reference.py runs/20261128-013000 --name "llm.c's experiment, bf16"

It prints the entry as JSON: the run's validation losses by the tokens it had trained on, the hashes
of its data, and its command.
"""

import argparse
import json
import math
import sys
from pathlib import Path

from cupygpt.config import GPTConfig
from cupygpt.run_folder.log import METRICS
from cupygpt.run_folder.record import read_record
from cupygpt.training.reference import hashes_of


def entry(folder: Path, name: str) -> dict[str, object]:
    """The reference entry of a run folder."""
    record = read_record(folder)
    for resume in record.get("resumes", []):
        if {"batch_size", "total_batch"} & resume["changes"].keys():
            sys.exit(
                f"{folder}: its steps have another size since step {resume['step']} (-b or -d), so "
                f"they do not tell how many tokens it had trained on. Take a run with one size."
            )
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    events = [event for event in map(json.loads, lines) if event["kind"] == "val"]
    losses = {event["step"] * record["tokens_per_step"]: event["loss"] for event in events}
    assert all(math.isfinite(loss) for loss in losses.values()), folder
    return {
        "name": name,
        "command": record["environment"]["command"],
        "device": record["environment"]["device"],
        "parameters": GPTConfig(**record["model"]).num_parameters,
        "data": hashes_of(record["data"]),
        "curve": [[tokens, round(loss, 4)] for tokens, loss in sorted(losses.items())],
    }


def main() -> None:
    """Print the entry of the run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--name", required=True, help="how messages call the curve")
    args = parser.parse_args()
    print(json.dumps(entry(args.run, args.name), indent=1))


if __name__ == "__main__":
    main()
