"""Every option of the tasks changes what its help says, and nothing else, in a training of a few steps.

As in ``tests/data/test_no_dead_data_option.py``, ``TABLE`` has a line for each option; a new one without a line fails.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from fgssl.data.datamodule import DataModule
from fgssl.data.datasets import ALL
from fgssl.data.detection import DetectionData
from fgssl.data.segmentation import SegmentationData
from fgssl.data.views import Crop, Views
from fgssl.methods.base import Method
from fgssl.methods.registry import subclasses
from fgssl.optim import Optim
from fgssl.report.runs import label
from fgssl.tasks import Detect, Finetune, Frozen, Probe, Segment
from fgssl.tasks.downstream import Downstream
from tests import trees
from tests.nn.test_detectors import RESNET, VIT
from tests.options import Changes, Elsewhere, Row, cases, changed, check_named_test, elsewheres, help_of, options_of
from tests.tasks.test_detect import checkpoint
from tests.tasks.test_finetune import Colours
from tests.tiny import tiny_trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*published")

QUICK = Optim(name="adam", lr=1e-2, warmup=0)
SLOW = replace(QUICK, lr=1e-4)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Data with boxes, outlines and pixel classes, and checkpoints whose teacher and student differ."""
    root = tmp_path_factory.mktemp("tasks")
    trees.make_coco_instances(root / "coco_instances")
    trees.make_ade20k(root / "ade20k")
    checkpoint(root)
    return root


@pytest.fixture(autouse=True)
def working_folder(root, monkeypatch) -> None:
    monkeypatch.chdir(root)


# ---- what is seen ---------------------------------------------------------------------------------------------------

Seen = dict[str, Any]


BACKBONES = ("backbone.", "detector.backbone.network.")


class Steps(Callback):
    """Weights at the first step and losses of all; the steps' random numbers do not depend on what was built."""

    def __init__(self) -> None:
        self.start: dict[str, Tensor] = {}
        self.losses: list[float] = []

    def on_train_start(self, trainer, method) -> None:
        self.start = {name: value.clone() for name, value in method.state_dict().items()}
        torch.manual_seed(2)

    def on_train_batch_end(self, trainer, method, *_) -> None:
        self.losses.append(method.last_loss)


def trained(method: Method, data: DataModule, steps: int) -> Seen:
    """Names and shapes of the weights, the backbone's first ones, the losses, and which weights changed."""
    seen = Steps()
    tiny_trainer(max_epochs=-1, max_steps=steps, callbacks=[seen]).fit(method, data)
    after = method.state_dict()
    return {
        "built": {name: value.shape for name, value in after.items()},
        "start": {name: value for name, value in seen.start.items() if name.startswith(BACKBONES)},
        "losses": seen.losses,
        "trained": {name for name, value in after.items() if not torch.equal(value, seen.start[name])},
        "name": label(type(method).__name__, getattr(method, "variant", None)),
    }


def images(*sides: int) -> Tensor:
    return torch.randn(2, 3, *sides, generator=torch.Generator().manual_seed(3))


def of_classifier(kind: type[Finetune], **arguments: Any) -> Seen:
    torch.manual_seed(0)
    method = kind(**arguments)
    data = DataModule(Colours(), views=Views([Crop(8, flip=0)]), batch_size=8, num_workers=0)
    seen = trained(method, data, steps=5)
    with torch.no_grad():
        features = method.eval().embed(images(16, 16))
        return seen | {"features": features, "scores": method.classifier(features)}


