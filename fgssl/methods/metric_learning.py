"""Supervised metric learning: an embedding trained by any loss on class labels, of pairs, proxies or a classifier."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from fgssl.data.batch import Batch
from fgssl.data.draws import seed_of
from fgssl.distributed import gather_rows, gather_with_gradient
from fgssl.errors import at_least
from fgssl.losses.precision import at_least_float32
from fgssl.methods.base import Method, StepResult
from fgssl.nn.backbones import Backbone, Encoder
from fgssl.nn.dml import Spec, build_dml, loss_label


class MetricLearning(Method):
    """Metric learning from class labels: ProxyAnchor, ProxyNCA++, ArcFace, SoftTriple, cross-entropy and others.

    Takes one view of each image: ``batch.views = [view]``. The embedding is evaluated at unit length. Shapes: B batch
    of all processes, F feature, D embedding.

    Args:
        backbone: network f; most papers take ResNet50 or BN-Inception with ImageNet weights.
        dim: dimension D of the embedding; null: the pooled features themselves, D = F.
        feature_norm: normalisation of the pooled features before the linear layer, without scale and shift: ``layer``
            (LayerNorm; ProxyNCA++), ``batch`` (BatchNorm; Boudiaf et al. on Cars and SOP), or null for none.
        normalize: scale the embeddings to unit length before the loss; false for a classifier of plain features.
        freeze_bn: keep the running statistics of the backbone's BatchNorm fixed; its scale and shift are trained.
        frozen_epochs: number of first epochs in which the backbone's weights stay as they start, and only the embedding
            layer and the loss are trained.
        dml_loss: metric-learning loss, as a class name or ``{class_path, init_args}``: ``CrossEntropy``, ``Margin``
            (R-Margin with ``push_own``), ``MultiSimilarity``, ``ProxyNCApp``, ``SoftTriple``, or any loss of
            pytorch-metric-learning, such as ``ProxyAnchor`` or ``ArcFace``. Its weights are trained with the network,
            at a rate of their own with ``optim.groups: [{of: dml_loss, lr: 1e-2}]``.
        miner: selection of triplets or pairs for the loss, named in the same way: ``RandomTriplets``, ``SemiHard``,
            ``SoftHard``, ``DistanceWeighted``, or any miner of pytorch-metric-learning; null: all pairs, or the
            loss's own selection.
        global_batch: compute the loss over the batch of all processes; false: over each process's own.
        train_classes: labels of the training classes, ascending; default: those of the data set.
        optim: optimiser and schedule.
    """

    default_views = {"class_path": "SingleView"}
    views_needed = (1, 1)
    classes: Tensor

    def __init__(
        self,
        backbone: Backbone = Backbone("resnet50"),
        dim: int | None = 128,
        feature_norm: Literal["layer", "batch"] | None = None,
        normalize: bool = True,
        freeze_bn: bool = True,
        frozen_epochs: int = 0,
        dml_loss: Spec = Spec("MultiSimilarity"),
        miner: Spec | None = None,
        global_batch: bool = True,
        train_classes: list[int] = [],  # noqa: B006
        **base,
    ):
        super().__init__(**base)
        at_least(0, frozen_epochs=frozen_epochs)
        self.normalize, self.frozen_epochs, self.across_processes = normalize, frozen_epochs, global_batch
        self.register_buffer("classes", torch.tensor(train_classes, dtype=torch.long), persistent=False)
        network = backbone.build()
        features = network.num_features
        self.student = Encoder(network, embedding_layer(features, dim, feature_norm), freeze_statistics=freeze_bn)
        self._named = (dml_loss, miner)
        self.dml_loss, self.miner = self.new_loss(dim or features)
        self.variant = loss_label(self.dml_loss)
        self._draw_seed = 0

    def embed(self, images: Tensor) -> Tensor:
        return self.student(images)

    def labels_needed(self) -> set[Literal["fine", "coarse"]]:
        return {"fine"}

    def step(self, batch: Batch) -> StepResult:
        (images,) = batch.views
        z_BD, labels_B = self.embeddings(self.student.features(images), batch.fine)
        torch.manual_seed(self._draw_seed)  # so that every process draws the same triplets, or the same dropout
        return StepResult(self.metric_loss(self.dml_loss, z_BD, labels_B))

    def embeddings(self, h_BF: Tensor, fine_B: Tensor) -> list[Tensor]:
        """Embeddings [B, D] and classes [B] of all processes, from a process's own features and labels."""
        z_BD = self.student.project(h_BF) if self.normalize else self.student.head(h_BF)
        return self.over_processes(z_BD, self.class_of(fine_B))

    def new_loss(self, dim: int) -> tuple[nn.Module, nn.Module | None]:
        """Loss for embeddings of ``dim`` dimensions, and miner, as the options name them."""
        return build_dml(*self._named, num_classes=len(self.classes), embedding_size=dim)

    def metric_loss(self, loss: nn.Module, z_BD: Tensor, labels_B: Tensor) -> Tensor:
        """Metric-learning loss, in float32 at least."""
        with torch.autocast(z_BD.device.type, enabled=False):
            z_BD = at_least_float32(z_BD)
            mined = () if self.miner is None else (self.miner(z_BD, labels_B),)
            return loss(z_BD, labels_B, *mined)

    def over_processes(self, z_BD: Tensor, *labels_B: Tensor) -> list[Tensor]:
        """Embeddings and labels of all processes; the gradient reaches every process's own embeddings."""
        if not self.across_processes:
            return [z_BD, *labels_B]
        return [gather_with_gradient(z_BD), *gather_rows(*labels_B)]

    def class_of(self, fine_B: Tensor) -> Tensor:
        """Data-set labels as positions among the training classes, 0 to C - 1."""
        return torch.searchsorted(self.classes, fine_B) if len(self.classes) else fine_B

    # ---- hooks of Lightning -------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self._draw_seed = seed_of(self._seed, self.current_epoch, batch_idx)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        if self.current_epoch < self.frozen_epochs:  # DDP wants a gradient of every weight, so it is dropped here
            for weight in self.student.backbone.parameters():
                weight.grad = None


def embedding_layer(features: int, dim: int | None, norm: Literal["layer", "batch"] | None) -> nn.Module:
    """Layer from features [B, F] to embeddings [B, D]: normalisation, where there is one, and a linear layer."""
    linear: nn.Module = nn.Identity() if dim is None else nn.Linear(features, dim)
    if norm is None:
        return linear
    normalisation: dict[str, Any] = {
        "layer": nn.LayerNorm(features, elementwise_affine=False),
        "batch": nn.BatchNorm1d(features, affine=False),
    }
    return nn.Sequential(normalisation[norm], linear)
