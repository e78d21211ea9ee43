"""Images a second of frozen networks in evaluation: the three of FLSL's Table 8 and the two of CMD's Table I.

    python tests/benchmarks/bench_networks.py [--networks vit_small_patch16_224 ... --batch 128 --rounds 20]

ViTs are built without class token, as FLSL's. Rounds of all networks alternate, so that a noisy machine bends all; the
ratio is that of the medians. The paper's images a second are of 128 images a forward pass on a V100, in a precision
that it does not name. Here: float32 without TF32, and bfloat16 besides on a GPU; 1 image on the CPU. Time is that of
the clock on a GPU, of the processor on the CPU, which others may use too.
"""

import argparse
import contextlib
import platform
import sys
from collections.abc import Callable

import torch

from fgssl.methods.flsl import TOKENS
from fgssl.nn.backbones import Backbone
from fgssl.report.published import all_rows
from tests.benchmarks.bench_flsl import medians

PRINTED = {  # timm name: paper, table, the network's name there
    "vit_small_patch16_224": ("flsl", "Table 8", "vit_small_16"),
    "vit_small_patch8_224": ("flsl", "Table 8", "vit_small_8"),
    "vit_base_patch16_224": ("flsl", "Table 8", "vit_base_16"),
    "resnet50": ("cmd", "Table I", "resnet50"),
    "swin_tiny_patch4_window7_224": ("cmd", "Table I", "swin_tiny"),
}


def printed() -> dict[str, float]:
    """The papers' images a second by timm name."""
    rows = [row for row in all_rows() if row["metric"] == "throughput"]
    of_network = {(row["paper"], row["table"], row["backbone"]): float(row["value"]) for row in rows}
    return {name: of_network[place] for name, place in PRINTED.items()}


def forward(network: torch.nn.Module, images: torch.Tensor, precision: str) -> Callable[[], None]:
    """One forward pass without gradient."""
    mixed = torch.autocast(images.device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()

    def work() -> None:
        with torch.inference_mode(), mixed:
            network(images)

    return work


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--networks", nargs="+", default=list(PRINTED), help="timm names; the first is the ratio's base"
    )
    parser.add_argument("--batch", type=int, default=128 if cuda else 1)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=20 if cuda else 3)
    options = parser.parse_args()
    device, paper = torch.device("cuda" if cuda else "cpu"), printed()
    images = torch.randn(options.batch, 3, options.size, options.size, generator=torch.Generator().manual_seed(0))
    networks = {}
    for name in options.networks:
        vit = TOKENS if name.startswith("vit_") else {}
        networks[name] = Backbone(name, options=dict(vit)).build().to(device).eval()
    for precision in ("fp32", "bf16") if cuda else ("fp32",):
        works = {name: forward(network, images.to(device), precision) for name, network in networks.items()}
        seconds = medians(works, options.rounds, cuda)
        print(f"\n{precision}, {options.batch} images of {options.size} px a forward pass")
        first = options.networks[0]
        for name, network in networks.items():
            million = sum(weight.numel() for weight in network.parameters()) / 1e6
            rate, ratio = options.batch / seconds[name], seconds[first] / seconds[name]
            theirs = (
                f"   paper {paper[name]:6.0f}, {paper[name] / paper[first]:.3f}"
                if {name, first} <= paper.keys()
                else ""
            )
            print(f"  {name:29} {million:6.1f} M  {rate:9.1f} images/s, {ratio:.3f} of the first{theirs}")
    hardware = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    print(f"  {hardware}; torch {torch.__version__}, Python {platform.python_version()}, {sys.platform}")


if __name__ == "__main__":
    main()
