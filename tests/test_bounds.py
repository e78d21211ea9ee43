"""The lowest and the highest value of each numeric option: the bound itself is accepted or refused as the help says.

``BOUNDS`` has a line for each name that ``fgssl.errors.at_least``, ``above`` and ``between`` check somewhere in the
package; a new check without a line fails.
"""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import fgssl
from fgssl.callbacks.best_on_test import BestOnTest
from fgssl.callbacks.box_knn import BoxKNN
from fgssl.callbacks.collapse import Collapse
from fgssl.callbacks.neighbours import Neighbours
from fgssl.callbacks.online import OnlineKNN, OnlineProbe
from fgssl.callbacks.reconstructions import Reconstructions
from fgssl.data.datamodule import DataModule
from fgssl.data.datasets import ALL
from fgssl.data.detection import DetectionData
from fgssl.data.protocols import Protocol
from fgssl.data.segmentation import SegmentationData
from fgssl.data.views import ContrastiveCrop, Crop, Views
from fgssl.errors import UserError
from fgssl.evaluation.davis import Davis
from fgssl.evaluation.reranking import Rerank
from fgssl.losses.swav import EPSILON
from fgssl.methods import CMD, FLSL, LCR, LEWEL, MAE, MLS, OBDSD, BarlowTwins, DenseCL, MaskCon, SimCLR, SimSiam, SwAV
from fgssl.methods.byol import BYOL
from fgssl.methods.vicreg import VICReg
from fgssl.nn.backbones import Backbone
from fgssl.nn.distillation import Distillation
from fgssl.optim import Optim
from fgssl.tasks.detect import Detect
from fgssl.tasks.probe import Probe
from fgssl.tasks.segment import Segment
from tests import trees
from tests.methods.test_no_dead_option import TABLE
from tests.nn.test_detectors import RESNET

PACKAGE = Path(fgssl.__file__).parent
CHECKS = ("at_least", "above", "between")
LITTLE = 1e-3


class Bound(NamedTuple):
    """A check as it is written, and values beside which an object with an option at the bound can be made."""

    check: str
    numbers: tuple[float, ...]
    beside: dict[str, Any] = {}


def at_least(low: float, **beside: Any) -> Bound:
    return Bound("at_least", (low,), beside)


def above(low: float, **beside: Any) -> Bound:
    return Bound("above", (low,), beside)


SHARE = Bound("between", (0, 1))
NATURAL, POSITIVE, SOME = at_least(0), above(0), at_least(1)


def method(kind: type) -> Callable:
    return lambda **changes: kind(**TABLE[kind][1] | changes)


def data(**changes: Any) -> DataModule:
    return DataModule(ALL["digits"](), views=Views([Crop(8)]), **changes)


def detection(**changes: Any) -> DetectionData:
    return DetectionData(ALL["coco_instances"]("coco_instances", partial=True), **changes)


def segmentation(**changes: Any) -> SegmentationData:
    if "size" in changes:
        changes["size"] = (changes["size"], 64)
    return SegmentationData(ALL["ade20k"]("ade20k", partial=True), **changes)


def detect(**changes: Any) -> Detect:
    if "sizes" in changes:
        changes["sizes"] = [changes["sizes"]]
    return Detect(**{"backbone": RESNET, "num_fine": 2, "init_network": None} | changes)


