"""FLSL: feature-level self-supervised learning, clusters of features within an image and over the data set."""

import math
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from fgssl.data.batch import Batch
from fgssl.data.draws import uniform
from fgssl.data.views import Crop
from fgssl.distributed import gather_rows, gather_with_gradient
from fgssl.errors import UserError, at_least
from fgssl.losses.flsl import batch_mass, inter_view, intra_view, mean_shift, volume
from fgssl.methods.base import StepResult
from fgssl.methods.self_distillation import SelfDistillation, watch
from fgssl.nn.backbones import Backbone, Encoder
from fgssl.nn.center import Center
from fgssl.nn.feature_map import token_grid
from fgssl.nn.heads import DINOHead
from fgssl.nn.queries import window_count, window_tokens
from fgssl.nn.sincos import fix_positions

# A ViT whose output is its patches' tokens: no class token, the last LayerNorm on the tokens, any size of image.
TOKENS = {"class_token": False, "global_pool": "avg", "fc_norm": False, "dynamic_img_size": True}


class FLSL(SelfDistillation):
    """Feature-level self-supervised learning (Su, Netchaev, Li & Ji, NeurIPS 2023).

    Mean-shift by self-attention (SA) takes some tokens z of a student's view to the modes z_hat around them; by
    cross-attention (CA) it takes the same z to modes z_hat_plus of the teacher's view. Within a view z is drawn to
    z_hat; across views both modes are assigned to the same of K centroids, all of which are to be used.

    Views: ``NestedCrops``, the teacher's first; each student's is a part of a teacher's, which it is compared with.
    With two teacher views the paper cuts all from one place and compares crosswise; here the two places differ and each
    student is compared with the teacher that it was cut from, its colours drawn independently all the same.

    Shapes: B batch, N tokens, Q queries, D channels, K centroids.

    Args:
        backbone: a timm ViT without class token, its positions fixed sines and cosines unless ``pretrained``. The
            paper's are ViT-S/16, S/8 and B/16, with ``drop_path_rate: 0.1`` (in the student alone).
        v: weight of the intra-view term, Eq. 13.
        eta: weight of the inter-view term.
        gamma: weight of the volume term.
        tau_sa: inverse temperature of SA, in units of 1 / sqrt(D).
        tau_ca: that of CA; below ``tau_sa`` the features collapse.
        prototypes: K.
        hidden, bottleneck: widths of the head.
        window: w; one query of each w x w tokens.
        queries: which of them: ``random`` (paper) or ``top_left`` (released code).
        teacher_views: teacher views an image: 1, or 2 for two symmetric pairs. As ``data.views`` has them.
        local_crops: small student views for each teacher view: 0 in the paper, 2 in the released code. Likewise.
        targets: ``plain``: the teacher's softmax. ``sinkhorn``: softmax along the batch of all processes first (Table
            5), whose rows are then made to sum to 1, so that they are distributions. ``center``: DINO's running centre.
        tau_s, tau_t_start, tau_t, tau_t_epochs: temperatures of the student's and the teacher's assignments.
        momentum: of the teacher.
        freeze_last_layer: epochs in which the centroids stay as they are.
        optim: optimiser and schedule.
    """

    default_views = {"class_path": "NestedCrops", "init_args": {"local_crops": 0}}

    def __init__(
        self,
        backbone: Backbone = Backbone("vit_small_patch16_224", options={**TOKENS, "drop_path_rate": 0.1}),
        v: float = 0.03,
        eta: float = 1.0,
        gamma: float = 5.0,
        tau_sa: float = 0.1,
        tau_ca: float = 0.2,
        prototypes: int = 4096,
        hidden: int = 2048,
        bottleneck: int = 256,
        window: int = 2,
        queries: Literal["random", "top_left"] = "random",
        teacher_views: Literal[1, 2] = 1,
        local_crops: int = 0,
        targets: Literal["plain", "sinkhorn", "center"] = "plain",
        **base,
    ):
        super().__init__(**base)
        at_least(0, v=v, eta=eta, gamma=gamma, tau_sa=tau_sa, tau_ca=tau_ca, local_crops=local_crops)
        at_least(1, prototypes=prototypes, hidden=hidden, bottleneck=bottleneck, window=window)
        if v == eta == gamma == 0:
            raise UserError("model.v, model.eta and model.gamma are all 0: nothing would be learnt.")
        if tau_ca < tau_sa:
            rank_zero_warn(f"model.tau_ca {tau_ca} is below model.tau_sa {tau_sa}: the paper's features collapse then.")
        self.v, self.eta, self.gamma = v, eta, gamma
        self.window, self.queries, self.targets = window, queries, targets
        self.prototypes, self.teacher_views = prototypes, teacher_views
        # The teacher view that each student view is a part of: large ones first, in the order of NestedCrops.
        of_teachers = range(teacher_views)
        self.parents = [*of_teachers, *(parent for parent in of_teachers for _ in range(local_crops))]
        network = backbone.build()
        check_tokens(network, backbone.name)
        if not (backbone.pretrained or backbone.weights):
            fix_positions(network)
        self.temperature_sa, self.temperature_ca = (tau / math.sqrt(network.num_features) for tau in (tau_sa, tau_ca))
        self.student = Encoder(network, DINOHead(network.num_features, prototypes, hidden, bottleneck))
        self.make_teacher()
        self.center = Center(prototypes) if targets == "center" else None
        self._seed = 0

    def embed(self, images: Tensor) -> Tensor:
        return self.teacher.backbone(images)  # the mean of its tokens

    def step(self, batch: Batch) -> StepResult:
        with torch.no_grad():
            teacher_BND = [self.teacher.backbone.forward_features(x) for x in batch.views[: self.teacher_views]]
        z, z_hat, z_hat_plus = [], [], []
        for number, parent in enumerate(self.parents, start=self.teacher_views):
            s_BND = self.student.backbone.forward_features(batch.views[number])
            z_BQD = s_BND.take_along_dim(self.query_tokens(batch, number)[..., None], dim=1)
            z.append(z_BQD)
            z_hat.append(mean_shift(z_BQD, s_BND, temperature=self.temperature_sa))  # SA, Eq. 4
            with torch.no_grad():
                z_hat_plus.append(mean_shift(z_BQD, teacher_BND[parent], temperature=self.temperature_ca))  # CA, Eq. 12
        return self.objective(torch.cat(z, dim=1), torch.cat(z_hat, dim=1), torch.cat(z_hat_plus, dim=1))

    def objective(self, z: Tensor, z_hat: Tensor, z_hat_plus: Tensor) -> StepResult:
        """Eq. 13 of the queries of all views, their modes, and the teacher's modes, each [B, Q, D]."""
        student_BQK = self.student.head(z_hat)
        with torch.no_grad():
            raw_BQK = self.teacher.head(z_hat_plus)
            teacher_BQK = self.balanced(raw_BQK)
            p_plus_BQK = (teacher_BQK / self.tau_t).softmax(dim=-1)
        p_BQK = (student_BQK / self.tau_s).softmax(dim=-1)
        p_bar_RK = gather_with_gradient(p_BQK.mean(dim=(0, 1))[None])  # of the R processes
        intra = intra_view(z, z_hat)
        inter = inter_view(student_BQK, teacher_BQK, tau_s=self.tau_s, tau_t=self.tau_t)
        spread = volume(p_bar_RK)
        if self.center is not None:
            self.center.update(raw_BQK)
        loss = self.v * intra + self.eta * inter + self.gamma * spread
        watched = watch(student_BQK, p_plus_BQK, tau_s=self.tau_s)
        return StepResult(loss, {"intra": intra, "inter": inter, "volume": spread, **watched})

    def balanced(self, logits: Tensor) -> Tensor:
        """The teacher's logits [B, Q, K], less what favours some centroids over others in every row."""
        if self.center is not None:
            return logits - self.center.value
        if self.targets == "sinkhorn":
            (mass_RK,) = gather_rows(batch_mass(logits, tau=self.tau_t)[None])
            return logits - self.tau_t * mass_RK.logsumexp(dim=0)
        return logits

    def query_tokens(self, batch: Batch, number: int) -> Tensor:
        """[B, Q] numbers of the tokens of view ``number`` that are queries; drawn from the seed and the samples."""
        view = batch.views[number]
        grid = token_grid(self.student.backbone, view.shape[-2:])
        count = window_count(grid, self.window)
        if not count:
            raise UserError(f"model.window is {self.window}: a view of {grid[0]} x {grid[1]} tokens holds none.")
        draws_BQ = np.zeros((len(view), count))
        if self.queries == "random":  # streams that the data module does not use: those of its views are before them
            draws_BQ = uniform(self._seed, batch.draw.cpu().numpy(), 2 * len(batch.views) + number, count)
        return window_tokens(grid, self.window, draws_BQ).to(view.device)

    def check_views(self, crops: list[Crop]) -> None:
        """Refuse views that are not those of NestedCrops with the same ``teacher_views`` and ``local_crops``."""
        inside, needed = [crop.inside for crop in crops], [None] * self.teacher_views + self.parents
        if inside != needed:
            teachers, local = self.teacher_views, len(self.parents) // self.teacher_views - 1
            raise UserError(
                f"data.views gives {len(crops)} views, which are parts of the views {inside}; with model.teacher_views "
                f"{teachers} and model.local_crops {local} FLSL needs {needed}: set data.views to NestedCrops with "
                f"teacher_views {teachers} and local_crops {local}."
            )


def check_tokens(network: Any, name: str) -> None:
    """Refuse a network whose output is not its patches' tokens alone."""
    plain = getattr(network, "num_prefix_tokens", None) == 0 and getattr(network, "pos_embed", None) is not None
    if not plain or network.global_pool != "avg" or isinstance(network.norm, torch.nn.Identity):
        options = ", ".join(f"{option}: {value}" for option, value in TOKENS.items()).lower()
        raise UserError(
            f"model.backbone: '{name}' with its options is no ViT of patch tokens alone. FLSL needs one of timm's "
            f"vit_... with model.backbone.options {{{options}}}."
        )
