"""The report of runs as a folder that a browser opens without a server and without a network."""

import glob
import importlib
import json
import shlex
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jinja2 import Environment, FileSystemLoader

import fgssl
from fgssl.data.datasets.base import DataSet
from fgssl.data.index import Index
from fgssl.data.sheet import write_sheet
from fgssl.errors import UserError
from fgssl.evaluation.embedding import Embeddings, with_label
from fgssl.evaluation.store import Stored, read_embeddings, same_image
from fgssl.report.compare import Comparison
from fgssl.report.confusion import Pair, whole_percent
from fgssl.report.explorer import photographs_of, write_explorer
from fgssl.report.figures import plain
from fgssl.report.pictures import draw_retrieval, in_words, title_of
from fgssl.report.plots import draw_table
from fgssl.report.runs import TASKS, RunFolder, run_of
from fgssl.report.tables import as_lists

PAGE = Path(__file__).parent / "page"
ASSETS = ("page.css", "page.js", "explorer.js")
CAPTIONS = {  # pictures of a run that are known, in their order
    "retrieval": "queries and their nearest neighbours",
    "similarity": "cosine similarity of pairs of images",
    "confusion": "class of the nearest neighbours",
    "coarse_confusion": "coarse class of the nearest neighbours",
    "tsne": "t-SNE of the embeddings",
    "umap": "UMAP of the embeddings",
}
QUERIES = 8  # in a retrieval grid
CHARTS = ("similarity", "confusion", "coarse_confusion", "tsne", "umap")  # dark letters on white


@dataclass
class Shown:
    """One section of the report: a run and the evaluations of its checkpoints.

    Attributes:
        run: the run that is named; the evaluation where its run is not among the given ones.
        folders: its folder and those of its evaluations.
        embedded: the one of them with its embeddings, or None.
    """

    run: RunFolder
    folders: list[Path] = field(default_factory=list)
    embedded: Path | None = None


def write_report(
    runs: list[RunFolder], tables: Sequence[Comparison], notes: list[str], out: Path, *, command: str, points: int,
    say: Callable[[str], None],
) -> Path:  # fmt: skip
    """Write the report; an earlier one in the folder is replaced when the new one is complete.

    Args:
        runs: finished runs.
        tables: their comparison.
        notes: messages of the comparison.
        out: folder of the report.
        command: command line, shown in the page.
        points: most images in the map of an explorer; 0: all.
        say: function that is called with a line about what is done next.

    Returns:
        The page.

    Raises:
        UserError: ``out`` holds something that is not a report.
    """
    check_place(out)
    place = out.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}_") as beside:
        built = Path(beside) / place.name
        build(built, runs, tables, notes, command, points, say)
        if place.exists():
            shutil.rmtree(place)
        built.rename(place)
    return out / "index.html"


def build(
    out: Path, runs: list[RunFolder], tables: Sequence[Comparison], notes: list[str], command: str, points: int,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Write the page and all that it shows into a new folder; arguments as of ``write_report``."""
    (out / "assets").mkdir(parents=True)
    for name in ASSETS:
        shutil.copyfile(PAGE / name, out / "assets" / name)
    indexes = Indexes()
    page = render(
        "index.html",
        title=heading(runs),
        version=fgssl.__version__,
        command=command,
        tables=[table_facts(table, number, out) for number, table in enumerate(tables)],
        words=("method", "settings", "backbone"),
        notes=notes,
        runs=[section(shown, number, out, indexes, points, say) for number, shown in enumerate(gathered(runs))],
        sheets=sheets(runs, out, indexes),
    )
    (out / "index.html").write_text(page, encoding="utf-8")


def check_place(out: Path) -> None:
    """Refuse a folder that holds anything but an earlier report.

    Raises:
        UserError: it does.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "assets" / "explorer.js").is_file())):
        raise UserError(f"--out: {out} exists and is no report of fgssl. Choose another folder.")


