"""What the patch tokens of flsl.yaml and dino_patches.yaml stand for: the photograph they lie in, or their place.

Of the test scenes, for each network: the share of the tokens' variance that their place in the frame explains, and
three mean cosines: of two patches of a box, of one inside and one outside it, and of two patches at the same place of
two scenes. The picture shows where the tokens of each k-means cluster lie; a network whose clusters are objects has
flat maps::

    python experiments/evidence/token_places.py data/scenes start=data/vit_start.safetensors \\
        DINO=runs/sweep_flsl/seed_everything0_dino_patches FLSL=runs/sweep_flsl/seed_everything0_flsl --out places.png

A network is a run folder or checkpoint, or a file of weights of flsl.yaml's ViT.

Shapes: N scenes, P = rows x columns patches, D channels, K clusters.
"""

import argparse
import csv
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from fgssl.data.images import read_image
from fgssl.methods.base import Method
from fgssl.metrics.clustering import k_means
from fgssl.nn.backbones import Backbone
from fgssl.nn.feature_map import last_features

CLUSTERS = 20  # as in the table of the results


class Scenes(NamedTuple):
    """Test scenes.

    Attributes:
        images_N3HW: uint8.
        boxes_N4: box (x0, y0, x1, y1) of the first photograph of each, px.
    """

    images_N3HW: Tensor
    boxes_N4: np.ndarray


def read_test_scenes(folder: Path) -> Scenes:
    """The test scenes of a folder that scenes.py wrote."""
    with (folder / "scenes.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == "test"]
    images = [torch.from_numpy(np.array(read_image(folder / row["path"]))).permute(2, 0, 1) for row in rows]
    boxes = [[float(row[side]) for side in ("x0", "y0", "x1", "y1")] for row in rows]
    return Scenes(torch.stack(images), np.array(boxes))


def network_of(source: str) -> Any:
    """ViT of a run folder or checkpoint (that which the method evaluates), or of a file of weights."""
    if not source.endswith(".safetensors"):
        return Method.load_from_checkpoint(source).backbone_of().eval()
    experiment = yaml.safe_load(Path(__file__).with_name("flsl.yaml").read_text())
    name, options = experiment["model.backbone.name"], experiment["model.backbone.options"]
    return Backbone(name, options=options, weights=source).build().eval()


@torch.no_grad()
def tokens_of(network: Any, images_N3HW: Tensor) -> Tensor:
    """[N, P, D] tokens of unit length after the final normalisation."""
    maps = [last_features(network, part.float() / 127.5 - 1)[1] for part in images_N3HW.split(100)]
    return F.normalize(torch.cat(maps).flatten(2).transpose(1, 2), dim=-1)


def variance_of_place(tokens_NPD: Tensor) -> float:
    """Share of the variance of the tokens that lies between the means of the places, 0 to 1."""
    place_PD, all_D = tokens_NPD.mean(dim=0), tokens_NPD.mean(dim=(0, 1))
    between, total = (place_PD - all_D).square().sum(-1).mean(), (tokens_NPD - all_D).square().sum(-1).mean()
    return (between / total).item()


def inside_and_outside(box: np.ndarray, side: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """[P] bool: the patches that lie in the box, and those that do not touch it.

    Args:
        box: x0, y0, x1, y1 in px.
        side: patches along a side of the scene.
        size: side of the scene, px.
    """
    step = size / side
    start = np.arange(side) * step
    within, touched = [], []
    for low, high in ((box[1], box[3]), (box[0], box[2])):  # rows, columns
        within.append((start >= low) & (start + step <= high))
        touched.append((start + step > low) & (start < high))
    return np.outer(*within).ravel(), ~np.outer(*touched).ravel()


def cosines(tokens_NPD: Tensor, scenes: Scenes) -> tuple[float, float, float]:
    """Mean cosine of two patches of a box, of one inside and one outside, and of two at one place of two scenes."""
    side, size = round(tokens_NPD.shape[1] ** 0.5), scenes.images_N3HW.shape[-1]
    of_box, to_rest = [], []
    for tokens_PD, box in zip(tokens_NPD, scenes.boxes_N4, strict=True):
        inside, outside = (tokens_PD[part] for part in inside_and_outside(box, side, size))
        alike = inside @ inside.T
        of_box.append(alike[~torch.eye(len(inside), dtype=torch.bool)].mean())
        to_rest.append((inside @ outside.T).mean())
    same_place = (tokens_NPD * tokens_NPD.roll(1, dims=0)).sum(-1).mean()
    return torch.stack(of_box).mean().item(), torch.stack(to_rest).mean().item(), same_place.item()


def maps_of_clusters(tokens_NPD: Tensor) -> np.ndarray:
    """[K, rows, columns]: share of scenes whose patch at this place is in the cluster, the largest cluster first."""
    side = round(tokens_NPD.shape[1] ** 0.5)
    cluster_NP = k_means(tokens_NPD.flatten(0, 1), CLUSTERS).reshape(tokens_NPD.shape[:2])
    shares_KP = np.stack([(cluster_NP == cluster).mean(axis=0) for cluster in range(CLUSTERS)])
    return shares_KP[np.argsort(-shares_KP.sum(axis=1), kind="stable")].reshape(CLUSTERS, side, side)


def draw(maps: dict[str, np.ndarray], path: Path) -> None:
    """A line of maps for each network, on one scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.55 * CLUSTERS + 1.6, 0.62 * len(maps) + 0.5), layout="constrained")
    panels = figure.subplots(len(maps), CLUSTERS, squeeze=False)
    for line, (name, maps_KHW) in zip(panels, maps.items(), strict=True):
        for panel, map_HW in zip(line, maps_KHW, strict=True):
            image = panel.imshow(map_HW, vmin=0, vmax=0.5, cmap="viridis")
            panel.set_xticks([])
            panel.set_yticks([])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    bar = figure.colorbar(image, ax=panels, fraction=0.02, pad=0.01, extend="max")
    bar.set_label("share of scenes")
    figure.suptitle(f"Where the patches of {CLUSTERS} clusters lie in the frame", fontsize=11)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scenes", type=Path, help="folder that scenes.py wrote")
    parser.add_argument("networks", nargs="+", metavar="NAME=NETWORK", help="run folder, checkpoint or weights")
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="picture to draw; default: none")
    args = parser.parse_args()
    scenes, maps = read_test_scenes(args.scenes), {}
    print(f"{'':<24} variance of place   in a box   box and rest   same place")
    for name, _, source in (text.partition("=") for text in args.networks):
        tokens_NPD = tokens_of(network_of(source), scenes.images_N3HW)
        of_box, to_rest, same_place = cosines(tokens_NPD, scenes)
        place = f"{100 * variance_of_place(tokens_NPD):.1f} %"
        print(f"{name:<24} {place:>17} {of_box:>10.3f} {to_rest:>14.3f} {same_place:>12.3f}", flush=True)
        if args.out:
            maps[name] = maps_of_clusters(tokens_NPD)
    if args.out:
        draw(maps, args.out)
        print(f"picture: {args.out}")


if __name__ == "__main__":
    main()
