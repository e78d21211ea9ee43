"""Writes embeddings to files while they are computed."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from fgssl.checkpoint import fingerprint
from fgssl.evaluation.store import absolute, write_shard
from fgssl.run import write_json


class Shards(Callback):
    """Write the embeddings of a test or predict pass to ``<folder>/<part>-<rank>-<number>.npz``.

    Args:
        folder: Folder of the files.
        part: Part of the data in the files' names: train, val or test.
        rows: Images in each file, about: images that take the place of unreadable ones are written once.
        weights: State dict of the checkpoint that embeds; None: the network as it was built.
    """

    def __init__(self, folder: Path, part: str, rows: int, weights: dict[str, Tensor] | None = None):
        self.folder, self.part, self.rows, self.weights = folder, part, rows, weights
        self._waiting: list[dict[str, Tensor]] = []
        self._written = 0
        self._rows: set[int] = set()  # that were written

    def setup(self, trainer: Trainer, method, stage: str) -> None:
        if trainer.is_global_zero:
            # Those of an earlier start, whose process has ended: Record, before this, has locked the run folder.
            if self.folder.exists():
                shutil.rmtree(self.folder)
            # Here, before a precision of 16 bits changes the network.
            self._fingerprint = fingerprint(method.state_dict() if self.weights is None else self.weights)

    def on_test_batch_end(self, trainer: Trainer, method, outputs, batch, batch_idx: int, dataloader_idx=0) -> None:
        self._waiting.append({name: value.cpu() for name, value in outputs.items()})
        if sum(len(output["index"]) for output in self._waiting) >= self.rows:
            self._write(trainer)

    on_predict_batch_end = on_test_batch_end

    def on_test_epoch_end(self, trainer: Trainer, method) -> None:
        self._write(trainer)
        if trainer.is_global_zero:
            index = trainer.datamodule.parts.index
            about = {"dataset": index.name, "part": self.part, "network": self._network_of(trainer, method)}
            about |= {"fine_names": list(index.fine_names), "coarse_names": list(index.coarse_names)}
            about["preprocessing"] = trainer.datamodule.preprocessing.to_dict()
            write_json(self.folder / "about.json", about)
        trainer.strategy.barrier()  # rank 0 then reads the files of all ranks

    on_predict_epoch_end = on_test_epoch_end

    def _write(self, trainer: Trainer) -> None:
        if not self._waiting:
            return
        outputs, self._waiting = self._waiting, []
        columns = {name: np.concatenate([output[name].numpy() for output in outputs]) for name in outputs[0]}
        new = [place for place, row in enumerate(columns["index"].tolist()) if self._is_new(row)]
        columns = {name: column[new] for name, column in columns.items()}
        index, rows = trainer.datamodule.parts.index, columns["index"]
        columns["embedding"] = columns["embedding"].astype(np.float32)
        columns["coarse"] = np.full(len(rows), -1) if index.coarse is None else index.coarse[rows]
        columns["paths"] = absolute(np.asarray(index.paths)[rows])
        write_shard(self.folder, f"{self.part}-{trainer.global_rank}-{self._written:05d}", columns)
        self._written += 1

    def _is_new(self, row: int) -> bool:
        """Whether a row is seen for the first time; it comes again in the place of an unreadable image."""
        known = row in self._rows
        self._rows.add(row)
        return not known

    def _network_of(self, trainer: Trainer, method) -> dict[str, Any]:
        """What ``fgssl.load`` builds the embedding network from, and the fingerprint by which it knows it."""
        return {
            "class": f"{type(method).__module__}.{type(method).__qualname__}",
            "arguments": method.arguments(),
            "checkpoint": str(Path(trainer.ckpt_path).resolve()) if trainer.ckpt_path else None,
            "seed": int(os.environ.get("PL_GLOBAL_SEED", 0)),
            "fingerprint": self._fingerprint,
        }
