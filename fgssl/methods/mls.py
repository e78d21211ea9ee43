"""MLS: multi-label self-supervised learning on MoCo-v2, with the losses and dictionaries of its ablation tables."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fgssl.data.batch import Batch
from fgssl.errors import UserError, at_least
from fgssl.losses.contrastive import info_nce
from fgssl.losses.mls import Reduction, knn_softmax_loss, mean_length, pseudo_labels, pull_and_push
from fgssl.methods.base import Keys, StepResult
from fgssl.methods.momentum_contrast import MomentumContrast
from fgssl.nn.backbones import Backbone, Encoder
from fgssl.nn.heads import mlp
from fgssl.nn.memory import Memory


class MLS(MomentumContrast):
    """Multi-label self-supervised learning with scene images (Zhu, Fu & Wu, ICCV 2023).

    The trained encoder sees view 1, its exponential moving average (EMA) sees view 2. Two FIFO dictionaries hold view
    2: Q_g backbone features, Q_z projections. The k entries of Q_g nearest to view 1 are its labels, and each entry of
    Q_z is a class. ``batch.views = [view 1, view 2]``.

    Eq. 9 as printed (``reduction: mean``) leaves the labels nearly without weight: they are k of D terms of one mean
    (20 of 4,096). On digits (``experiments/mls_digits.yaml``, one seed) the positive term fell to 0.0001 beside an
    InfoNCE of 5.5, the length of the mean of Q_z rose to 0.94, and Recall@1 was 0.893, the same as with all labels 0;
    ``balanced``, which gives the labels half of the weight, reached 0.938, and InfoNCE alone 0.953. ``sum`` is D times
    ``mean``: divide ``lam`` by D. Logged each step: ``train/pull`` (positive term), ``train/push`` (negative term)
    and ``train/q_z_mean`` (length of the mean of Q_z: 0 if the entries cancel, 1 if all are equal: a collapse).

    Shapes: B batch, D dictionary length, F feature, C projection.

    Args:
        backbone: Network of both encoders. The paper uses ResNet50.
        variant: Loss added to InfoNCE (Table 6). ``mls``: binary cross-entropy (Eq. 9); ``knn``: k-NN softmax
            (supplement, Eq. 10); ``bce_pos``: positive term of the binary cross-entropy (supplement, Eq. 15);
            ``moco_v2``: none, the baseline.
        dictionary: Dictionaries of the added loss (Table 7). ``both``: labels from Q_g, logits against Q_z; ``g``:
            labels and logits from Q_g and g1; ``z``: labels and logits from Q_z. InfoNCE always uses Q_z.
        k: Labels per image (Table 8); all entries while the dictionary holds fewer.
        lam: Weight lambda of the added loss.
        reduction: Reduction of ``mls`` and ``bce_pos`` over the dictionary entries. ``mean``: mean over all entries
            (Eq. 9 as printed); ``balanced``: mean over positive and mean over negative entries, then the mean of
            both; ``sum``: sum over all entries.
        nce_weight: Weight of InfoNCE after ``nce_warmup_epochs``; 1 in the paper. Binary cross-entropy alone is
            unstable: use 0 only together with a warm-up.
        nce_warmup_epochs: Number of first epochs that train with InfoNCE alone.
        dim: Projection dimension C.
        hidden: Hidden width of the projector.
        memory: Dictionary length D.
        momentum: EMA momentum of the key encoder.
        optim: Optimiser and schedule.
    """

    def __init__(
        self,
        backbone: Backbone = Backbone("resnet50"),
        variant: Literal["mls", "knn", "bce_pos", "moco_v2"] = "mls",
        dictionary: Literal["both", "g", "z"] = "both",
        k: int = 20,
        lam: float = 0.5,
        reduction: Reduction = "mean",
        nce_weight: float = 1.0,
        nce_warmup_epochs: int = 0,
        dim: int = 256,
        hidden: int = 2048,
        memory: int = 4096,
        momentum: float = 0.995,
        **base,
    ):
        super().__init__(momentum=momentum, **base)
        at_least(1, k=k, dim=dim, hidden=hidden, memory=memory)
        at_least(0, lam=lam, nce_weight=nce_weight, nce_warmup_epochs=nce_warmup_epochs)
        if variant != "moco_v2" and lam == nce_weight == 0:
            raise UserError("model.lam and model.nce_weight are both 0: nothing would be learnt.")
        if reduction != "mean" and variant in ("knn", "moco_v2"):
            raise UserError(f"model.reduction {reduction} has no effect on model.variant {variant}: set it to mean.")
        self.variant, self.dictionary, self.k, self.reduction = variant, dictionary, k, reduction
        self.lam, self.nce_weight, self.nce_warmup_epochs = lam, nce_weight, nce_warmup_epochs
        network = backbone.build()
        self.query = Encoder(network, mlp(network.num_features, hidden, dim))
        self.make_key()
        self.uses_g = variant != "moco_v2" and dictionary != "z"
        # Both dictionaries are columns of one memory, [g2, z2]: entry j of one is always entry j of the other.
        self.widths = (network.num_features if self.uses_g else 0, dim)
        self.memory = Memory(memory, sum(self.widths))

    def prefill(self, batch: Batch) -> dict[str, Keys]:
        g2_BF, z2_BC = self.keys(batch.views[1])
        return self.pairs(g2_BF, z2_BC, batch)

    def step(self, batch: Batch) -> StepResult:
        view1, view2 = batch.views
        g1_BF = self.query.features(view1)
        z1_BC = self.query.project(g1_BF)
        g2_BF, z2_BC = self.keys(view2)
        enqueue = self.pairs(g2_BF, z2_BC, batch)  # after the optimiser step: the dictionaries below are without them
        q_g_DF, q_z_DC = self.dictionaries()
        nce = info_nce(z1_BC, z2_BC, q_z_DC, tau=self.tau)
        parts = {"nce": nce, "q_z_mean": mean_length(q_z_DC)}
        if self.variant == "moco_v2" or self.current_epoch < self.nce_warmup_epochs:
            return StepResult(nce, parts, enqueue)
        added, terms = self.added_loss(F.normalize(g1_BF, dim=1), z1_BC, q_g_DF, q_z_DC)
        loss = self.nce_weight * nce + self.lam * added
        return StepResult(loss, {**parts, self.variant: added, **terms}, enqueue)

    def added_loss(
        self, g1_BF: Tensor, z1_BC: Tensor, q_g_DF: Tensor, q_z_DC: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the variant with the dictionaries of Table 7, and its terms to log."""
        labelled, label_queue = (z1_BC, q_z_DC) if self.dictionary == "z" else (g1_BF, q_g_DF)
        scored, score_queue = (g1_BF, q_g_DF) if self.dictionary == "g" else (z1_BC, q_z_DC)
        y_BD = self.labels_of(labelled, label_queue)
        if self.variant == "knn":
            return knn_softmax_loss(scored, score_queue, y_BD, tau=self.tau), {}
        pull, push = pull_and_push(scored, score_queue, y_BD, tau=self.tau, reduction=self.reduction)
        added = pull if self.variant == "bce_pos" else pull + push  # Eq. 15, Eq. 9
        return added, {"pull": pull.detach(), "push": push.detach()}

    def labels_of(self, features_BF: Tensor, queue_DF: Tensor) -> Tensor:
        """[B, D] of 0 and 1: the k entries of a dictionary nearest to each image of the batch."""
        return pseudo_labels(features_BF, queue_DF, k=self.k)

    def keys(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """g2 [B, F] and z2 [B, C] of unit length, by the EMA encoder."""

        def encode(images: Tensor) -> tuple[Tensor, ...]:
            features = self.key.features(images)
            return F.normalize(features, dim=1), self.key.project(features)

        g2_BF, z2_BC = self.encoded(encode, images)
        return g2_BF, z2_BC

    def pairs(self, g2_BF: Tensor, z2_BC: Tensor, batch: Batch) -> dict[str, Keys]:
        """Keys of one batch that enter both dictionaries."""
        return self.entries(torch.cat([g2_BF, z2_BC], dim=1) if self.uses_g else z2_BC, batch)

    def dictionaries(self) -> tuple[Tensor, Tensor]:
        """Q_g [fill, F] and Q_z [fill, C]; Q_g has no columns where the variant does not use it."""
        q_g_DF, q_z_DC = self.memory.keys.split(self.widths, dim=1)
        return q_g_DF, q_z_DC

    @torch.no_grad()
    def nearest_entries(self, images: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Cosines and slots [B, count] of the dictionary entries nearest to view 1, by the dictionary of its labels."""
        g1_BF = self.query.features(images)
        q_g_DF, q_z_DC = self.dictionaries()
        scores_BD = F.normalize(g1_BF, dim=1) @ q_g_DF.T if self.uses_g else self.query.project(g1_BF) @ q_z_DC.T
        cosine_Bk, nearest_Bk = scores_BD.topk(min(count, scores_BD.shape[1]), dim=1)
        return cosine_Bk, nearest_Bk