# file of the checks, what has the options, the bounds
BOUNDS: list[tuple[str, Callable, dict[str, Bound]]] = [
    ("methods/maskcon.py", method(MaskCon), {
        "dim": SOME, "hidden": SOME, "memory": SOME, "weight": SHARE, "momentum": SHARE,
        "tau": NATURAL, "tau0": POSITIVE,
    }),
    ("methods/momentum_contrast.py", method(MLS), {"momentum": SHARE, "tau": POSITIVE}),
    ("methods/mls.py", method(MLS), {
        "k": SOME, "dim": SOME, "hidden": SOME, "memory": at_least(1, k=1), "lam": NATURAL, "nce_weight": NATURAL,
        "nce_warmup_epochs": NATURAL,
    }),
    ("methods/metric_learning.py", method(OBDSD), {"frozen_epochs": NATURAL}),
    ("methods/self_distillation.py", method(CMD), {
        "tau_s": POSITIVE, "tau_t_start": POSITIVE, "tau_t": POSITIVE, "momentum": SHARE,
        "tau_t_epochs": NATURAL, "freeze_last_layer": NATURAL,
    }),
    ("methods/cmd.py", method(CMD), {
        **dict.fromkeys(["l_i", "l_r", "l_s", "l_t", "l_ts", "koleo"], NATURAL), "prototypes": at_least(2),
        "hidden": SOME, "bottleneck": SOME,
    }),
    ("methods/flsl.py", method(FLSL), {
        "v": NATURAL, "eta": NATURAL, "gamma": NATURAL, "tau_sa": NATURAL, "tau_ca": at_least(0, tau_sa=0),
        "local_crops": NATURAL, "prototypes": SOME, "hidden": SOME, "bottleneck": SOME, "window": SOME,
    }),
    ("methods/mae.py", method(MAE), {
        "decoder_depth": SOME, "decoder_heads": SOME, "mask_ratio": at_least(0),
    }),
    ("methods/simclr.py", method(SimCLR), {"dim": SOME, "hidden": SOME, "tau": POSITIVE}),
    ("methods/byol.py", method(BYOL), {
        "dim": at_least(2), "hidden": at_least(2), "momentum": SHARE, "momentum_end": SHARE,
    }),
    ("methods/simsiam.py", method(SimSiam), {"dim": at_least(2), "hidden": at_least(2)}),
    ("methods/barlow_twins.py", method(BarlowTwins), {"lam": NATURAL, "dim": SOME, "hidden": SOME}),
    ("methods/vicreg.py", method(VICReg), {
        "lam": NATURAL, "mu": NATURAL, "nu": NATURAL, "dim": SOME, "hidden": SOME,
    }),
    ("methods/swav.py", method(SwAV), {
        "prototypes": at_least(2), "dim": SOME, "hidden": SOME, "iterations": SOME, "freeze_prototypes": NATURAL,
        "queue": NATURAL, "queue_start": NATURAL, "epsilon": at_least(EPSILON), "tau": POSITIVE,
    }),
    ("methods/lcr.py", method(LCR), {
        "nu": NATURAL, "maps": SOME, "attention_tau": POSITIVE, "dim": SOME, "hidden": SOME, "memory": SOME,
    }),
    ("methods/lewel.py", method(LEWEL), {"heads": SOME, "lam": SHARE, "tau": POSITIVE}),
    ("methods/densecl.py", method(DenseCL), {"dim": SOME, "hidden": SOME, "memory": SOME, "lam": SHARE}),
    ("nn/backbones.py", lambda **changes: Backbone("resnet18", **changes), {"freeze": NATURAL}),
    ("nn/distillation.py", Distillation, {"tau": POSITIVE, "tau_d": POSITIVE}),
    ("optim.py", Optim, {
        **dict.fromkeys(["momentum", "weight_decay", "min_lr", "warmup", "weight_decay_end"], NATURAL),
        "lr": POSITIVE, "lr_1d": POSITIVE, "power": POSITIVE, "reference_batch": SOME,
    }),
    ("callbacks/neighbours.py", Neighbours, {"every_n_epochs": SOME, "count": SOME, "neighbours": SOME}),
    ("callbacks/reconstructions.py", Reconstructions, {"count": SOME}),
    ("callbacks/collapse.py", Collapse, {"images": at_least(2)}),
    ("callbacks/box_knn.py", BoxKNN, {
        "k": SOME, "every_n_epochs": SOME, "clusters": NATURAL, "temperature": POSITIVE,
    }),
    ("callbacks/best_on_test.py", BestOnTest, {"every_n_epochs": SOME}),
    ("callbacks/online.py", OnlineKNN, {"k": SOME, "every_n_epochs": SOME, "temperature": POSITIVE}),
    ("callbacks/online.py", OnlineProbe, {"lr": POSITIVE}),
    ("data/views.py", Crop, {"size": at_least(2), "flip": SHARE}),
    ("data/views.py", ContrastiveCrop, {"warmup": SOME, "every": SOME, "alpha": POSITIVE}),
    ("data/annotated.py", detection, {"flip": SHARE}),
    ("data/detection.py", detection, {"jitter": at_least(32)}),
    ("data/segmentation.py", segmentation, {"size": at_least(2), "short_side": at_least(2)}),
    ("data/datamodule.py", data, {
        "batch_size": SOME, "eval_size": at_least(2), "prefetch": SOME, "num_workers": NATURAL,
    }),
    ("data/protocols.py", Protocol, {"seed": NATURAL}),
    ("evaluation/davis.py", lambda **changes: Davis("davis", **changes), {
        "--short_side": SOME, "--topk": SOME, "--radius": NATURAL, "--frames": NATURAL, "--temperature": at_least(1e-3),
    }),
    ("evaluation/reranking.py", Rerank, {"rerank.k1": at_least(1, k2=1), "rerank.k2": SOME}),
    ("tasks/probe.py", lambda **changes: Probe(backbone=RESNET, num_fine=2, **changes), {"blocks": SOME}),
    ("tasks/detect.py", detect, {
        "sizes": at_least(32), "long_side": at_least(32), "width": SOME,
    }),
    ("tasks/segment.py", lambda **changes: Segment(backbone=RESNET, init_network=None, num_fine=2, **changes), {
        "width": at_least(4),
    }),
]  # fmt: skip
ELSEWHERE = {("cli/application.py", "seed_everything"), ("cli/application.py", "trainer.accumulate_grad_batches")}
IDS = [f"{file}-{name}" for file, _, bounds in BOUNDS for name in bounds]
CASES = [(make, name, bound) for _, make, bounds in BOUNDS for name, bound in bounds.items()]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("bounds")
    trees.make_coco_instances(root / "coco_instances")
    trees.make_ade20k(root / "ade20k")
    return root


