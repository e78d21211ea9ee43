"""CMD: cross-level multi-instance distillation. DINO and EsViT are settings of it."""

from itertools import groupby
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fgssl.data.batch import Batch
from fgssl.distributed import gather_with_gradient
from fgssl.errors import UserError, at_least
from fgssl.losses.cmd import (
    Pairs,
    bag_distillation,
    bag_of,
    inter_level,
    log_of,
    log_posterior,
    nearest_patches,
    patch_loss,
    posterior,
)
from fgssl.losses.koleo import koleo as koleo_of
from fgssl.losses.precision import at_least_float32
from fgssl.methods.base import StepResult
from fgssl.methods.self_distillation import SelfDistillation, watch
from fgssl.nn.backbones import Backbone
from fgssl.nn.center import Center
from fgssl.nn.feature_map import last_features
from fgssl.nn.heads import DINOHead

IMAGE_CROPS = 2  # the first views; all later views are region crops
PATCHES = 512  # patches per call of the last layer: 134 MB of logits at K = 65536
OTHERS: dict[tuple[float, ...], str] = {(1, 0, 0, 0, 0): "DINO", (0.5, 0.5, 0, 0, 0): "EsViT"}  # weights -> method
Level = Literal["image", "region"]
Name = tuple[Literal["student", "teacher"], Level, int]  # names a bag: network, level, crop


class Features(NamedTuple):
    """Features of one crop: pooled [B, F] and of each patch [B, T, F]."""

    pooled: Tensor
    patches: Tensor


class Bags(NamedTuple):
    """Bags of one level: one distribution [B, K] for each crop."""

    student: list[Tensor]
    teacher: list[Tensor]


class Networks(nn.Module):
    """Backbone and heads of the student or of the teacher."""

    def __init__(self, backbone: nn.Module, heads: dict[str, DINOHead]):
        super().__init__()
        self.backbone = backbone
        self.heads: Any = nn.ModuleDict(heads)  # level -> DINOHead

    def features(self, crops: list[Tensor]) -> list[Features]:
        """Features of each crop [B, 3, S, S]; consecutive crops of one size share a forward pass."""
        found = []
        for _, same in groupby(crops, key=lambda crop: crop.shape):
            same_size = list(same)
            pooled, map_BFHW = last_features(self.backbone, torch.cat(same_size))
            patches = map_BFHW.flatten(2).transpose(1, 2)
            columns = (column.chunk(len(same_size)) for column in (pooled, patches))
            found += [Features(*of_crop) for of_crop in zip(*columns, strict=True)]
        return found


