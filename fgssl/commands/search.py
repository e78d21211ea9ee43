"""``fgssl search``: nearest neighbours of images among the embeddings of ``fgssl embed``, as table and picture."""

import argparse
import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fgssl.cli.command_parser import CommandParser, picture
from fgssl.errors import UserError

OUT = Path("neighbours.png")
RERANK = ("query_expansion", "database_augmentation", "alpha", "k_reciprocal", "k1", "k2", "lam")


class Query(NamedTuple):
    """An image to search for.

    Attributes:
        name: path of the image.
        position: its position in the index; None for an image file.
        label: fine label; -1 if unknown.
    """

    name: str
    position: int | None = None
    label: int = -1


def main(argv: list[str]) -> int:
    """Run ``fgssl search <argv>``."""
    args = _parser().parse_intermixed_args(argv)  # images may stand after options
    if not args.images and not args.row:
        raise UserError("no query is given. Give image files, or --row with rows of the embedded data set.")
    for image in args.images:
        if Path(image).is_dir():
            raise UserError(f"{image} is a folder. Give its images, such as {Path(image) / '*.jpg'}.")
        if not Path(image).is_file():
            raise UserError(f"image not found: {image}")

    from fgssl.evaluation.reranking import Rerank
    from fgssl.inference.index import Index

    rerank = Rerank(**{name: getattr(args, name) for name in RERANK})
    index = Index.load(args.folder)
    positions = index.positions(args.row)
    most = len(index) - bool(args.row)
    if not 1 <= args.k <= most:
        raise UserError(f"-k is {args.k}; it must be 1 to {most}, as {args.folder} holds {len(index)} images.")
    stored = index.stored
    queries = [Query(image) for image in args.images]
    queries += [Query(str(stored.paths[p]), p, int(stored.fine[p])) for p in positions]
    found = [index.search_features(index.model.embed(args.images), args.k, rerank)] if args.images else []
    if positions:
        found.append(index.search_positions(positions, args.k, rerank))
    cosine_Qk, ids_Qk = (np.concatenate(parts) for parts in zip(*found, strict=True))

    print_table(queries, cosine_Qk, ids_Qk, stored)
    order = "by cosine similarity" + ("" if rerank.name == "none" else f", re-ranked by {rerank.name}")
    try:
        image_at, out = pictures_of(index, Path(args.folder)), args.out or free(OUT)
        missing = draw(queries, cosine_Qk, ids_Qk, stored, image_at, order, out)
    except UserError as fault:
        if args.out:
            raise
        print(f"no picture: {fault}")
        return 0
    print(f"picture: {out}" + ("" if out in (args.out, OUT) else f" ({OUT} exists)"))
    if missing:
        print(f"grey in the picture: {len(missing)} of its images could not be read, such as: {missing[0]}")
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
        "--out",
        type=picture,
        metavar="FILE.png",
        help="picture to write; default neighbours.png, or neighbours_2.png and so on where it exists",
    )
    expand = parser.add_argument_group("re-ranking", "Off by default; the cosine decides.")
    expand.add_argument(
        "--query_expansion", type=int, default=0, metavar="N", help="add the N nearest neighbours to each query"
    )
    expand.add_argument(
        "--database_augmentation", type=int, default=0, metavar="N", help="add its N nearest neighbours to each image"
    )
    expand.add_argument(
        "--alpha", type=float, default=3.0, help="weight of an added neighbour: its cosine to this power; default 3"
    )
    expand.add_argument(
        "--k_reciprocal", action="store_true", help="k-reciprocal encoding (CVPR 2017); queries are neighbours too"
    )
    expand.add_argument("--k1", type=int, default=20, help="neighbours that may be k-reciprocal; default 20")
    expand.add_argument("--k2", type=int, default=6, help="neighbours whose encodings are averaged; default 6")
    expand.add_argument("--lam", type=float, default=0.3, help="weight of the original distance, 0 to 1; default 0.3")
    return parser


