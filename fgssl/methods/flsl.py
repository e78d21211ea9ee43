"""FLSL: feature-level self-supervised learning, clusters of features within an image and over the data set."""

import math
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from fgssl.data.batch import Batch, to_device
from fgssl.data.draws import uniform
from fgssl.data.views import Crop
from fgssl.distributed import gather_rows, gather_with_gradient
from fgssl.errors import UserError, at_least
from fgssl.losses.flsl import assignment_loss, batch_mass, intra_view, mean_shift, volume
from fgssl.losses.precision import at_least_float32
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

    Mean-shift by self-attention (SA) moves query tokens z of a student view to the modes z_hat of the view;
    cross-attention (CA) moves the same z to modes z_hat_plus of a teacher view. The intra-view term draws z to z_hat.
    The inter-view term assigns z_hat and z_hat_plus to the same of K centroids, and the volume term keeps all centroids
    in use.

    Views: ``NestedCrops``, the teacher views first, then the student views, which are parts of them. With one teacher
    view, all student views are compared with it (released code). With two, both show one place in different colours,
    and the students of one are compared with the other; each pair has a loss of its own, and the step takes their mean
    (paper, algorithm 1).

    Shapes: T teacher views, B batch, N tokens, Q queries of a teacher's students, D channels, K centroids.

    Args:
        backbone: a timm ViT without class token. Its position embeddings are fixed sines and cosines unless
            ``pretrained``. The paper's are ViT-S/16, ViT-S/8 and ViT-B/16, with ``drop_path_rate: 0.1`` in the student.
        v: weight of the intra-view term (Eq. 13).
        eta: weight of the inter-view term (Eq. 13).
        gamma: weight of the volume term (Eq. 13).
        tau_sa: inverse temperature of SA, in units of 1 / sqrt(D).
        tau_ca: inverse temperature of CA, in units of 1 / sqrt(D); below ``tau_sa`` the features collapse.
        prototypes: number of centroids K.
        hidden: width of the hidden layers of the head.
        bottleneck: width of the head before the centroids.
        window: side of a window, in tokens; one token of each window is a query.
        queries: which token of a window is the query: a random one (``random``, paper) or the first (``top_left``,
            released code).
        teacher_views: teacher views of an image: 1 (released code) or 2 (paper). The same as in ``data.views``.
        local_crops: small student views for each teacher view: 0 in the paper, 2 in the released code. The same as in
            ``data.views``.
        targets: teacher assignments. ``plain``: softmax of the teacher's logits. ``sinkhorn``: softmax over the global
            batch first (Table 5), then rows scaled to sum to 1. ``center``: DINO's running centre subtracted.
        tau_s: student temperature.
        tau_t_start: teacher temperature in the first epoch.
        tau_t: teacher temperature from epoch ``tau_t_epochs`` on.
        tau_t_epochs: epochs in which the teacher temperature goes linearly from ``tau_t_start`` to ``tau_t``.
        momentum: momentum of the teacher's moving average after the first step; by a cosine to 1 at the end.
        freeze_last_layer: epochs in which the centroids stay as they are.
        optim: optimiser and learning rate schedule.
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
        # Both teacher views show one place: the students of one are compared with the other (1 view: with itself).
        pairs = [self.modes(batch, parent, teacher_BND[-1 - parent]) for parent in range(self.teacher_views)]
        z, z_hat, z_hat_plus = (torch.stack(of_pairs) for of_pairs in zip(*pairs, strict=True))
        return self.objective(z, z_hat, z_hat_plus)

    def modes(self, batch: Batch, parent: int, teacher_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries z of the students of a teacher view, their modes z_hat, and modes z_hat_plus in ``teacher_BND``."""
        z, z_hat = [], []
        for number in self.students_of(parent):
            s_BND = self.student.backbone.forward_features(batch.views[number])
            z_BQD = s_BND.take_along_dim(self.query_tokens(batch, number)[..., None], dim=1)
            z.append(z_BQD)
            z_hat.append(mean_shift(z_BQD, s_BND, temperature=self.temperature_sa))  # SA, Eq. 4
        z_BQD = torch.cat(z, dim=1)
        with torch.no_grad():
            z_hat_plus_BQD = mean_shift(z_BQD, teacher_BND, temperature=self.temperature_ca)  # CA, Eq. 12
        return z_BQD, torch.cat(z_hat, dim=1), z_hat_plus_BQD

    def students_of(self, teacher_view: int) -> list[int]:
        """Numbers of the views that are parts of a teacher view."""
        numbered = enumerate(self.parents, start=self.teacher_views)
        return [number for number, parent in numbered if parent == teacher_view]

    def objective(self, z: Tensor, z_hat: Tensor, z_hat_plus: Tensor) -> StepResult:
        """Eq. 13, mean over T pairs of views.

        Args:
            z: [T, B, Q, D] queries.
            z_hat: [T, B, Q, D] their modes in the student views.
            z_hat_plus: [T, B, Q, D] their modes in the teacher views.
        """
        # One softmax for each network: with K centroids and all queries, each further one would slow the step.
        log_p_TBQK = (at_least_float32(self.student.head(z_hat)) / self.tau_s).log_softmax(dim=-1)
        with torch.no_grad():
            raw_TBQK = at_least_float32(self.teacher.head(z_hat_plus))
            p_plus_TBQK = (self.balanced(raw_TBQK) / self.tau_t).softmax(dim=-1)
        p_bar_RTK = gather_with_gradient(log_p_TBQK.exp().mean(dim=(1, 2))[None])  # R processes
        intra = intra_view(z, z_hat)
        inter = assignment_loss(log_p_TBQK, p_plus_TBQK)
        spread = torch.stack([volume(p_bar_RK) for p_bar_RK in p_bar_RTK.unbind(1)]).mean()
        if self.center is not None:
            self.center.update(raw_TBQK)
        loss = self.v * intra + self.eta * inter + self.gamma * spread
        return StepResult(loss, {"intra": intra, "inter": inter, "volume": spread, **watch(inter, p_plus_TBQK)})

    def balanced(self, logits: Tensor) -> Tensor:
        """Teacher logits [T, B, Q, K] after ``targets``: what all rows of a pair share is subtracted."""
        if self.center is not None:
            return logits - self.center.value
        if self.targets == "sinkhorn":
            mass_TK = torch.stack([batch_mass(of_pair, tau=self.tau_t) for of_pair in logits])
            (mass_RTK,) = gather_rows(mass_TK[None])
            return logits - self.tau_t * mass_RTK.logsumexp(dim=0)[:, None, None]
        return logits

    def query_tokens(self, batch: Batch, number: int) -> Tensor:
        """[B, Q] numbers of the query tokens of view ``number``; a function of the seed and the samples."""
        view = batch.views[number]
        grid = token_grid(self.student.backbone, view.shape[-2:])
        count = window_count(grid, self.window)
        if not count:
            raise UserError(f"model.window is {self.window}: a view of {grid[0]} x {grid[1]} tokens holds none.")
        # The data module draws a view from the streams 2 * view and 2 * view + 1; these are the next ones.
        numbers = uniform(self._seed, batch.draw.cpu().numpy(), 2 * len(batch.views) + number, count + 2)
        draws_BQ, corners_B2 = numbers[:, :count], numbers[:, count:] < 0.5
        if self.queries == "top_left":
            draws_BQ = np.zeros_like(draws_BQ)
        return to_device(window_tokens(grid, self.window, draws_BQ, corners_B2), view.device)

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
