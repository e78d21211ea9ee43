"""A searchable set of embedded images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fgssl.checkpoint import fingerprint
from fgssl.data.datasets.base import DataSet
from fgssl.data.datasets.folder import Folder
from fgssl.data.images import read_row
from fgssl.data.index import Index as Rows
from fgssl.errors import UserError
from fgssl.evaluation.reranking import Rerank, reranked_search
from fgssl.evaluation.store import Stored, absolute, read_embeddings, write_shard
from fgssl.inference.model import Model, load
from fgssl.run import write_json


class Hit(NamedTuple):
    """A found image.

    Attributes:
        path: path of the image, or its name where it is in no file.
        cosine: cosine similarity to the query, -1 to 1.
        label: name of its class; None: no label.
        row: its row in the data set.
    """

    path: str
    cosine: float
    label: str | None
    row: int


class Index:
    """Embedded images, and exact search among them by cosine similarity (FAISS).

    Args:
        stored: embeddings, labels and paths.
        model: network that embeds queries; None: the one that ``source`` names, loaded at the first query.
        source: where ``load`` finds the network; empty: nowhere.
    """

    def __init__(self, stored: Stored, model: Model | None = None, source: str = ""):
        self.stored, self.source = stored, source
        self._model = model

    @classmethod
    def build(
        cls,
        model: Model,
        images: str | Path | Sequence[str | Path] | DataSet,
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> "Index":
        """Embed images.

        Args:
            model: network of ``fgssl.load``.
            images: folder, nested or flat, whose sub-folders are classes; CSV or text file of ``Folder``; list of
                paths; or data set. All parts of a data set are taken.
            batch_size: images that pass through the network at a time.
            num_workers: processes that read images; 0 reads in this process.

        Raises:
            UserError: there is no image, or one cannot be read; the message names it.
        """
        rows = _rows(images)
        embedding = model.embed_sequence(_Images(rows), batch_size, num_workers)
        coarse = np.full(len(rows), -1) if rows.coarse is None else rows.coarse
        about: dict[str, Any] = {"dataset": rows.name, "part": "all"}
        about |= {"model": model.source, "whose": model.whose, "fingerprint": fingerprint(model.state_dict())}
        about["preprocessing"] = model.preprocessing.to_dict()
        about |= {"fine_names": list(rows.fine_names), "coarse_names": list(rows.coarse_names)}
        numbers = np.arange(len(rows))
        stored = Stored(embedding.cpu().numpy(), rows.fine, coarse, numbers, np.asarray(rows.paths), about)
        return cls(stored, model, model.source)

    @classmethod
    def load(cls, folder: str | Path, model: Model | None = None) -> "Index":
        """Index that ``save`` or ``fgssl embed`` wrote.

        Args:
            folder: folder that was given to ``save``, or run folder of ``fgssl embed``.
            model: network that embeds queries; None: the one that built the index.

        Raises:
            UserError: there are no embeddings.
        """
        return cls(read_embeddings(folder), model, str(folder))

    def save(self, folder: str | Path) -> None:
        """Write the embeddings to ``<folder>/embeddings/``. The network is stored by name, not by its weights:
        of these a fingerprint is kept, so that others are refused. Folder and network may be moved together.

        Raises:
            UserError: the folder already holds embeddings.
        """
        inner = Path(folder) / "embeddings"
        if inner.exists():
            raise UserError(f"{inner} already exists. Choose another folder.")
        columns = {name: value for name, value in self.stored._asdict().items() if name != "about"}
        columns["paths"] = absolute(columns["paths"])
        write_shard(inner, f"{self.stored.about['part']}-0-00000", columns)
        write_json(inner / "about.json", self.stored.about | {"folder": str(inner.resolve())})

    @property
    def model(self) -> Model:
        """The network that embeds queries.

        Raises:
            UserError: it cannot be loaded.
        """
        if self._model is None:
            if not self.source:
                raise UserError("this index has no network for its queries. Give one: Index.load(folder, model).")
            self._model = load(self.source)
        return self._model

    def __len__(self) -> int:
        return len(self.stored.index)

    def __repr__(self) -> str:
        name, features = self.stored.about["dataset"], self.stored.embedding.shape[1]
        return f"Index of {len(self):,} images of {name}, {features} features"

    def search(self, query: Any, k: int = 10, rerank: Rerank = Rerank()) -> Any:
        """The k nearest images of each query, nearest first.

        Args:
            query: an image or a list of images, as of ``Model.embed``.
            k: number of neighbours.
            rerank: re-ranking; none by default.

        Returns:
            A list of k ``Hit`` for an image; a list of such lists for a list or a batch of images.

        Raises:
            UserError: an image cannot be read, or ``k`` is not 1 to the number of images.
        """
        cosine_Qk, ids_Qk = self.search_features(self.model.embed(query), k, rerank)
        found = [self._hits(*line) for line in zip(cosine_Qk, ids_Qk, strict=True)]
        one = not isinstance(query, list | tuple) and not (isinstance(query, Tensor) and query.ndim == 4)
        return found[0] if one else found

    def neighbours(self, rows: Sequence[int], k: int = 10, rerank: Rerank = Rerank()) -> list[list[Hit]]:
        """The k nearest images of images of the index, without themselves.

        Args:
            rows: rows of the data set, as ``Hit.row``.
            k: number of neighbours.
            rerank: re-ranking; none by default.

        Raises:
            UserError: a row is not in the index.
        """
        positions = self.positions(rows)
        return [self._hits(*line) for line in zip(*self.search_positions(positions, k, rerank), strict=True)]

    def positions(self, rows: Sequence[int]) -> list[int]:
        """Positions of data-set rows in the index.

        Raises:
            UserError: a row is not in the index.
        """
        place = {int(row): position for position, row in enumerate(self.stored.index)}
        missing = [row for row in rows if row not in place]
        if missing:
            raise UserError(f"{missing[0]} is not one of the {len(self)} rows (the first is {self.stored.index[0]}).")
        return [place[row] for row in rows]

    def search_features(self, features_QF: Tensor, k: int, rerank: Rerank = Rerank()) -> tuple[np.ndarray, np.ndarray]:
        """Cosine similarities and positions [Q, k] of the images nearest to features [Q, F]."""
        return self._search(features_QF.cpu(), k, rerank, None)

    def search_positions(
        self, positions: Sequence[int], k: int, rerank: Rerank = Rerank()
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cosine similarities and positions [Q, k] of the neighbours of images of the index, without themselves."""
        chosen = torch.as_tensor(positions)
        return self._search(torch.from_numpy(self.stored.embedding)[chosen], k, rerank, chosen)

    def _search(
        self, features_QF: Tensor, k: int, rerank: Rerank, exclude: Tensor | None
    ) -> tuple[np.ndarray, np.ndarray]:
        most = len(self) - (exclude is not None)
        if not 1 <= k <= most:
            raise UserError(f"k is {k}; it must be 1 to {most}, as the index holds {len(self)} images.")
        cosine_Qk, ids_Qk = reranked_search(
            features_QF, torch.from_numpy(self.stored.embedding), k, rerank, exclude=exclude
        )
        return cosine_Qk.numpy(), ids_Qk.numpy()

    def label(self, position: int) -> str | None:
        """Class of an image of the index; None: no label."""
        fine = int(self.stored.fine[position])
        return self.stored.about["fine_names"][fine] if fine >= 0 else None

    def _hits(self, cosine_k: np.ndarray, ids_k: np.ndarray) -> list[Hit]:
        stored = self.stored
        return [
            Hit(str(stored.paths[place]), float(cosine), self.label(place), int(stored.index[place]))
            for cosine, place in zip(cosine_k, ids_k, strict=True)
        ]


class _Images:
    """The images of a data set, read when they are asked for."""

    def __init__(self, rows: Rows):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Image.Image:
        return read_row(self.rows, row)


def _rows(images: Any) -> Rows:
    if isinstance(images, DataSet):
        return images.index()
    if isinstance(images, str | Path):
        return Folder(str(images)).index()
    paths = np.array([str(path) for path in images])
    return Rows("list", paths, np.full(len(paths), -1), (), np.full(len(paths), "train"))