def render(template: str, **values: Any) -> str:
    """A page from a template; values are escaped."""
    environment = Environment(loader=FileSystemLoader(PAGE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(values)


# ---- tables ---------------------------------------------------------------------------------------------------------


def heading(runs: list[RunFolder]) -> str:
    return "Runs on " + ", ".join(sorted({run.results["data"]["dataset"] for run in runs}))


def table_facts(table: Comparison, number: int, out: Path) -> dict[str, Any]:
    """Texts of a table; writes its charts."""
    columns, rows, footnotes = as_lists(table)
    kinds = {"bars": "bars of the metrics", "recall": "Recall@K", "epochs": "curves over the epochs"}
    charts = [
        {"path": f"charts/{path.name}", "alt": f"{kinds[kind]}: {table.title}", "wide": kind == "bars"}
        for kind, path in draw_table(table, out / "charts", str(number), ".svg").items()
    ]
    return {"title": table.title, "columns": columns, "rows": rows, "footnotes": footnotes, "charts": charts}


# ---- runs -----------------------------------------------------------------------------------------------------------


def gathered(runs: list[RunFolder]) -> list[Shown]:
    """The runs, each with the evaluations of its checkpoint and the embeddings of the test rows.

    Another checkpoint of a run, such as ``best.ckpt``, stands by itself. Embeddings are those in the run folder, else
    those of an evaluation of its last checkpoint by ``fgssl embed``, which writes them beside the run.
    """
    found: dict[tuple[Path, str], Shown] = {}
    for run in sorted(runs, key=lambda run: run.origin is not run):  # trained runs before evaluations
        shown = found.setdefault((run.origin.folder.resolve(), run.checkpoint), Shown(run))
        shown.folders.append(run.folder)
    for shown in found.values():
        known = {folder.resolve() for folder in shown.folders}
        beside = sorted(shown.run.folder.parent.glob(f"{glob.escape(shown.run.folder.name)}_embed*"))
        shown.folders += [folder for folder in beside if folder.resolve() not in known and evaluates(folder, shown.run)]
        dataset = shown.run.results["data"]["dataset"]
        shown.embedded = next((folder for folder in shown.folders if holds_embeddings(folder, dataset)), None)
    return sorted(found.values(), key=lambda shown: shown.run.name)


def evaluates(folder: Path, run: RunFolder) -> bool:
    """Whether a folder beside a run evaluates its checkpoint."""
    other = run_of(str(folder))
    trained = run_of(other.results.get("ckpt_path"), other) if other else None
    if other is None or trained is None:
        return False
    return trained.folder.resolve() == run.folder.resolve() and other.checkpoint == run.checkpoint


def holds_embeddings(folder: Path, dataset: str) -> bool:
    """Whether a run folder has embeddings of the test rows of a data set."""
    about = folder / "embeddings" / "about.json"
    facts = json.loads(about.read_text()) if about.is_file() else {}
    return (facts.get("part"), facts.get("dataset")) == ("test", dataset)


def section(
    shown: Shown, number: int, out: Path, indexes: "Indexes", points: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Facts of a run for the page; writes its pictures and its explorer."""
    run, results = shown.run, shown.run.results
    stored = read_embeddings(shown.embedded) if shown.embedded else None
    epochs = "" if run.epochs is None else f", {run.epochs} epochs"
    facts: dict[str, Any] = {
        "name": run.name,
        "method": run.method,
        "facts": f"{results['data']['dataset']}{epochs}, seed {run.seed}. {in_words(known_metrics(run))}".strip(),
        "command": results.get("command"),
        "pictures": list(pictures(shown, stored, Path("pictures") / str(number), out, indexes)),
        "hint": hint(run),
    }
    if stored is None or shown.embedded is None:
        return facts
    say(f"map of {run.name} ...")
    folder = Path("explorers") / str(number)
    photograph = photographs_of(stored.paths, indexes.pixels(shown.embedded, stored))
    explored = write_explorer(stored, photograph, out / folder, points)
    of = f"{explored.images:,} of " if explored.images < len(stored.index) else ""
    note = f"{of}{len(stored.index):,} images of {stored.about['dataset']}. "
    note += "Right: the nearest neighbour among the images of the map is of the same class."
    if explored.missing:
        note += f" {explored.missing:,} photographs could not be read and are grey."
    (out / folder / "index.html").write_text(render("explorer.html", title=run.name, note=note), encoding="utf-8")
    return facts | {
        "explorer": str(folder / "index.html"),
        "images": explored.images,
        "pairs": [pair_facts(pair, stored.about["fine_names"]) for pair in explored.pairs],
    }


def known_metrics(run: RunFolder) -> dict[str, float]:
    return {name.removeprefix("test/"): value for name, value in run.results["metrics"].items()}


def hint(run: RunFolder) -> str:
    """The command that writes the embeddings that an explorer needs; empty where a run has none."""
    if run.results["method"] in TASKS or "data.dataset" not in run.config:  # a result of fgssl davis has no checkpoint
        return ""
    folder = shlex.quote(str(run.folder))
    return f"No explorer: the run has no embeddings. Write them with: fgssl embed --ckpt_path {folder}"


def pair_facts(pair: Pair, names: Sequence[str]) -> dict[str, Any]:
    percent = whole_percent(np.array([[pair.same, pair.confused, pair.other]]))[0].tolist()
    return {"ours": plain(names[pair.ours]), "theirs": plain(names[pair.theirs]), "images": pair.images} | {
        "percent": percent
    }


def pictures(
    shown: Shown, stored: Stored | None, folder: Path, out: Path, indexes: "Indexes"
) -> Iterator[dict[str, Any]]:
    """Copy the pictures of a run, the known ones first; each name once, from the run before its evaluations.

    Those of the retrieval are drawn from the embeddings if the run has none (``retrieval.grid`` 0).
    """
    found: dict[str, Path] = {}
    for source in shown.folders:
        for path in sorted([*source.glob("*.png"), *source.glob("*.jpg")]):
            found.setdefault(path.stem, path)
    (out / folder).mkdir(parents=True)
    evaluated = shown.run.results.get("gallery") == "evaluated"
    if "retrieval" not in found and stored is not None and evaluated:
        index = indexes.of(shown.run.folder)
        queries = with_label(Embeddings(*map(torch.from_numpy, (stored.embedding, stored.fine, stored.index))))
        if index is not None and len(queries.fine) > 1 and holds(index, stored):
            title = title_of(shown.run.folder, known_metrics(shown.run))
            draw_retrieval(queries, None, index, out / folder, [], QUERIES, title)
            found |= {path.stem: path for path in (out / folder).iterdir()}
    order = list(CAPTIONS)
    for name in sorted(found, key=lambda name: (order.index(name) if name in order else len(order), name)):
        copy = out / folder / found[name].name
        if not copy.exists():
            shutil.copyfile(found[name], copy)
        yield {"path": str(folder / copy.name), "caption": CAPTIONS.get(name, name), "chart": name in CHARTS}


def holds(index: Index, stored: Stored) -> bool:
    """Whether the rows of a data set are still those that were embedded: images of a folder may come and go."""
    inside = int(stored.index.max()) < len(index)
    return inside and all(map(same_image, index.paths[stored.index].tolist(), stored.paths.tolist()))


# ---- data sets ------------------------------------------------------------------------------------------------------


class Indexes:
    """Data sets of runs, each read once; None for one that cannot be read here."""

    def __init__(self) -> None:
        self._read: dict[str, Index | None] = {}

    def of(self, folder: Path) -> Index | None:
        """Data set of a run folder; None for that of ``fgssl davis``, which is videos."""
        section = (yaml.safe_load((folder / "config.yaml").read_text()).get("data") or {}).get("dataset")
        if section is None:
            return None
        key = yaml.safe_dump(section)
        if key not in self._read:
            self._read[key] = read_index(section)
        return self._read[key]

    def pixels(self, folder: Path, stored: Stored) -> np.ndarray | None:
        """Images [N, H, W, 3] of embedded rows of a data set that is held in memory; None: they are in files."""
        if Path(str(stored.paths[0])).is_file():
            return None
        index = self.of(folder)
        return None if index is None or index.pixels is None else index.pixels[stored.index]


def read_index(section: dict[str, Any]) -> Index | None:
    """Index of the data set of a configuration; None if its files are not here."""
    module, _, name = str(section["class_path"]).rpartition(".")
    try:
        dataset: DataSet = getattr(importlib.import_module(module), name)(**(section.get("init_args") or {}))
        with warnings.catch_warnings(action="ignore"):  # of other counts than the published ones: the run has said it
            return dataset.index()
    except (UserError, ImportError, AttributeError, TypeError):
        return None


def sheets(runs: list[RunFolder], out: Path, indexes: Indexes) -> list[dict[str, str]]:
    """Write a sheet of sample images of each data set."""
    written: dict[str, dict[str, str]] = {}
    for run in runs:
        name = run.results["data"]["dataset"]
        index = None if name in written else indexes.of(run.folder)
        if index is not None:
            (out / "data").mkdir(exist_ok=True)
            write_sheet(index, out / "data" / f"{name}.jpg")
            written[name] = {"name": name, "path": f"data/{name}.jpg"}
    return list(written.values())
