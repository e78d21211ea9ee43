"""Draws the nearest neighbours of some test images before and after training, from two runs of ``fgssl embed``.

    fgssl embed --ckpt_path runs/sweep_obd_sd/seed_everything0_full --run.root runs --run.name after
    fgssl embed --config experiments/evidence/obd_sd.yaml --backbone tf_efficientnet_lite0.in1k --run.name before
    python experiments/evidence/neighbours.py RUN_BEFORE RUN_AFTER docs/figures/results_neighbours.jpg

The queries are drawn at random with a fixed seed, not chosen.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from fgssl.evaluation.search import search
from fgssl.evaluation.store import Stored, read_embeddings
from fgssl.report.figures import QUERY, RIGHT, WRONG, picture_rows


def line_of(stored: Stored, query: int, count: int, name: str) -> list[tuple[np.ndarray, str, str]]:
    """The query and its ``count`` nearest neighbours: image, text above it, colour of its frame."""
    x_ND = F.normalize(torch.from_numpy(stored.embedding), dim=1)
    row = torch.tensor([query])
    cosine, near = search(x_ND[row], x_ND, count, exclude=row)
    line = [(picture(stored, query), f"{name}\n{species(stored, query)}", QUERY)]
    for similarity, other in zip(cosine[0].tolist(), near[0].tolist(), strict=True):
        colour = RIGHT if stored.fine[other] == stored.fine[query] else WRONG
        line.append((picture(stored, other), f"{species(stored, other)}\n{similarity:.2f}", colour))
    return line


def picture(stored: Stored, image: int) -> np.ndarray:
    with Image.open(stored.paths[image]) as file:
        return np.asarray(file.convert("RGB"))


def species(stored: Stored, image: int) -> str:
    return stored.about["fine_names"][stored.fine[image]].split(".")[-1].replace("_", " ")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path, help="run folder of fgssl embed")
    parser.add_argument("after", type=Path, help="run folder of fgssl embed, of the same images")
    parser.add_argument("out", type=Path, help="picture to write, .jpg")
    parser.add_argument("--queries", type=int, default=4)
    parser.add_argument("--neighbours", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of queries")
    args = parser.parse_args()
    runs = {"before": read_embeddings(args.before), "after": read_embeddings(args.after)}
    if not np.array_equal(runs["before"].index, runs["after"].index):
        parser.error(f"{args.before} and {args.after} do not hold the same images")
    queries = np.random.default_rng(args.seed).permutation(len(runs["before"].index))[: args.queries]
    lines = [line_of(run, int(query), args.neighbours, name) for query in queries for name, run in runs.items()]
    print(picture_rows(lines, "Query, then its nearest neighbours: green: same species, red: another", args.out))


if __name__ == "__main__":
    main()
