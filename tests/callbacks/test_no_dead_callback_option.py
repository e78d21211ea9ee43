"""Every option of the callbacks changes what its help says, and nothing else, in a run of two epochs and a test.

As in ``tests/data/test_no_dead_data_option.py``, ``TABLE`` has a line for each option; a new one without a line fails.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from fgssl.callbacks.best_on_test import BestOnTest
from fgssl.callbacks.box_knn import BoxKNN
from fgssl.callbacks.collapse import Collapse
from fgssl.callbacks.last_checkpoint import LastCheckpoint
from fgssl.callbacks.neighbours import Neighbours
from fgssl.callbacks.online import OnlineKNN, OnlineProbe
from fgssl.callbacks.progress import ProgressBar
from fgssl.callbacks.reconstructions import Reconstructions
from fgssl.callbacks.record import Record
from fgssl.callbacks.retrieval import Retrieval, statistics_over_ranks
from fgssl.callbacks.shards import Shards
from fgssl.data.datamodule import DataModule
from fgssl.data.datasets import CUB, Digits
from fgssl.data.protocols import Protocol
from fgssl.data.views import PairViews, SingleView
from fgssl.evaluation.embedding import Embeddings
from fgssl.evaluation.reranking import Rerank
from fgssl.methods import MAE, MLS
from fgssl.methods.base import Method
from fgssl.methods.registry import subclasses
from fgssl.metrics.retrieval import finish
from fgssl.nn.backbones import Backbone
from fgssl.optim import Optim
from fgssl.tasks import Finetune
from tests import trees
from tests.options import Changes, Row, cases, changed, options_of
from tests.tiny import BACKBONE, tiny_trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*published")

DIGITS = Digits()  # read once
QUICK = Optim(name="adam", lr=1e-2, warmup=0)
VIT = {"img_size": 16, "patch_size": 4, "depth": 1, "embed_dim": 16, "num_heads": 2}


@pytest.fixture(scope="module")
def cub(tmp_path_factory) -> Path:
    return trees.make_cub(tmp_path_factory.mktemp("cub"))


# ---- what is seen ---------------------------------------------------------------------------------------------------

Seen = dict[str, Any]


class Epochs(Callback):
    """The metrics known after each epoch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer, method) -> None:
        self.seen.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def of_run(cub: Path, out: Path, callback: Callback, method: Method, dataset: str = "digits") -> Seen:
    """Metrics after each of two epochs and of a test, the weights, and the pictures with their sizes in px."""
    callback.folder = out  # type: ignore[attr-defined]  # of Retrieval; set by the application
    images = CUB(str(cub), partial=True) if dataset == "cub" else DIGITS
    protocol = Protocol(val_fraction=0.6, label_fraction=1.0 if dataset == "cub" else 0.2)
    size = 32 if dataset == "cub" else 16
    views = PairViews("digits", size) if isinstance(method, MLS) else SingleView(size)
    data = DataModule(images, protocol, views, batch_size=4, eval_batch_size=32, num_workers=0)
    epochs, logger = Epochs(), CSVLogger(out.parent, name=out.name, version="")
    limits = {"limit_train_batches": 4, "limit_val_batches": 3, "limit_test_batches": 4}
    trainer = tiny_trainer(max_epochs=2, callbacks=[callback, epochs], logger=logger, **limits)
    torch.manual_seed(2)
    trainer.fit(method, data)
    weights = {name: value.clone() for name, value in method.state_dict().items() if isinstance(value, torch.Tensor)}
    (tested,) = trainer.test(method, data, verbose=False)
    pictures = [*out.glob("*.png"), *out.glob("*.jpg")]
    return {
        "first epoch": epochs.seen[0],
        "second epoch": epochs.seen[1],
        "test": tested,
        "weights": weights,
        "pictures": sorted(path.name for path in pictures),
        "width": [Image.open(path).width for path in pictures[:1]],
        "height": [Image.open(path).height for path in pictures[:1]],
    }


def of_classifier(cub: Path, out: Path, kind: type[Callback], dataset: str = "digits", **arguments: Any) -> Seen:
    torch.manual_seed(0)
    method = Finetune(BACKBONE, num_fine=10, optim=QUICK)
    return of_run(cub, out, kind(**arguments), method, dataset)


def of_mls(cub: Path, out: Path, **arguments: Any) -> Seen:
    torch.manual_seed(0)
    method = MLS(BACKBONE, dim=6, hidden=8, memory=24, k=3, optim=QUICK)
    return of_run(cub, out, Neighbours(**arguments), method)


def of_mae(cub: Path, out: Path, **arguments: Any) -> Seen:
    torch.manual_seed(0)
    backbone = Backbone("vit_tiny_patch16_224", options=VIT)
    method = MAE(backbone, decoder_dim=16, decoder_depth=1, decoder_heads=2, optim=QUICK)
    return of_run(cub, out, Reconstructions(**arguments), method)


def of_reranking(cub: Path, out: Path, **arguments: Any) -> Seen:
    """Metrics of random embeddings."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(40)
    embeddings = Embeddings(torch.randn(40, 4, generator=generator), rows % 5, rows)
    return {"metrics": finish(statistics_over_ranks(embeddings, None, [1, 2, 5], Rerank(**arguments)))}


class Written(LastCheckpoint):
    """Notes the steps at which a checkpoint is written, and writes none."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.steps: list[int] = []

    def _save_checkpoint(self, trainer, filepath: str) -> None:
        self._last_global_step_saved = trainer.global_step
        self.steps.append(trainer.global_step)