def pictures_of(index, folder: Path) -> Callable[[int], np.ndarray]:
    """Function from a position in the index to its image [H, W, 3] uint8.

    The image is read from its path. One that is not there comes from the data set of the run's configuration, if its
    row still has the same name: images of a folder may have come or gone since they were embedded.
    """
    from fgssl.evaluation.store import same_image
    from fgssl.report.figures import image_of

    rows = cache(lambda: rows_of(str(index.stored.paths[0]), folder))

    def image_at(position: int) -> np.ndarray:
        path, row = Path(str(index.stored.paths[position])), int(index.stored.index[position])
        if path.is_file():
            return read(str(path))
        known = rows().paths
        if row >= len(known) or not same_image(str(known[row]), str(path)):
            raise UserError(f"image not found: {path}")
        return image_of(rows(), row)

    return image_at


def rows_of(image: str, folder: Path):
    """The data set of the configuration of a run of ``fgssl embed``; ``image`` is one of its images, for messages."""
    config = (folder.parent if (folder / "about.json").is_file() else folder) / "config.yaml"
    if not config.is_file():
        raise UserError(f"{image} is no file, and {config}, which names its data set, is missing.")

    from fgssl.cli.compose import read_section
    from fgssl.data.datamodule import DataModule
    from fgssl.methods.arguments import build

    try:
        return build(DataModule, read_section(str(config))["data"]).parts.index
    except UserError:  # its advice names options of other commands
        raise UserError(f"{image} is no file here, and the data set that {config} names is not found either.") from None


def read(path: str) -> np.ndarray:
    """An image file [H, W, 3] uint8."""
    from fgssl.data.images import read_image

    return np.asarray(read_image(path))


def free(path: Path) -> Path:
    """``path``, or the first of ``path_2``, ``path_3``, ... that does not exist."""
    names = (path if number == 1 else path.with_stem(f"{path.stem}_{number}") for number in itertools.count(1))
    return next(name for name in names if not name.exists())


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


def draw(
    queries: list[Query], cosine_Qk: np.ndarray, ids_Qk: np.ndarray, stored, image_at, order: str, path: Path
) -> list[UserError]:
    """Draw queries and neighbours; frames are green (same class), red (another class) or grey (class unknown).

    Returns:
        Why images of the index could not be read, for each of them. They are grey.

    Raises:
        UserError: a query that is a file, or all images of the index, cannot be read.
    """
    from fgssl.report.figures import QUERY, RIGHT, UNKNOWN, WRONG, picture_rows

    names = stored.about["fine_names"]
    missing: dict[int, UserError] = {}

    def shown(position: int) -> np.ndarray:
        try:
            return image_at(position)
        except UserError as fault:
            missing[position] = fault
            return np.full((8, 8, 3), 192, np.uint8)

    lines = []
    for query, cosine_k, ids_k in zip(queries, cosine_Qk, ids_Qk, strict=True):
        image = read(query.name) if query.position is None else shown(query.position)
        line = [(image, names[query.label] if query.label >= 0 else Path(query.name).stem, QUERY)]
        for cosine, found in zip(cosine_k, ids_k, strict=True):
            label = int(stored.fine[found])
            colour = UNKNOWN if query.label < 0 else RIGHT if label == query.label else WRONG
            name = f"{names[label]}\n{cosine:.2f}" if label >= 0 else f"{cosine:.2f}"
            line.append((shown(int(found)), name, colour))
        lines.append(line)
    if len(missing) == len({*ids_Qk.flatten().tolist(), *(query.position for query in queries)} - {None}):
        raise next(iter(missing.values()))
    known = any(query.label >= 0 for query in queries)
    reading = " (green: same class, red: another class, grey: unknown class)" if known else ""
    picture_rows(lines, f"query, then its nearest neighbours {order}{reading}", path)
    return list(missing.values())
