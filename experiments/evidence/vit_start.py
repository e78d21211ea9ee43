"""A start for the small ViT of flsl.yaml and dino_patches.yaml: it learns EfficientNet's features of each patch.

From scratch the ViT learns too little in minutes to compare two methods, and ImageNet weights of a ViT of its size do
not exist. So it is first trained to give, for each patch of a scene of 64 px, the features that EfficientNet-Lite0 with
ImageNet weights gives at this place of the scene enlarged to 256 px. No label and no box of a scene is used::

    python experiments/evidence/scenes.py cifar10-jpeg.tar data/scenes_start --train 15000 --seed 1
    python experiments/evidence/vit_start.py data/scenes_start weights.safetensors data/vit_start.safetensors

Only training scenes are read. One CPU core: about 20 minutes.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from fgssl.data.images import read_image
from fgssl.nn.backbones import Backbone
from fgssl.nn.sincos import fix_positions

TEACHER = "tf_efficientnet_lite0.in1k"
ENLARGED = 256  # px; the teacher's map of it has a place for each patch of the ViT: 8 x 8


def read_scenes(folder: Path) -> Tensor:
    """[N, 3, H, W] uint8: the training scenes."""
    paths = sorted((folder / "train").glob("*.jpg"))
    if not paths:
        raise SystemExit(f"vit_start: {folder}/train holds no scene; make them with scenes.py.")
    return torch.stack([torch.from_numpy(np.array(read_image(path))).permute(2, 0, 1) for path in paths])


def normalised(scenes: Tensor) -> Tensor:
    """uint8 images as both networks take them: mean and standard deviation 0.5."""
    return scenes.float() / 127.5 - 1


@torch.no_grad()
def teacher_maps(network: Any, scenes: Tensor) -> Tensor:
    """[N, P, C] float16: the teacher's features of P places, each channel with mean 0 and variance 1 over scenes."""
    maps = []
    for batch in scenes.split(50):
        x = F.interpolate(normalised(batch), size=(ENLARGED, ENLARGED), mode="bicubic")
        x = network.blocks(network.bn1(network.conv_stem(x)))
        maps.append(x.flatten(2).transpose(1, 2).half())
        if len(maps) % 50 == 0:
            print(f"{50 * len(maps)} of {len(scenes)} scenes seen by the teacher", flush=True)
    maps_NPC = torch.cat(maps)
    mean_C = maps_NPC.mean(dim=(0, 1), dtype=torch.float32)
    std_C = torch.stack([channel.float().std() for channel in maps_NPC.unbind(-1)])
    return ((maps_NPC - mean_C.half()) / std_C.half()).half()


def mirrored(images: Tensor, maps_NPC: Tensor) -> tuple[Tensor, Tensor]:
    """Images and their square maps with left and right exchanged."""
    side = round(maps_NPC.shape[1] ** 0.5)
    return images.flip(-1), maps_NPC.unflatten(1, (side, side)).flip(2).flatten(1, 2)


def distil(student: Any, scenes: Tensor, maps_NPC: Tensor, epochs: int, batch: int, lr: float) -> float:
    """Train the student's tokens, through one linear layer, towards the teacher's maps.

    Returns:
        Mean squared error of the last epoch; 1 is that of the mean.
    """
    count = len(scenes) // batch
    to_teacher = nn.Linear(student.num_features, maps_NPC.shape[-1])
    optimizer = torch.optim.AdamW([*student.parameters(), *to_teacher.parameters()], lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * count, pct_start=0.1)
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(scenes))[: count * batch].view(count, batch):
            x, y = normalised(scenes[rows]), maps_NPC[rows].float()
            if torch.rand(()) < 0.5:
                x, y = mirrored(x, y)
            loss = F.mse_loss(to_teacher(student.forward_features(x)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1} of {epochs}: mean squared error {total / count:.4f}", flush=True)
    return total / count


def make_start(folder: Path, weights: str, target: Path, epochs: int = 16, batch: int = 64, lr: float = 2e-3) -> float:
    """Train the ViT of flsl.yaml on the scenes of ``folder`` and write its weights; returns the last error."""
    torch.manual_seed(0)
    scenes = read_scenes(folder)
    maps_NPC = teacher_maps(Backbone(TEACHER, weights=weights).build().eval(), scenes)
    experiment = yaml.safe_load(Path(__file__).with_name("flsl.yaml").read_text())
    student = Backbone(experiment["model.backbone.name"], options=experiment["model.backbone.options"]).build().train()
    fix_positions(student)
    error = distil(student, scenes, maps_NPC, epochs, batch, lr)
    save_file({name: value.contiguous() for name, value in student.state_dict().items()}, target)
    return error


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scenes", type=Path, help="folder that scenes.py wrote")
    parser.add_argument("weights", help=f"file of the ImageNet weights of {TEACHER}")
    parser.add_argument("target", type=Path, help="file to write, .safetensors")
    parser.add_argument("--epochs", type=int, default=16, help="epochs over the training scenes")
    args = parser.parse_args()
    error = make_start(args.scenes, args.weights, args.target, args.epochs)
    print(f"{args.target}: mean squared error {error:.4f}")


if __name__ == "__main__":
    main()
