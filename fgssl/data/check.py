"""List of the data sets, and check of a copy on disk."""

import hashlib
import os
import warnings
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fgssl.data.datasets import ALL, DataSet
from fgssl.data.datasets.base import Published, some
from fgssl.data.datasets.masks import MaskIndex
from fgssl.data.datasets.objects import ObjectIndex
from fgssl.data.images import read_row
from fgssl.data.index import Index, rows_hash
from fgssl.data.sheet import write_sheet
from fgssl.errors import UserError

SHOWN = 20  # unreadable images that are named; the rest are counted
THUMBNAIL = 16  # px


class Seen(NamedTuple):
    """What was seen of the N images of a data set.

    Attributes:
        index: the data set.
        faults: messages on the images that cannot be used.
        digests: hash of the pixels of each image; empty for an unreadable one.
        thumbnails_NT: [N, T] uint8 grey thumbnails.
    """

    index: Index  # type: ignore[assignment]  # hides tuple.index
    faults: list[str]
    digests: list[bytes]
    thumbnails_NT: np.ndarray


def list_table() -> Table:
    """Table of the data sets: published counts, expected files, source and licence."""
    table = Table("name", "published", "files", show_lines=True)
    for name, cls in ALL.items():
        facts = Table.grid(padding=(0, 1))
        facts.add_column(style="dim")
        facts.add_column(overflow="fold")  # never cut a path or an address
        for number, layout in enumerate((cls.layout, *cls.other_layouts)):
            facts.add_row("or" if number else "layout", f"{cls.folder}/: {', '.join(layout)}")
        facts.add_row("from", cls.source)
        facts.add_row("licence", cls.licence)
        table.add_row(name, _counts(cls.published), facts)
    return table


def _counts(published: Published | None) -> str:
    if published is None:
        return "from the disk"
    lines = [f"{count:,} {part}" for part, count in published.splits.items()]
    lines.append(f"{published.fine:,} classes" if published.fine else "no labels")
    return "\n".join(lines + ([f"{published.coarse} coarse"] if published.coarse else []))