@pytest.mark.parametrize(("make", "name", "bound"), CASES, ids=IDS)
def test_a_value_at_the_bound_is_accepted_and_one_beyond_is_refused(make, name, bound, root, monkeypatch):
    monkeypatch.chdir(root)
    low, high = bound.numbers[0], bound.numbers[-1]
    if bound.check == "between":
        accepted, refused, said = (low, high), (low - LITTLE, high + LITTLE), f"it must be from {low} to {high}"
    elif bound.check == "at_least":
        accepted, refused, said = (low,), (low - LITTLE,), f"it must be {low} or more"
    else:
        accepted, refused, said = (LITTLE,), (low,), f"it must be above {low}"
    option = name.removeprefix("--").removeprefix("rerank.")
    for value in accepted:
        assert "it must be" not in refusal(make, {option: value} | bound.beside), value
    for value in (*refused, float("nan")):
        assert f"{name} is {value}; {said}" in refusal(make, {option: value} | bound.beside)


def refusal(make: Callable, changes: dict[str, Any]) -> str:
    """The message of the error, or nothing."""
    try:
        make(**changes)
    except UserError as error:
        return str(error)
    return ""


def test_every_check_has_a_line():
    listed = {(file, name, bound.check) for file, _, bounds in BOUNDS for name, bound in bounds.items()}
    assert {line for line in checked_names() if line[:2] not in ELSEWHERE} == listed


def checked_names() -> Iterator[tuple[str, str, str]]:
    """File, name and check of each call in the package whose names are written out."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call) or getattr(call.func, "id", None) not in CHECKS:
                continue
            file = str(path.relative_to(PACKAGE))
            for keyword in call.keywords:
                keys = keyword.value.keys if isinstance(keyword.value, ast.Dict) else []
                names = [keyword.arg] if keyword.arg else [key.value for key in keys if isinstance(key, ast.Constant)]
                yield from ((file, name, call.func.id) for name in names)
