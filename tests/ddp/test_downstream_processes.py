"""Detection and segmentation on two processes: DDP waits for the gradient of each weight, so none may be unused."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fgssl.nn.backbones import Backbone, of_any_size
from fgssl.nn.segmenters import build_head, class_scores
from tests.ddp.ranks import seen_by_ranks
from tests.nn.test_detectors import build_detector, scene
from tests.nn.test_segmenters import CONVNEXT, EFFICIENT, MOBILE, SWIN

pytestmark = pytest.mark.ddp

WORLD = 2
BACKBONES = {"swin": SWIN, "convnext": CONVNEXT, "efficientnet": EFFICIENT, "mobilenetv3": MOBILE}


class DetectorLoss(nn.Module):
    """Sum of the losses of a detector."""

    def __init__(self, backbone: Backbone, neck: str):
        super().__init__()
        self.detector = build_detector(of_any_size(backbone), neck, classes=2, masks=True, sizes=[64], width=16)

    def forward(self) -> torch.Tensor:
        return sum(self.detector(*scene()).values())


class SegmenterLoss(nn.Module):
    """Mean square of the scores of a segmenter."""

    def __init__(self, backbone: Backbone, head: str):
        super().__init__()
        self.backbone = of_any_size(backbone)
        self.head = build_head(self.backbone, head, classes=3, width=16)

    def forward(self) -> torch.Tensor:
        return class_scores(self.backbone, self.head, torch.randn(2, 3, 64, 64)).square().mean()


NETWORKS = {
    **{f"{name} detect fpn": (DetectorLoss, backbone, "fpn") for name, backbone in BACKBONES.items()},
    **{f"{name} segment fpn": (SegmenterLoss, backbone, "fpn") for name, backbone in BACKBONES.items()},
    **{f"{name} segment linear": (SegmenterLoss, backbone, "linear") for name, backbone in BACKBONES.items()},
}


def one_rank(rank: int, folder: str) -> None:
    """Two steps of each network; DDP complains in the second about weights without gradient in the first."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    faults = {}
    for name, (kind, backbone, part) in NETWORKS.items():
        torch.manual_seed(0)
        parallel = DistributedDataParallel(kind(backbone, part))
        try:
            for _ in range(2):
                parallel().backward()
        except RuntimeError as fault:
            faults[name] = str(fault).splitlines()[0]
    torch.save(faults, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_train_two_steps_of_each_network_with_each_head(tmp_path):
    assert seen_by_ranks(one_rank, tmp_path, WORLD) == [{}, {}]