def check(dataset: DataSet, console: Console, sheet: Path | None = None) -> Seen:
    """Read the label files of a data set, decode every image and print a summary.

    Args:
        dataset: the data set.
        console: console to print on.
        sheet: picture of sample images to write, or None.

    Returns:
        Faults, hashes and thumbnails of the images.

    Raises:
        UserError: the label files are missing or contradict each other.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        index = dataset.index()
    for warning in caught:
        console.print(f"warning: {warning.message}", soft_wrap=True)
    console.print(f"{dataset.name}: {len(index):,} images under {dataset.root}", soft_wrap=True)
    console.print(balance_table(index))
    console.print(balance_line(index), soft_wrap=True)
    for line in odd_labels(index):
        console.print(line, soft_wrap=True)
    if sizes := sizes_line(index):
        console.print(sizes, soft_wrap=True)
    if coarse := coarse_sizes(index):
        words = ", ".join(f"{name}: {count:,}" for name, count in coarse.items())
        console.print(f"classes by coarse class: {words}", soft_wrap=True)

    seen = look(index, console)
    faults = seen.faults
    for fault in faults[:SHOWN]:
        console.print(f"fault: {fault}", soft_wrap=True)
    if len(faults) > SHOWN:
        console.print(f"and {len(faults) - SHOWN:,} more")
    if sheet:
        write_sheet(index, sheet)
        console.print(f"picture sheet: {sheet}", soft_wrap=True)
    console.print(
        f"{len(faults):,} of {len(index):,} images missing or unreadable" if faults else "all images readable"
    )
    return seen


def balance_table(index: Index) -> Table:
    """Table of the parts: images, classes and images per class."""
    table = Table("part", "images", "rows hash", "classes", "coarse", "images per class\nfewest / median / most")
    for part in sorted(set(index.split), key=("train", "val", "test").index):
        rows = index.rows(part)
        counts = class_counts(index, rows)
        counts = counts[counts > 0]
        labels = np.empty(0) if index.coarse is None else np.unique(index.coarse[rows])
        coarse = (labels >= 0).sum()  # -1 is no class
        spread = f"{counts.min()} / {np.median(counts):g} / {counts.max()}" if len(counts) else "no labels"
        table.add_row(part, f"{len(rows):,}", rows_hash(rows), str(len(counts)), str(coarse), spread)
    return table


def balance_line(index: Index) -> str:
    """Names and sizes of the smallest and the largest class."""
    counts = class_counts(index, np.arange(len(index)))
    if not counts.any():
        return "no class labels"
    few, many = counts.argmin(), counts.argmax()
    names = index.fine_names
    return f"smallest class: {names[few]} ({counts[few]} images); largest: {names[many]} ({counts[many]})"


def odd_labels(index: Index) -> list[str]:
    """Lines on images without a label among others, and on classes of one part alone where the parts share classes."""
    missing = int((index.fine < 0).sum())
    lines = [f"images without a label: {missing:,}"] if 0 < missing < len(index) else []
    names = np.array(index.fine_names)
    train, test = (class_counts(index, index.rows(part)) > 0 for part in ("train", "test"))
    if (train & test).any():  # else the parts are meant to differ, as SOP's
        for part, alone in (("train", train & ~test), ("test", test & ~train)):
            if alone.any():
                lines.append(f"classes in the {part} part alone: {alone.sum():,}: {some(names[alone])}")
    return lines


def sizes_line(index: Index) -> str:
    """The number of classes of each size (SOP: MaskCon's Fig. 5); empty for more than 20 different sizes."""
    counts = class_counts(index, np.arange(len(index)))
    sizes, classes = np.unique(counts[counts > 0], return_counts=True)
    if not 1 <= len(sizes) <= 20:
        return ""
    return "classes by number of images: " + ", ".join(
        f"{size}: {count:,}" for size, count in zip(sizes, classes, strict=True)
    )


def coarse_sizes(index: Index) -> dict[str, int]:
    """The number of classes of each coarse class (MaskCon's Tables 8 and 9); empty where no image has both labels."""
    if index.coarse is None or not (labelled := (index.coarse >= 0) & (index.fine >= 0)).any():
        return {}
    pairs = np.unique(np.stack([index.coarse, index.fine])[:, labelled], axis=1)
    return {name: int((pairs[0] == label).sum()) for label, name in enumerate(index.coarse_names)}


def class_counts(index: Index, rows: np.ndarray) -> np.ndarray:
    """[C] number of images of each fine class among ``rows``."""
    if index.targets is not None:
        return (index.targets[rows] == 1).sum(axis=0)
    labels = index.fine[rows]
    return np.bincount(labels[labels >= 0], minlength=len(index.fine_names))


def look(index: Index, console: Console) -> Seen:
    """Decode every image and mask, and draw every outline, on all cores."""
    with ThreadPool(os.cpu_count()) as pool:  # threads suffice: the decoder releases the GIL
        found = pool.imap(partial(_look_at, index), range(len(index)), chunksize=16)
        looks = list(track(found, "reading images", total=len(index), console=console))
    thumbnails_NT = np.stack([thumbnail for _, _, thumbnail in looks])
    return Seen(index, [fault for fault, _, _ in looks if fault], [digest for _, digest, _ in looks], thumbnails_NT)


def _look_at(index: Index, row: int) -> tuple[str | None, bytes, np.ndarray]:
    """Fault of an image, hash of its pixels, and thumbnail [T]."""
    try:
        if isinstance(index, MaskIndex):
            from fgssl.data.segmentation import read_pair  # torch takes seconds to import

            read_pair(index, row)
        image = read_row(index, row)
        if isinstance(index, ObjectIndex):
            from fgssl.data.detection import check_size, mask_of  # torch takes seconds to import

            check_size(index, row, image.size)
            for place in index.objects.of(row) if index.objects.outlines is not None else ():
                mask_of(index, row, place)
    except UserError as error:
        return str(error), b"", np.zeros(THUMBNAIL**2, dtype=np.uint8)
    digest = hashlib.blake2b(image.tobytes(), key=repr(image.size).encode(), digest_size=16).digest()
    small = image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX).convert("L")
    return None, digest, np.asarray(small).reshape(-1)
