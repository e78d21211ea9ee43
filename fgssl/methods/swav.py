"""SwAV: predict the prototype of one view from another view, where a batch uses all prototypes equally."""

from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgssl.data.batch import Batch
from fgssl.distributed import gather_rows, rows_of_this_rank
from fgssl.errors import above, at_least
from fgssl.losses.precision import at_least_float32
from fgssl.losses.swav import EPSILON, sinkhorn, swapped_prediction
from fgssl.methods.base import Keys, Method, StepResult
from fgssl.methods.self_distillation import watch
from fgssl.nn.backbones import Backbone, Encoder
from fgssl.nn.heads import batch_norm_mlp
from fgssl.nn.memory import Memory

ASSIGNED = 2  # the first views have codes; all views predict them


class SwAV(Method):
    """Swapping assignments between views (Caron et al., NeurIPS 2020).

    z_v is the projection of view v, of unit length, and C holds K prototypes of unit length. The code q_i of view i is
    its assignment to the prototypes that uses all of them equally over the batch of all processes, found by Sinkhorn's
    iterations of exp(C^T z / epsilon) (Eq. 3 to 5); p_v is softmax(C^T z_v / tau):

        loss = mean over i in {1, 2}, v != i of -q_i . log p_v    (Eq. 2, 6)

    Views: 2 large crops, which have codes, then any number of small ones. Where the batch is small beside K, codes are
    found among the batch and a queue of earlier projections. The prototypes are normalised before each step. Logged
    each step: ``train/teacher_entropy``, the entropy of the codes, and ``train/teacher_student_kl``, the divergence of
    the predictions from them, in nats.

    Shapes: B batch, V views, D projection, K prototypes, N images of all processes and the queue.

    Args:
        backbone: Network. The paper uses ResNet50.
        prototypes: Number of prototypes K.
        dim: Projection dimension D.
        hidden: Hidden width of the projector.
        tau: Temperature of the predictions.
        epsilon: Weight of the entropy of the codes, at least 0.025; a smaller one makes them sharper.
        iterations: Number of Sinkhorn's iterations.
        freeze_prototypes: Number of first epochs in which the prototypes are not trained. The released commands count
            steps: 313 of 4,096 images or 5,005 of 256, one epoch of ImageNet.
        queue: Length of the queue in images; 0: no queue. The released command for batches of 256 has 3,840.
        queue_start: Number of epochs after which the queue takes part in the codes.
        optim: Optimiser and schedule.
    """

    default_views = {
        "class_path": "MultiCrop",
        "init_args": {"colours": "swav", "scale": (0.14, 1.0), "local_scale": (0.05, 0.14), "local_crops": 6},
    }
    views_needed = (ASSIGNED, None)
    prototypes: int

    def __init__(
        self,
        backbone: Backbone = Backbone("resnet50"),
        prototypes: int = 3000,
        dim: int = 128,
        hidden: int = 2048,
        tau: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        freeze_prototypes: int = 1,
        queue: int = 0,
        queue_start: int = 15,
        **base,
    ):
        super().__init__(**base)
        at_least(2, prototypes=prototypes)
        at_least(1, dim=dim, hidden=hidden, iterations=iterations)
        at_least(0, freeze_prototypes=freeze_prototypes, queue=queue, queue_start=queue_start)
        at_least(EPSILON, epsilon=epsilon)
        above(0, tau=tau)
        self.prototypes, self.tau, self.epsilon, self.iterations = prototypes, tau, epsilon, iterations
        self.freeze_prototypes, self.queue_start = freeze_prototypes, queue_start
        network = backbone.build()
        self.encoder = Encoder(network, batch_norm_mlp([network.num_features, hidden, dim], last="bias"))
        self.c_KD = nn.Parameter(F.normalize(nn.Linear(dim, prototypes).weight.detach(), dim=1))
        # Projections of both assigned views, side by side.
        self.memory = Memory(queue, ASSIGNED * dim) if queue else None

    def embed(self, images: Tensor) -> Tensor:
        return self.encoder.features(images)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        with torch.no_grad():
            self.c_KD.copy_(F.normalize(self.c_KD, dim=1))

    def step(self, batch: Batch) -> StepResult:
        z_VBD = self.project(batch.views)
        with torch.autocast(z_VBD.device.type, enabled=False):
            q_iBK = self.codes(z_VBD[:ASSIGNED].detach())
            loss = swapped_prediction(z_VBD @ self.c_KD.T, q_iBK, tau=self.tau)
        enqueue = {} if self.memory is None else self.entries(z_VBD[:ASSIGNED].detach(), batch)
        return StepResult(loss, watch(loss, q_iBK), enqueue)

    def project(self, crops: list[Tensor]) -> Tensor:
        """Projections [V, B, D] of unit length; consecutive crops of one size share a pass through the backbone."""
        same_size = [torch.cat(list(same)) for _, same in groupby(crops, key=lambda crop: crop.shape)]
        z_ND = self.encoder.project(torch.cat([self.embed(images) for images in same_size]))
        return at_least_float32(z_ND).unflatten(0, (len(crops), -1))

    @torch.no_grad()
    def codes(self, z_iBD: Tensor) -> Tensor:
        """Codes [2, B, K] of the assigned views, each found over the images of all processes and the queue."""
        (z_BiD,) = gather_rows(z_iBD.transpose(0, 1))
        images = len(z_BiD)
        if self.memory is not None and self.current_epoch >= self.queue_start:
            z_BiD = torch.cat([z_BiD, self.memory.keys.unflatten(1, (ASSIGNED, -1))])
        codes = [
            sinkhorn(z_ND @ self.c_KD.T, epsilon=self.epsilon, iterations=self.iterations)[:images]
            for z_ND in z_BiD.unbind(1)
        ]
        return torch.stack([rows_of_this_rank(q_NK) for q_NK in codes])

    def prefill(self, batch: Batch) -> dict[str, Keys]:
        return self.entries(self.project(batch.views[:ASSIGNED]), batch)

    def entries(self, z_iBD: Tensor, batch: Batch) -> dict[str, Keys]:
        """Projections of the assigned views, draws and rows that enter the queue."""
        draw = batch.draw.to(z_iBD.device, non_blocking=True)  # the data module keeps it on the CPU
        return {"memory": (z_iBD.transpose(0, 1).flatten(1), draw, batch.index)}

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *kind: Any, **options: Any) -> None:
        super().configure_gradient_clipping(optimizer, *kind, **options)
        if self.current_epoch < self.freeze_prototypes:  # without a gradient, no decay and no momentum either
            self.c_KD.grad = None
