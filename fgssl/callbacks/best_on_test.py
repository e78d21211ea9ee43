"""The best epoch by the test rows, as some released codes report their results."""

from itertools import islice
from typing import Any

from lightning.pytorch import Callback, Trainer

from fgssl.callbacks.evaluation import log_exactly
from fgssl.callbacks.online import evaluating
from fgssl.callbacks.retrieval import extra_metrics, statistics_over_ranks
from fgssl.distributed import from_rank_zero
from fgssl.errors import UserError, at_least
from fgssl.evaluation.embedding import Embeddings, embed_rows, with_label
from fgssl.metrics.clustering import clustering_metrics
from fgssl.metrics.retrieval import finish


class BestOnTest(Callback):
    """Best Recall@K over the epochs, measured on the test rows: ``test/best_epoch_recall@K`` and its epoch.

    A selection on the test rows, higher than what an unseen set would give: compare it only with results that were
    selected alike, such as those of OBD-SD's released code. ``test/recall@K`` stays that of the last epoch. Off by
    default; ``--trainer.callbacks+ BestOnTest`` turns it on. Embeds the test rows after each epoch; training itself
    is unchanged.

    The test at the end of a run logs ``test/best_epoch_recall@K`` and ``test/best_epoch_of_recall@K``, the number of
    epochs trained by then; each metric has its own best epoch, the first one where several are equal. The value of
    each epoch is logged as ``test_each_epoch/recall@K``.

    Args:
        ks: the K of Recall@K.
        nmi: measure NMI too, by k-means with as many clusters as test classes; takes longer than the rest.
        structure: log embedding density and spectral decay of each epoch too, ``test_each_epoch/density`` and
            ``test_each_epoch/spectral_decay``; they have no best epoch.
        every_n_epochs: measure after every n-th epoch, and after the last.
    """

    def __init__(
        self,
        ks: list[int] = [1],  # noqa: B006
        nmi: bool = False,
        structure: bool = False,
        every_n_epochs: int = 1,
    ):
        at_least(1, every_n_epochs=every_n_epochs, **{f"ks: {k}": k for k in ks})
        self.ks, self.nmi, self.structure, self.every_n_epochs = list(ks), nmi, structure, every_n_epochs
        self.best: dict[str, tuple[float, int]] = {}  # metric: its best value, epochs trained by then

    def setup(self, trainer: Trainer, method, stage: str) -> None:
        if stage == "fit" and not trainer.limit_test_batches:
            raise UserError(
                "BestOnTest reads the test rows after each epoch, and trainer.limit_test_batches is 0. "
                "Set another limit, or --trainer.callbacks null."
            )
        parts = trainer.datamodule.parts  # type: ignore[attr-defined]
        if not method.embeds or parts.index.targets is not None or (parts.index.fine[parts.test] < 0).all():
            raise UserError(
                "BestOnTest needs a method that embeds images and test rows with one class label each. Take it out of "
                "trainer.callbacks."
            )

    def on_train_epoch_end(self, trainer: Trainer, method) -> None:
        trained = trainer.current_epoch + 1
        if trained % self.every_n_epochs and trained != trainer.max_epochs:
            return
        loader, limit = trainer.datamodule.test_dataloader(), trainer.limit_test_batches  # type: ignore[attr-defined]
        batches = limit if isinstance(limit, int) else int(len(loader) * limit)  # as many as the test at the end takes
        with evaluating(method):
            rows = with_label(embed_rows(trainer, method, islice(loader, batches)))
        measured = self._measure(trainer, rows)
        for name, value in measured.items():
            if name not in self.best or value > self.best[name][0]:
                self.best[name] = (value, trained)
        if self.structure:
            measured |= from_rank_zero(lambda: extra_metrics(["density", "spectral_decay"], rows))
        log_exactly(method, "test_each_epoch", measured)

    def _measure(self, trainer: Trainer, rows: Embeddings) -> dict[str, float]:
        """The metrics of the test rows, the same on every rank."""
        metrics = finish(statistics_over_ranks(rows, None, self.ks))
        measured = {f"recall@{k}": metrics[f"recall@{k}"] for k in self.ks}
        if self.nmi:
            measured["nmi"] = from_rank_zero(lambda: clustering_metrics(rows.embedding, rows.fine)["nmi"])
        return measured

    def on_test_epoch_end(self, trainer: Trainer, method) -> None:
        values = {f"best_epoch_{name}": value for name, (value, _) in self.best.items()}
        epochs = {f"best_epoch_of_{name}": float(trained) for name, (_, trained) in self.best.items()}
        log_exactly(method, "test", values | epochs)

    def state_dict(self) -> dict[str, Any]:
        return {"best": {name: list(found) for name, found in self.best.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = {name: (value, trained) for name, (value, trained) in state_dict["best"].items()}