def of_checkpoint(cub: Path, out: Path, **arguments: Any) -> Seen:
    written = Written(**({"folder": Path("checkpoints")} | arguments))
    torch.manual_seed(0)
    data = DataModule(DIGITS, Protocol(label_fraction=0.05), SingleView(32), batch_size=8, num_workers=0)
    trainer = tiny_trainer(max_epochs=4, limit_train_batches=3, callbacks=[written], enable_checkpointing=True)
    trainer.fit(Finetune(BACKBONE, num_fine=10, optim=QUICK), data)
    return {"steps": written.steps, "place": written.path}


# ---- the table ------------------------------------------------------------------------------------------------------

EPOCHS = {"first epoch", "second epoch"}
ALWAYS = {*EPOCHS, "test"}
RECIPROCAL = {"k_reciprocal": True}
EXPANDED = {"query_expansion": 5}

# class -> what looks at it, arguments of the base, lines
TABLE: dict[type, tuple[Any, dict[str, Any], Row]] = {
    OnlineProbe: (of_classifier, {"kind": OnlineProbe}, {"lr": Changes(0.1, ALWAYS)}),
    OnlineKNN: (
        of_classifier, {"kind": OnlineKNN},
        {
            "k": Changes(1, ALWAYS),
            "temperature": Changes(10.0, ALWAYS),
            "every_n_epochs": Changes(2, {"first epoch"}),
        },
    ),
    Collapse: (of_classifier, {"kind": Collapse}, {"images": Changes(8, EPOCHS)}),
    BestOnTest: (
        of_classifier, {"kind": BestOnTest},
        {
            "ks": Changes([1, 2], ALWAYS),
            "nmi": Changes(True, ALWAYS),
            "structure": Changes(True, EPOCHS),
            "every_n_epochs": Changes(2, {"first epoch", "test"}),
        },
    ),
    BoxKNN: (
        of_classifier, {"kind": BoxKNN, "dataset": "cub"},
        {
            "k": Changes(1, ALWAYS),
            "temperature": Changes(0.001, ALWAYS),
            "every_n_epochs": Changes(2, {"first epoch"}),
            "clusters": Changes(5, ALWAYS),
        },
    ),
    Neighbours: (
        of_mls, {"every_n_epochs": 2, "count": 2, "neighbours": 4},
        {
            "every_n_epochs": Changes(1, {"pictures"}),
            "count": Changes(3, {"height"}),
            "neighbours": Changes(5, {"width"}),
        },
    ),
    Reconstructions: (of_mae, {"count": 2}, {"count": Changes(4, {"height"})}),
    Retrieval: (
        of_classifier, {"kind": Retrieval, "grid": 0},
        {
            "ks": Changes([1, 3], ALWAYS),
            "gallery": Changes("train", ALWAYS),
            "grid": Changes(2, {"pictures", "width", "height"}),
            "extra": [
                Changes([name], {"test"}) for name in ("clustering", "density", "spectral_decay", "cmd_code")
            ],
            "extra_in_fit": Changes(True, EPOCHS, {"extra": ["density"]}),
            "clusters": Changes(3, {"test"}, {"extra": ["clustering"]}),
            "rerank": Changes(Rerank(query_expansion=3), ALWAYS),
        },
    ),
    Rerank: (
        of_reranking, {},
        {
            option: Changes(value, {"metrics"}, beside)
            for option, value, beside in (
                ("query_expansion", 5, {}), ("database_augmentation", 5, {}), ("alpha", 0.0, EXPANDED),
                ("k_reciprocal", True, {}), ("k1", 6, RECIPROCAL), ("k2", 1, RECIPROCAL), ("lam", 0.9, RECIPROCAL),
            )
        },
    ),
    LastCheckpoint: (
        of_checkpoint, {},
        {
            "folder": Changes(Path("elsewhere"), {"place"}),
            "every_n_epochs": Changes(3, {"steps"}),
            "every_n_train_steps": Changes(2, {"steps"}),
        },
    ),
}  # fmt: skip
ROWS = {kind: row for kind, (_, _, row) in TABLE.items()}
OF_THE_APPLICATION = {Record, ProgressBar, Shards}  # which gives their arguments itself


def test_every_callback_with_options_has_a_row():
    ours = {cls for cls in subclasses(Callback) if cls.__module__.startswith("fgssl.")}
    assert {cls for cls in ours if options_of(cls)} - OF_THE_APPLICATION == set(ROWS) - {Rerank}


@pytest.mark.parametrize("kind", ROWS, ids=lambda kind: kind.__name__)
def test_every_option_has_a_line(kind):
    assert options_of(kind) == set(ROWS[kind])


BASES: dict[tuple, Seen] = {}


@pytest.mark.parametrize(("kind", "option", "line"), cases(ROWS))
def test_another_value_changes_what_its_help_says(kind, option, line, cub, tmp_path):
    look, base, _ = TABLE[kind]
    key = (kind, repr(line.beside))
    if key not in BASES:
        BASES[key] = look(cub, tmp_path / "base", **(base | line.beside))
    seen = look(cub, tmp_path / "run", **(base | line.beside | {option: line.value}))
    found = changed(seen, BASES[key])
    assert found, "no effect"
    assert found <= line.parts  # accuracies of few images may be equal by chance