def of_segment(**arguments: Any) -> Seen:
    torch.manual_seed(0)
    method = Segment(**arguments)
    # 64 px: on a last map of one pixel, a bias before BatchNorm has no gradient but rounding.
    data = SegmentationData(ALL["ade20k"]("ade20k", partial=True), size=64, batch_size=2, num_workers=0)
    seen = trained(method, data, steps=2)
    with torch.no_grad():
        maps = method.eval().head(method.backbone, images(32, 64))
    return seen | {"stride": 32 // maps[0].shape[-2], "scores": maps}


def of_detect(**arguments: Any) -> Seen:
    torch.manual_seed(0)
    method = Detect(**arguments)
    data = DetectionData(ALL["coco_instances"]("coco_instances", partial=True), batch_size=2, num_workers=0)
    seen = trained(method, data, steps=2)
    shown = [method.detector.train(training).transform([images(40, 60)[0]])[0] for training in (True, False)]
    return seen | {
        "training image": (shown[0].image_sizes, shown[0].tensors.shape),
        "evaluated image": (shown[1].image_sizes, shown[1].tensors.shape),
    }


def of_frozen(**arguments: Any) -> Seen:
    torch.manual_seed(0)
    return {"features": Frozen(**arguments).eval().embed(images(16, 16))}


# ---- the table ------------------------------------------------------------------------------------------------------

WIDER = replace(RESNET, options={**RESNET.options, "channels": [8, 8, 16, 24]})
SKIPS = Elsewhere("trust/test_faults.py", "test_steps_may_be_left_out_up_to_a_number_in_a_row")
RUN = {"init_from": "maskcon.ckpt"}
RESULT = {"losses", "features", "scores"}
SCORES = {"losses", "scores"}


def shared(backbone: set[str], init_from: set[str], num_fine: set[str], optim: set[str]) -> Row:
    """What the options of all tasks change."""
    return {
        "backbone": Changes(WIDER, backbone),
        "init_from": Changes("maskcon.ckpt", init_from),
        "num_fine": Changes(6, num_fine),
        "optim": Changes(SLOW, optim),
        "max_skips": SKIPS,
    }


# class -> what looks at it, arguments of the base, lines
TABLE: dict[type, tuple[Any, dict[str, Any], Row]] = {
    Finetune: (
        of_classifier, {"kind": Finetune, "backbone": RESNET, "num_fine": 4, "optim": QUICK},
        shared({"built", "start", *RESULT}, {"start", *RESULT}, {"built", *RESULT}, RESULT) | {
            "init_network": [
                Changes("teacher", {"start", *RESULT}, RUN),
                Changes(None, {"start", *RESULT}, RUN),  # the teacher follows each step
            ],
            "frozen": Changes(True, {"trained", *RESULT}),
        },
    ),
    Probe: (
        of_classifier, {"kind": Probe, "backbone": RESNET, "num_fine": 4, "optim": QUICK},
        shared({"built", "start", *RESULT}, {"start", *RESULT}, {"built", "losses", "scores"}, {"losses", "scores"}) | {
            "network": Changes("student", {"start", *RESULT}, RUN),
            "blocks": Changes(1, {"built", *RESULT}),
            "unit_length": Changes(True, RESULT),
            "augment": Changes(False, {"losses", "scores"}),
            "of": Changes("MaskCon", {"name"}),
        },
    ),
    Segment: (
        of_segment, {"backbone": RESNET, "num_fine": 3, "width": 16, "optim": QUICK},
        shared({"built", "start", *SCORES}, {"start", *SCORES}, {"built", *SCORES}, SCORES) | {
            "init_network": Changes("teacher", {"start", *SCORES}, RUN),
            "head": Changes("linear", {"built", "trained", "stride", *SCORES}),
            "frozen": Changes(True, {"trained", *SCORES}),
            "width": Changes(8, {"built", *SCORES}),
            "rescale": Changes(False, {"built", "trained", "stride", *SCORES}, {"backbone": VIT}),
        },
    ),
    Detect: (
        of_detect, {"backbone": RESNET, "num_fine": 2, "width": 8, "sizes": [32], "optim": QUICK},
        shared({"built", "start", "losses"}, {"start", "losses"}, {"built", "losses"}, {"losses"}) | {
            "init_network": Changes("teacher", {"start", "losses"}, RUN),
            "neck": Changes("c4", {"built", "losses", "trained"}),
            "masks": Changes(True, {"built", "losses", "trained"}),
            "freeze_bn": Changes(True, {"built", "losses", "trained"}),
            "sizes": [
                Changes([64], {"losses", "training image", "evaluated image"}),
                Changes([64, 32], {"losses", "training image"}),  # evaluation takes the last one
            ],
            "long_side": Changes(36, {"losses", "training image", "evaluated image"}),
            "pad_to": Changes(96, {"losses", "training image", "evaluated image"}, {"long_side": 96}),
            "width": Changes(16, {"built", "losses"}),
        },
    ),
    Frozen: (
        of_frozen, {"backbone": RESNET},
        {
            "backbone": Changes(WIDER, {"features"}),
            "optim": Changes(SLOW, set()),
            "max_skips": Changes(2, set()),
        },
    ),
}  # fmt: skip
ROWS = {kind: row for kind, (_, _, row) in TABLE.items()}


def test_every_task_has_a_row():
    ours = {cls for cls in subclasses(Method) if cls.__module__.startswith("fgssl.tasks.")}
    assert ours - {Downstream} == set(TABLE)


@pytest.mark.parametrize("kind", TABLE, ids=lambda kind: kind.__name__)
def test_every_option_has_a_line(kind):
    assert options_of(kind) == set(ROWS[kind])


BASES: dict[tuple, Seen] = {}


@pytest.mark.parametrize(("kind", "option", "line"), cases(ROWS))
def test_another_value_changes_what_its_help_says(kind, option, line):
    look, base, _ = TABLE[kind]
    key = (kind, repr(line.beside))
    if key not in BASES:
        BASES[key] = look(**(base | line.beside))
    assert changed(look(**(base | line.beside | {option: line.value})), BASES[key]) == line.parts
    assert bool(line.parts) != help_of(kind, option).startswith("not used")


@pytest.mark.parametrize(("option", "line"), elsewheres(ROWS))
def test_the_test_named_elsewhere_is_of_the_option(option, line):
    check_named_test(option, line)
