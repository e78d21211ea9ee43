"""MLS: multi-label self-supervised learning on MoCo-v2, and the other losses and dictionaries of its tables."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fgssl.data.batch import Batch
from fgssl.errors import UserError, at_least
from fgssl.losses.contrastive import info_nce
from fgssl.losses.mls import bce_pos_loss, knn_softmax_loss, multi_label_loss, pseudo_labels
from fgssl.methods.base import Keys, Method, StepResult
from fgssl.nn.backbones import Backbone, Encoder
from fgssl.nn.heads import mlp
from fgssl.nn.memory import Memory
from fgssl.nn.shuffle import across_processes, synchronise_batch_norm
from fgssl.nn.teacher import Pair, teacher_of

LOSSES = {"mls": multi_label_loss, "knn": knn_softmax_loss, "bce_pos": bce_pos_loss}


class MLS(Method):
    """Multi-label self-supervised learning with scene images (Zhu, Fu & Wu, ICCV 2023).

    View 1 by the trained encoder, view 2 by its EMA. Two FIFO dictionaries of view 2: Q_g of backbone features, Q_z of
    projections. The k entries of Q_g nearest to view 1 are its labels; each entry of Q_z is a class of its own. Views:
    ``batch.views = [view 1, view 2]``.

    Shapes: B batch, D dictionary length, F feature, C projection.

    Args:
        backbone: the network. The paper's is ResNet50.
        variant: what is added to InfoNCE (Table 6): ``mls``: binary cross-entropy; ``knn``: k-NN softmax (supplement,
            Eq. 10); ``bce_pos``: its positive term alone (Eq. 15); ``moco_v2``: nothing, the base.
        dictionary: Table 7: ``both``: labels from Q_g, logits against Q_z; ``g``: both from Q_g, logits of g1;
            ``z``: both from Q_z. InfoNCE has Q_z in all of them.
        k: labels an image; all entries while the dictionary holds fewer.
        lam: lambda, weight of the added loss.
        nce_weight: weight of InfoNCE after ``nce_warmup_epochs``; 1 in the paper. 0 with a warm-up is the alternative
            that starts with InfoNCE and goes on without it: without either, binary cross-entropy is unstable.
        nce_warmup_epochs: epochs of InfoNCE alone.
        tau: temperature of all losses.
        dim: C.
        hidden: width of the projector.
        memory: D.
        momentum: EMA momentum of the key encoder.
        keys_batch_norm: what BatchNorm of the keys sees with several processes, against the shortcut by which a query
            knows its own key's companions. ``shuffled``: each process's keys are of images drawn from all (MoCo).
            ``synchronised``: one statistic over all processes. ``plain``: neither. One process: no difference.
        optim: optimiser and schedule.
    """

    default_views = {"class_path": "PairViews", "init_args": {"recipe": "moco"}}
    views_needed = (2, 2)

    def __init__(
        self,
        backbone: Backbone = Backbone("resnet50"),
        variant: Literal["mls", "knn", "bce_pos", "moco_v2"] = "mls",
        dictionary: Literal["both", "g", "z"] = "both",
        k: int = 20,
        lam: float = 0.5,
        nce_weight: float = 1.0,
        nce_warmup_epochs: int = 0,
        tau: float = 0.2,
        dim: int = 256,
        hidden: int = 2048,
        memory: int = 4096,
        momentum: float = 0.995,
        keys_batch_norm: Literal["shuffled", "synchronised", "plain"] = "shuffled",
        **base,
    ):
        super().__init__(**base)
        at_least(1, k=k, dim=dim, hidden=hidden, memory=memory)
        at_least(0, lam=lam, nce_weight=nce_weight, nce_warmup_epochs=nce_warmup_epochs, momentum=momentum)
        if tau <= 0:
            raise UserError(f"model.tau is {tau}; a temperature is above 0.")
        if variant != "moco_v2" and lam == nce_weight == 0:
            raise UserError("model.lam and model.nce_weight are both 0: nothing would be learnt.")
        self.variant, self.dictionary, self.k, self.tau, self.momentum = variant, dictionary, k, tau, momentum
        self.lam, self.nce_weight, self.nce_warmup_epochs = lam, nce_weight, nce_warmup_epochs
        self.keys_batch_norm = keys_batch_norm
        network = backbone.build()
        self.query = Encoder(network, mlp(network.num_features, hidden, dim))
        self.key = teacher_of(self.query)
        if keys_batch_norm == "synchronised":
            synchronise_batch_norm(self.key)
        self.uses_g = variant != "moco_v2" and dictionary != "z"
        # Both dictionaries are columns of one memory, [g2, z2]: entry j of one is entry j of the other, always.
        self.widths = (network.num_features if self.uses_g else 0, dim)
        self.memory = Memory(memory, sum(self.widths))
        self._shuffle_seed = 0

    def embed(self, images: Tensor) -> Tensor:
        return self.query.features(images)

    def teachers(self) -> list[Pair]:
        return [Pair(self.query, self.key)]

    def teacher_momentum(self, step: int, total: int) -> float:
        return self.momentum

    def prefill(self, batch: Batch) -> dict[str, Keys]:
        g2_BF, z2_BC = self.keys(batch.views[1])
        return self.entries(g2_BF, z2_BC, batch)

    def step(self, batch: Batch) -> StepResult:
        view1, view2 = batch.views
        g1_BF = self.query.features(view1)
        z1_BC = self.query.project(g1_BF)
        g2_BF, z2_BC = self.keys(view2)
        enqueue = self.entries(g2_BF, z2_BC, batch)  # after the optimiser step: labels and logits are from before it
        q_g_DF, q_z_DC = self.dictionaries()
        nce = info_nce(z1_BC, z2_BC, q_z_DC, tau=self.tau)
        if self.variant == "moco_v2" or self.current_epoch < self.nce_warmup_epochs:
            return StepResult(nce, {"nce": nce}, enqueue)
        added = self.added_loss(F.normalize(g1_BF, dim=1), z1_BC, q_g_DF, q_z_DC)
        loss = self.nce_weight * nce + self.lam * added
        return StepResult(loss, {"nce": nce, self.variant: added}, enqueue)

    def added_loss(self, g1_BF: Tensor, z1_BC: Tensor, q_g_DF: Tensor, q_z_DC: Tensor) -> Tensor:
        """The variant's loss of the k nearest entries; labels and logits by the dictionaries of Table 7."""
        labelled, label_queue = (z1_BC, q_z_DC) if self.dictionary == "z" else (g1_BF, q_g_DF)
        scored, score_queue = (g1_BF, q_g_DF) if self.dictionary == "g" else (z1_BC, q_z_DC)
        y_BD = pseudo_labels(labelled, label_queue, k=self.k)
        return LOSSES[self.variant](scored, score_queue, y_BD, tau=self.tau)

    @torch.no_grad()
    def keys(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """g2 [B, F] and z2 [B, C] of unit length, by the EMA encoder."""

        def encode(images: Tensor) -> tuple[Tensor, Tensor]:
            features = self.key.features(images)
            return F.normalize(features, dim=1), self.key.project(features)

        if self.keys_batch_norm == "shuffled":
            return across_processes(encode, images, seed=self._shuffle_seed)
        return encode(images)

    def entries(self, g2_BF: Tensor, z2_BC: Tensor, batch: Batch) -> dict[str, Keys]:
        """What enters both dictionaries. The draw stands in the place of a label: with the row it names the crop."""
        keys = torch.cat([g2_BF, z2_BC], dim=1) if self.uses_g else z2_BC
        return {"memory": (keys, batch.draw, batch.index)}

    def dictionaries(self) -> tuple[Tensor, Tensor]:
        """Q_g [fill, F] and Q_z [fill, C]; Q_g has no columns where the variant does not use it."""
        q_g_DF, q_z_DC = self.memory.keys.split(self.widths, dim=1)
        return q_g_DF, q_z_DC

    @torch.no_grad()
    def nearest_entries(self, images: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Cosines and places [B, count] of the dictionary entries nearest to view 1, as for its labels."""
        g1_BF = self.query.features(images)
        q_g_DF, q_z_DC = self.dictionaries()
        scores_BD = F.normalize(g1_BF, dim=1) @ q_g_DF.T if self.uses_g else self.query.project(g1_BF) @ q_z_DC.T
        cosine_Bk, nearest_Bk = scores_BD.topk(min(count, scores_BD.shape[1]), dim=1)
        return cosine_Bk, nearest_Bk

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        numbers = np.random.SeedSequence([self._seed, self.current_epoch, batch_idx])
        self._shuffle_seed = int(numbers.generate_state(1, np.uint64)[0])  # of all processes the same
