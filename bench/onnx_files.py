"""Every architecture as ONNX: which of its modules torch exports, how large the files are, and how far they are from the trained network.

    .venv/bin/python bench/onnx_files.py            less than a minute; needs the extra onnx
    .venv/bin/python bench/onnx_files.py --only lapgan

The networks are small and untrained, as bench/resume.py has them; what passes is what `ganserve train --formats onnx` would publish.
"""

import argparse
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from resume import CPU, config_of, register

from training import catalog, datasets
from training.export import CHECKED_ROWS, TOLERANCE, as_served, example_inputs, script, with_onnx, write_module
from training.files.onnx import open_session
from training.game import Player
from training.preparation import Places, prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(catalog.architectures()))
    given = parser.parse_args()
    logging.basicConfig(format="%(message)s")  # why a module is left out
    torch.set_num_threads(1)
    print(f"| architecture | module | TorchScript, kB | ONNX, kB | apart from eager ({TOLERANCE:g}) |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        register(Path(folder) / "datasets")
        for key in given.only or catalog.architectures():
            for line in rows(key, Path(folder)):
                print(line, flush=True)


def rows(key: str, folder: Path) -> Iterator[str]:
    places = Places(folder / "datasets", (), folder / "weights")
    config = config_of(key, places.datasets)
    prepared = prepare(config, datasets.load(config.dataset, places.datasets), places, CPU)
    for name, player in prepared.players.items():
        home = folder / key / name
        home.mkdir(parents=True)
        files = with_onnx(write_module(home, name, player, script(name, player)), home, name, player).files
        sizes = " | ".join(f"{files[form].size_bytes / 1000:.0f}" if form in files else "none" for form in ("torchscript", "onnx"))
        apart = f"{difference(home / files['onnx'].file, player):.1g}" if "onnx" in files else "-"
        yield f"| {key} | {name} | {sizes} | {apart} |"


def difference(path: Path, player: Player) -> float:
    """The largest of any value."""
    inputs = example_inputs(player.inputs, CHECKED_ROWS)
    with torch.inference_mode():
        expected = as_served(player)(**inputs)
    made = open_session(path, torch.get_num_threads()).run({name: rows.numpy() for name, rows in inputs.items()})
    return float((torch.from_numpy(made) - expected).abs().max())


if __name__ == "__main__":
    main()