class CMD(SelfDistillation):
    """Cross-level multi-instance distillation (Bi et al., 2024).

    A crop is a bag and its patches are the instances. Two DINO heads map features to distributions over K prototypes:
    the image head maps the pooled feature, the region head maps each patch. The region-level bag of a crop is the mean
    over its patches. Within a level, the student predicts the teacher's distributions of other crops (L_I, L_R).
    Between levels, the student's own bags have to agree (L_S). Views: 2 image crops, then any number of region crops.

        loss = l_i L_I + l_r L_R + l_s L_S + l_t L_T + l_ts L_TS

    DINO is L_I alone, EsViT is (L_I + L_R) / 2. A head that no loss of positive weight needs is not built.

    Shapes: B batch, T patches of a crop, F pooled feature, C patch feature, K prototypes.

    Args:
        backbone: the network. Drop path acts in the student only. A Swin needs ``strict_img_size: false`` to take crops
            of two sizes.
        l_i: weight of L_I, the image-level distillation (Eq. 11); 1/2 in Eq. 16.
        l_r: weight of L_R, the region-level distillation (Eq. 12); 1/2 in Eq. 16.
        l_s: weight of L_S, the divergence between the student's bags (Eq. 14); lambda1 in Eq. 16.
        l_t: weight of L_T, the divergence between the teacher's bags (Eq. 15); lambda1 in Eq. 16. L_T has no gradient:
            it is logged and trains nothing.
        l_ts: weight of KL(teacher bag || student bag) over the pairs of L_S. Not in the paper: L_T with a gradient.
        teacher_crops: crops that the teacher sees. ``global``: the two image crops, as in DINO and the released code
            (18 pairs with 8 region crops). ``all``: all crops, as the paper writes (90 pairs).
        inter_level: bags that L_S compares. ``pairs``: all ordered pairs of two crops (Eq. 14). ``within_crop``: the
            image-level and the region-level bag of the same crop (the text of section IV-C).
        bags: level of the bags that ``pairs`` compares; the paper says "either image-level or region-level".
        image_bag: image-level bag. ``pooled``: the image head on the pooled feature (released code). ``instances``: the
            mean over the image head's distributions of the patches (Eq. 4).
        prototypes: number of prototypes K.
        hidden: width of the two hidden layers of a head.
        bottleneck: width before the last layer of a head.
        norm_last_layer: keep the prototypes at length 1; false, the default, trains their lengths too (the released
            commands of CMD and EsViT).
        koleo: weight of KoLeo, which keeps the student's pooled features of different images apart, summed over the two
            image crops; over the images of all processes. 0.1 in DINOv2, whose code takes those of each process.
    """

    default_views = {"class_path": "MultiCrop"}
    views_needed = (IMAGE_CROPS, None)

    def __init__(
        self,
        backbone: Backbone = Backbone("swin_tiny_patch4_window7_224", options={"strict_img_size": False}),
        l_i: float = 0.5,
        l_r: float = 0.5,
        l_s: float = 0.1,
        l_t: float = 0.1,
        l_ts: float = 0.0,
        teacher_crops: Literal["global", "all"] = "global",
        inter_level: Literal["pairs", "within_crop"] = "pairs",
        bags: Literal["region", "image", "both"] = "region",
        image_bag: Literal["pooled", "instances"] = "pooled",
        prototypes: int = 65536,
        hidden: int = 2048,
        bottleneck: int = 256,
        norm_last_layer: bool = False,
        koleo: float = 0.0,
        **base,
    ):
        super().__init__(**base)
        at_least(0, l_i=l_i, l_r=l_r, l_s=l_s, l_t=l_t, l_ts=l_ts, koleo=koleo)
        at_least(2, prototypes=prototypes)
        at_least(1, hidden=hidden, bottleneck=bottleneck)
        if l_i == l_r == l_s == l_ts == 0:
            raise UserError("model.l_i, l_r, l_s and l_ts are all 0: nothing would be learnt (L_T has no gradient).")
        self.l_i, self.l_r, self.l_s, self.l_t, self.l_ts = l_i, l_r, l_s, l_t, l_ts
        self.koleo = koleo
        self.variant = OTHERS.get((l_i, l_r, l_s, l_t, l_ts))  # None: CMD itself
        if koleo > 0:
            self.variant = f"{self.variant or 'CMD'}+KoLeo"
        self.teacher_crops, self.inter_level, self.image_bag = teacher_crops, inter_level, image_bag
        self.prototypes = prototypes
        both = inter_level == "within_crop" or bags == "both"
        self.levels: tuple[Level, ...] = ("image", "region") if both else (bags,)  # type: ignore[assignment]
        network = backbone.build()
        if network.map_channels != network.num_features:
            raise UserError(
                f"model.backbone: the patches of '{backbone.name}' have {network.map_channels} features, its images "
                f"{network.num_features}; CMD needs as many for both."
            )
        heads: dict[str, DINOHead] = {}
        own_weights: dict[Level, float] = {"image": l_i, "region": l_r}
        for level, weight in own_weights.items():
            trains = weight > 0 or (level in self.levels and l_s + l_ts > 0)
            if trains or (level in self.levels and l_t > 0):
                heads[level] = DINOHead(
                    network.num_features, prototypes, hidden, bottleneck, norm_last_layer
                ).requires_grad_(trains)
        self.student = Networks(network, heads)
        self.centers: Any = nn.ModuleDict({level: Center(prototypes) for level in heads})
        self.make_teacher()

    def embed(self, images: Tensor) -> Tensor:
        return self.teacher.backbone(images)

    def step(self, batch: Batch) -> StepResult:
        crops = batch.views
        student = self.student.features(crops)
        with torch.no_grad():
            teacher = self.teacher.features(crops if self.teacher_crops == "all" else crops[:IMAGE_CROPS])
        pairs = [(t, s) for t in range(len(teacher)) for s in range(len(student)) if s != t]  # P of section IV-B

        terms: dict[str, Tensor] = {}
        found: dict[Level, Bags] = {}
        if "image" in self.centers:
            terms["l_i"], found["image"] = self.image_level(student, teacher, pairs)
        if "region" in self.centers:
            terms["l_r"], found["region"] = self.region_level(student, teacher, pairs)
        s_bags, t_bags = self.named("student", found), self.named("teacher", found)
        if self.l_s > 0:
            terms["l_s"] = self.between(s_bags, s_bags)  # Eq. 14
        if self.l_t > 0:
            terms["l_t"] = self.between(t_bags, t_bags)  # Eq. 15: no gradient, a constant
        if self.l_ts > 0:
            terms["l_ts"] = self.between(t_bags, s_bags)
        if self.koleo > 0:
            terms["koleo"] = torch.stack(
                [koleo_of(gather_with_gradient(features.pooled)) for features in student[:IMAGE_CROPS]]
            ).sum()
        terms = {name: term for name, term in terms.items() if getattr(self, name) > 0}
        loss = torch.stack([getattr(self, name) * term for name, term in terms.items()]).sum()  # Eq. 16
        return StepResult(loss, {**terms, **self.watched(next(iter(found.values())))})

    # ---- within a level -----------------------------------------------------------------------------------------

    def image_level(self, student: list[Features], teacher: list[Features], pairs: Pairs) -> tuple[Tensor, Bags]:
        """L_I (Eq. 11) and the image-level bags."""
        if self.image_bag == "instances":
            _, bags = self.by_patch("image", student, teacher, pairs=[])
            return bag_distillation([log_of(bag) for bag in bags.student], bags.teacher, pairs=pairs), bags
        log_p_nBK = log_posterior(self.student.heads["image"](torch.stack([f.pooled for f in student])), tau=self.tau_s)
        with torch.no_grad():
            logits_nBK = self.teacher.heads["image"](torch.stack([f.pooled for f in teacher]))
        center = self.centers["image"]
        p_nBK = posterior(logits_nBK, center=center.value, tau=self.tau_t)
        center.update(logits_nBK)
        loss = bag_distillation(list(log_p_nBK), list(p_nBK), pairs=pairs)
        return loss, Bags(list(log_p_nBK.exp()), list(p_nBK))

    def region_level(self, student: list[Features], teacher: list[Features], pairs: Pairs) -> tuple[Tensor, Bags]:
        """L_R (Eq. 12, 13) and the region-level bags (Eq. 5)."""
        total, bags = self.by_patch("region", student, teacher, pairs=pairs if self.l_r > 0 else [])
        return total / len(pairs), bags

    def by_patch(
        self, level: Level, student: list[Features], teacher: list[Features], pairs: Pairs
    ) -> tuple[Tensor, Bags]:
        """Sum over the pairs in Eq. 12, and the bags, from a level's head applied to each patch.

        The logits of all patches would take 1.4 GB at batch 32 and K = 65536, and several times that in the backward
        pass. So the last layer and the loss run on PATCHES patches at a time and are recomputed in the backward pass.
        The teacher's probabilities are kept once.
        """
        ours, theirs, center = self.student.heads[level], self.teacher.heads[level], self.centers[level]
        with torch.no_grad():
            z_BTD = [theirs.project(f.patches) for f in teacher]
            weight_KD = theirs.weight()
            p_BTK = [
                torch.cat([posterior(F.linear(z[few], weight_KD), center=center.value, tau=self.tau_t)
                           for few in few_images(z)])
                for z in z_BTD
            ]  # fmt: skip
            with torch.autocast(weight_KD.device.type, enabled=False):
                mean_D = torch.cat([at_least_float32(z.flatten(0, 1)) for z in z_BTD]).mean(dim=0)
                # The mean of the logits: the last layer is linear.
                center.update(F.linear(mean_D, at_least_float32(weight_KD))[None])
        weight_KD = ours.weight()
        total, bags = torch.zeros((), device=self.device), []
        for s, features in enumerate(student):
            own = [(p_BTK[t], nearest_patches(features.patches, teacher[t].patches)) for t, i in pairs if i == s]
            z, bag = ours.project(features.patches), []
            for few in few_images(z):
                parts = []
                for part in slices(z.shape[1], PATCHES):
                    of_part = (z[few, part], weight_KD, [(p[few], nearest[few, part]) for p, nearest in own])
                    loss, bag_of_part = checkpoint(
                        self.patches, *of_part, use_reentrant=False, preserve_rng_state=False
                    )
                    total = total + loss * z[few, part].numel() / z.numel()
                    parts.append(bag_of_part * z[few, part].shape[1] / z.shape[1])
                bag.append(sum(parts))
            bags.append(torch.cat(bag))
        return total, Bags(bags, [bag_of(p) for p in p_BTK])

    def patches(self, z_BTD: Tensor, weight_KD: Tensor, teachers: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Part of the sum in Eq. 12 for some images and patches of one student crop, and their bags."""
        log_p_BTK = log_posterior(F.linear(z_BTD, weight_KD), tau=self.tau_s)
        loss = patch_loss(log_p_BTK, teachers) if teachers else log_p_BTK.new_zeros(())
        return loss, bag_of(log_p_BTK.exp())

    # ---- between crops and levels -------------------------------------------------------------------------------

    def named(self, net: Literal["student", "teacher"], found: dict[Level, Bags]) -> dict[Name, Tensor]:
        """Bags of one network by name, restricted to the levels that L_S compares."""
        return {
            (net, level, crop): bag for level in self.levels if level in found
            for crop, bag in enumerate(getattr(found[level], net))
        }  # fmt: skip

    def between(self, first: dict[Name, Tensor], second: dict[Name, Tensor]) -> Tensor:
        """Mean of KL(a || b) over the pairs of a bag a of ``first`` and a bag b of ``second`` that L_S compares."""
        bags = first | second
        number = {name: i for i, name in enumerate(bags)}
        pairs = [(number[a], number[b]) for a in first for b in second if self.compares(a[1:], b[1:])]
        return inter_level(list(bags.values()), pairs=pairs)

    def compares(self, a: tuple[Level, int], b: tuple[Level, int]) -> bool:
        """Whether L_S compares bag a (level, crop) with bag b (level, crop)."""
        if self.inter_level == "within_crop":
            return a[0] == "image" and b == ("region", a[1])
        return a != b

    def watched(self, bags: Bags) -> dict[str, Tensor]:
        """Entropy of the teacher's image crops, and their divergence from the student's other image crop."""
        p, other = torch.stack(bags.teacher[:IMAGE_CROPS]), torch.stack(bags.student[:IMAGE_CROPS][::-1])
        return watch(-(p * log_of(other.detach())).sum(dim=-1).mean(), p)


def few_images(x_BTD: Tensor) -> list[slice]:
    """Slices over the images of a crop, each of at most PATCHES patches (or one image)."""
    return slices(len(x_BTD), max(1, PATCHES // x_BTD.shape[1]))


def slices(length: int, step: int) -> list[slice]:
    """Slices of ``step`` elements that cover ``length``."""
    return [slice(first, first + step) for first in range(0, length, step)]
