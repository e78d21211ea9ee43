"""A linear probe and a k-NN classifier that run during training.

Off by default; ``trainer.callbacks+: {class_path: OnlineProbe}`` in an experiment turns one on. Both look at
``Method.embed`` in evaluation mode, without gradient, and draw no random number: the method trains bit for bit as it
would without them. They use fine labels, which pre-training may not see: report them as such.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F

from fgssl.callbacks.evaluation import Evaluation, log_exactly
from fgssl.distributed import any_rank, from_rank_zero, mean_over_ranks
from fgssl.errors import UserError, above, at_least
from fgssl.evaluation.embedding import Embeddings, collect, embed_rows, with_label
from fgssl.evaluation.knn import knn_accuracy
from fgssl.metrics.classification import topk_accuracy


@contextmanager
def evaluating(method: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; restores the mode of each module afterwards."""
    modes = {module: module.training for module in method.modules()}
    method.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def embed_view(trainer: Trainer, method: Any, images: Tensor) -> Tensor:
    """[B, F] features of a training view as evaluation sees them, in float32 or the method's float64."""
    with evaluating(method), trainer.precision_plugin.forward_context():
        features_BF = method.embed(images)
    return features_BF.to(method.dtype) if method.dtype == torch.float64 else features_BF.float()


class OnlineEvaluation(Evaluation):
    """Base of both: measures the embeddings of the validation rows and of the final test, and logs the figures.

    Rows without a class label are left out.
    """

    def measure(self, trainer: Trainer, method, rows: Embeddings) -> dict[str, float]:
        """Figures of the evaluated rows, of which there are some, the same on every rank."""
        raise NotImplementedError

    def setup(self, trainer: Trainer, method, stage: str) -> None:
        if stage != "fit":
            return
        parts = trainer.datamodule.parts
        if parts.index.targets is not None or (parts.index.fine[parts.train] < 0).any():
            raise UserError(
                f"{type(self).__name__} needs one class label of each training image, and {parts.index.name} has not "
                "all. Take it out of trainer.callbacks."
            )
        if not trainer.datamodule.has_validation:
            rank_zero_warn(
                f"{type(self).__name__}: the protocol holds no validation rows out (data.protocol.val_fraction), so "
                "that it is evaluated once, in the test at the end."
            )

    def evaluate(self, trainer: Trainer, method, outputs: list[dict], part: str) -> None:
        rows = with_label(collect(outputs))
        if len(rows.fine):
            log_exactly(method, part, self.measure(trainer, method, rows))


class OnlineProbe(OnlineEvaluation):
    """A linear classifier trained on the features of each training batch's first view, beside the method.

    Logs ``train/online_top1`` a step, and ``online_top1``, ``online_top5`` of the validation and test rows. Its weights
    and optimiser are in the checkpoint. Several processes train the one classifier that one process would.

    Args:
        lr: Learning rate of Adam.
    """

    def __init__(self, lr: float = 1e-3):
        super().__init__()
        above(0, lr=lr)
        self.lr = lr
        self.classifier: nn.Linear | None = None
        self._restored: dict[str, Any] = {}

    def on_train_batch_end(self, trainer: Trainer, method, outputs, batch, batch_idx: int) -> None:
        features_BF = embed_view(trainer, method, batch.views[0])
        if any_rank(~torch.isfinite(features_BF).all(), method.device):
            return  # the method skips such a step too, or stops
        classifier = self._classifier(trainer, features_BF)
        with torch.enable_grad():
            logits_BC = classifier(features_BF)
            gradients = torch.autograd.grad(F.cross_entropy(logits_BC, batch.fine), list(classifier.parameters()))
        for parameter, gradient in zip(classifier.parameters(), gradients, strict=True):
            parameter.grad = mean_over_ranks(gradient)
        self.optimizer.step()
        right = (logits_BC.argmax(dim=1) == batch.fine).double().mean()
        method.log("train/online_top1", right, batch_size=len(batch.fine))

    def _classifier(self, trainer: Trainer, features_BF: Tensor) -> nn.Linear:
        """The classifier; built at the first batch, which says how wide the features are."""
        if self.classifier is None:
            classes = trainer.datamodule.num_fine
            self.classifier = nn.utils.skip_init(
                nn.Linear, features_BF.shape[1], classes, device=features_BF.device, dtype=features_BF.dtype
            )
            for parameter in self.classifier.parameters():
                nn.init.zeros_(parameter)  # the problem is convex; random numbers would change those of the method
            self.optimizer = torch.optim.Adam(self.classifier.parameters(), lr=self.lr)
            if self._restored:
                self.classifier.load_state_dict(self._restored["classifier"])
                self.optimizer.load_state_dict(self._restored["optimizer"])
        return self.classifier

    def measure(self, trainer: Trainer, method, rows: Embeddings) -> dict[str, float]:
        if self.classifier is None:
            return {}  # a test without training
        with torch.no_grad():
            scores = self.classifier(rows.embedding.to(self.classifier.weight))
        return {f"online_{name}": value for name, value in topk_accuracy(scores, rows.fine).items()}

    def state_dict(self) -> dict[str, Any]:
        if self.classifier is None:
            return self._restored
        return {"classifier": self.classifier.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict


class OnlineKNN(OnlineEvaluation):
    """Weighted k-NN accuracy of the validation and test rows, with the training rows (plain views) as bank.

    Logs ``knn_top1``. It costs a pass over the training images at each validation.

    Args:
        k: Number of neighbours.
        temperature: Temperature of the neighbours' weights.
        every_n_epochs: Epochs between two measurements in training; the test at the end always measures.
    """

    def __init__(self, k: int = 20, temperature: float = 0.07, every_n_epochs: int = 1):
        super().__init__()
        at_least(1, k=k, every_n_epochs=every_n_epochs)
        above(0, temperature=temperature)
        self.k, self.temperature, self.every_n_epochs = k, temperature, every_n_epochs

    def measure(self, trainer: Trainer, method, rows: Embeddings) -> dict[str, float]:
        in_training = trainer.validating or trainer.state.fn == "fit" and not trainer.testing
        if in_training and (trainer.current_epoch + 1) % self.every_n_epochs:
            return {}
        bank = embed_rows(trainer, method, trainer.datamodule.gallery_loader())
        pair = (rows.embedding, rows.fine, bank.embedding, bank.fine)
        options: dict[str, Any] = {"k": min(self.k, len(bank.fine)), "temperature": self.temperature}
        return {"knn_top1": from_rank_zero(lambda: knn_accuracy(*pair, **options))}
