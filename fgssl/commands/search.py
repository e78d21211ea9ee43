"""``fgssl search``: nearest neighbours of images among the embeddings of ``fgssl embed``, as table and picture."""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fgssl.cli.command_parser import CommandParser
from fgssl.errors import UserError


class Query(NamedTuple):
    """An image to search for.

    Attributes:
        name: path of the image.
        image: [H, W, 3] uint8.
        label: fine label; -1 if unknown.
    """

    name: str
    image: np.ndarray
    label: int


def main(argv: list[str]) -> int:
    """Run ``fgssl search <argv>``."""
    args = _parser().parse_args(argv)
    folder = Path(args.folder)
    if not args.images and not args.row:
        raise UserError("no query is given. Give image files, or --row with rows of the embedded data set.")
    for image in args.images:
        if not Path(image).is_file():
            raise UserError(f"image not found: {image}")
    run = folder.parent if (folder / "about.json").is_file() else folder

    import torch

    from fgssl.cli.saved import configuration
    from fgssl.commands.restore import restore
    from fgssl.evaluation.search import search
    from fgssl.evaluation.store import read_embeddings

    stored = read_embeddings(folder)
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} has no config.yaml, which names the network. Keep embeddings/ in its run folder.")
    positions = positions_of(args.row, stored.index, folder)
    most = len(stored.index) - bool(args.row)
    if not 1 <= args.k <= most:
        raise UserError(f"-k is {args.k}; it must be 1 to {most}, as {folder} holds {len(stored.index)} images.")
    application = restore(configuration(None, [str(run / "config.yaml")]), [])
    index = application.datamodule.parts.index

    from fgssl.report.figures import image_of

    gallery = torch.from_numpy(stored.embedding)
    queries = [Query(image, *read(image)) for image in args.images]
    queries += [
        Query(str(stored.paths[p]), image_of(index, int(stored.index[p])), int(stored.fine[p])) for p in positions
    ]
    found = [search(embed(application, args.images), gallery, args.k)] if args.images else []
    if positions:
        rows = torch.tensor(positions)
        found.append(search(gallery[rows], gallery, args.k, exclude=rows))
    cosine_Qk, ids_Qk = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))

    print_table(queries, cosine_Qk, ids_Qk, stored)
    draw(queries, cosine_Qk, ids_Qk, stored, index, Path(args.out))
    print(f"picture: {args.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="fgssl search",
        description="Find the nearest neighbours of images among the embeddings of fgssl embed.",
    )
    parser.add_argument("folder", help="run folder with embeddings/")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files, embedded by the network of the run")
    parser.add_argument(
        "--row",
        type=int,
        nargs="+",
        default=[],
        help="data-set rows to search for; a row is not its own neighbour",
    )
    parser.add_argument("-k", type=int, default=8, help="number of neighbours; default 8")
    parser.add_argument(
        "--out", default="neighbours.png", metavar="FILE.png", help="picture to write; default neighbours.png"
    )
    return parser


def positions_of(rows: list[int], index: np.ndarray, folder: Path) -> list[int]:
    """Positions of data-set rows among the embedded rows.

    Raises:
        UserError: a row is not embedded.
    """
    place = {int(row): position for position, row in enumerate(index)}
    missing = [row for row in rows if row not in place]
    if missing:
        raise UserError(
            f"--row: {missing[0]} is not one of the {len(index)} embedded rows of {folder} (the first is {index[0]})."
        )
    return [place[row] for row in rows]


def read(path: str) -> tuple[np.ndarray, int]:
    """An image file [H, W, 3], and -1 for its unknown class."""
    from fgssl.data.images import read_image

    return np.asarray(read_image(path)), -1


def embed(application, paths: list[str]):
    """Features [Q, F] of image files, preprocessed like the embedded images."""
    import torch

    from fgssl.commands.restore import look

    _, images = look(application.datamodule, paths)
    with torch.no_grad():
        return application.model.embed(images)


def print_table(queries: list[Query], cosine_Qk: np.ndarray, ids_Qk: np.ndarray, stored) -> None:
    """Print one line per neighbour."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    names = stored.about["fine_names"]
    table = Table("query", "rank", "cosine", "class", "row", "path", box=SIMPLE_HEAD, pad_edge=False)
    for query, cosine_k, ids_k in zip(queries, cosine_Qk, ids_Qk, strict=True):
        for rank, (cosine, found) in enumerate(zip(cosine_k, ids_k, strict=True), 1):
            label = stored.fine[found]
            about = [f"{cosine:.4f}", names[label] if label >= 0 else "-", str(stored.index[found])]
            table.add_row(query.name if rank == 1 else "", str(rank), *about, str(stored.paths[found]))
        table.add_section()
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 160
    console.print(table)


def draw(queries: list[Query], cosine_Qk: np.ndarray, ids_Qk: np.ndarray, stored, index, path: Path) -> None:
    """Draw queries and neighbours; frames are green (same class), red (another class) or grey (class unknown)."""
    from fgssl.report.figures import QUERY, RIGHT, UNKNOWN, WRONG, image_of, picture_rows

    names = stored.about["fine_names"]
    lines = []
    for query, cosine_k, ids_k in zip(queries, cosine_Qk, ids_Qk, strict=True):
        line = [(query.image, names[query.label] if query.label >= 0 else Path(query.name).stem, QUERY)]
        for cosine, found in zip(cosine_k, ids_k, strict=True):
            label = int(stored.fine[found])
            colour = UNKNOWN if query.label < 0 else RIGHT if label == query.label else WRONG
            name = f"{names[label]}\n{cosine:.2f}" if label >= 0 else f"{cosine:.2f}"
            line.append((image_of(index, int(stored.index[found])), name, colour))
        lines.append(line)
    known = any(query.label >= 0 for query in queries)
    reading = " (green: same class, red: another class, grey: unknown class)" if known else ""
    picture_rows(lines, f"query, then its nearest neighbours by cosine similarity{reading}", path)
