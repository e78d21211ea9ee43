"""Every option of every method does something: another value of it changes a short training.

``TABLE`` has a line for each option of each class: another legal value (``With`` names what it acts beside), or the
test that shows its effect where six steps cannot (``Elsewhere``). A new option without a line fails.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from fgssl.data.batch import Batch
from fgssl.methods import barlow_twins, byol, densecl, lcr, lewel, simclr, simsiam, swav, vicreg
from fgssl.methods.base import Method
from fgssl.methods.cmd import CMD
from fgssl.methods.flsl import FLSL
from fgssl.methods.mae import MAE
from fgssl.methods.maskcon import MaskCon
from fgssl.methods.metric_learning import MetricLearning
from fgssl.methods.mls import MLS
from fgssl.methods.momentum_contrast import MomentumContrast
from fgssl.methods.obd_sd import OBDSD
from fgssl.methods.registry import subclasses
from fgssl.methods.self_distillation import SelfDistillation
from fgssl.nn.backbones import Backbone
from fgssl.nn.distillation import Distillation
from fgssl.optim import Group, Optim
from fgssl.tasks.downstream import Downstream
from tests.options import Elsewhere, With, cases, changed, check_named_test, elsewheres, options_of
from tests.tiny import BACKBONE, tiny_trainer

HERE = "methods/test_no_dead_option.py"


# ---- a short training -----------------------------------------------------------------------------------------------


def batches(*sizes: int) -> list[Batch]:
    """Two batches of 8 images of 4 classes, with a view of each size."""
    generator, found = torch.Generator().manual_seed(0), []
    fine = torch.arange(8) % 4
    colours = torch.randn(4, 3, 1, 1, generator=generator)
    for first in (0, 8):
        views = [colours[fine] + 0.5 * torch.randn(8, 3, size, size, generator=generator) for size in sizes]
        found.append(Batch(views, fine, fine // 2, first + torch.arange(8), first + torch.arange(8)))
    return found


class Losses(Callback):
    """The loss of each step."""

    def __init__(self):
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer, method, *_):
        self.seen.append(method.last_loss)


def trained(kind: type[Method], sizes: tuple[int, ...], arguments: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Losses, weights and an embedding of three epochs of two steps."""
    torch.manual_seed(0)
    method, losses, loader = kind(**arguments), Losses(), batches(*sizes)
    tiny_trainer(max_epochs=3, callbacks=[losses]).fit(method, DataLoader(loader, batch_size=None))
    method.eval()
    with torch.no_grad():
        embedding = method.embed(loader[0].views[0])
    state = {name: value for name, value in method.state_dict().items() if isinstance(value, torch.Tensor)}
    return {"losses": torch.tensor(losses.seen, dtype=torch.float64), "embedding": embedding, **state}


# ---- the table ------------------------------------------------------------------------------------------------------

PLAIN = Optim(lr=0.1, warmup=0)
ADAMW = Optim(name="adamw", lr=0.01, warmup=0)
MAP = replace(BACKBONE, options={**BACKBONE.options, "output_stride": 8, "norm_layer": "groupnorm1"})
TOKENS = {"class_token": False, "global_pool": "avg", "fc_norm": False, "dynamic_img_size": True}
VIT = {"img_size": 16, "patch_size": 4, "depth": 2, "embed_dim": 16, "num_heads": 2}
HEADS = {"dim": 6, "hidden": 8, "optim": PLAIN}
CONTRAST = {"memory": 12, "tau": 0.2, "momentum": 0.9, "keys_batch_norm": "plain"}
EMA = {"momentum": 0.9}
BASE_CLASSES = {
    SelfDistillation,
    MomentumContrast,
    lcr.Rationale,
    Downstream,
}  # their options are their subclasses' too
TASKS = ("Detect", "Segment", "Finetune", "Probe", "Frozen")  # tests/tasks

FLSL_VIEWS = Elsewhere("methods/test_flsl_method.py", "test_each_student_is_compared_with_the_other_teacher_view")
OBD_SD_TESTS = "methods/test_obd_sd_method.py"
LOADED = Elsewhere(OBD_SD_TESTS, "test_pretrained_teacher_is_loaded_from_its_checkpoint_and_stays_fixed")
OF_A_FILE = Elsewhere("nn/test_weights.py", "test_a_file_of_both_networks_gives_the_one_that_is_asked_for")
GLOBAL = Elsewhere(OBD_SD_TESTS, "test_global_relations_are_computed_once_an_epoch_from_all_training_images")
SKIPS = Elsewhere("trust/test_faults.py", "test_steps_may_be_left_out_up_to_a_number_in_a_row")
IN_SETTINGS = Elsewhere(HERE, "test_another_value_gives_another_training")
OWN = {"backbone": IN_SETTINGS, "optim": IN_SETTINGS, "max_skips": SKIPS}
KEYS = {
    "dim": 4, "hidden": 4, "memory": 6, "tau": 0.5, "momentum": 0.5,
    "keys_batch_norm": Elsewhere(
        "ddp/test_mls_processes.py", "test_keys_are_normalised_in_the_company_that_the_setting_names"
    ),
}  # fmt: skip
BYOLS = {"dim": 4, "hidden": 4, "momentum": 0.5, "momentum_end": 0.7}
DINOS = {
    "tau_s": 0.2, "tau_t_start": 0.1, "tau_t": 0.1, "tau_t_epochs": 3, "momentum": 0.5, "freeze_last_layer": 2,
}  # fmt: skip
DINO = {"prototypes": 7, "hidden": 8, "bottleneck": 4, "tau_t_epochs": 2, "momentum": 0.9, "optim": ADAMW}
METRIC = {
    "dim": 4, "feature_norm": "layer", "normalize": False, "freeze_bn": True, "frozen_epochs": 1,
    "dml_loss": "ProxyAnchor", "miner": With("SemiHard", {"dml_loss": "Margin", "miner": "RandomTriplets"}),
    "global_batch": Elsewhere(
        "ddp/test_obd_sd_processes.py", "test_similarities_are_of_all_processes_unless_told_otherwise"
    ),
    "train_classes": With([0, 1, 2, 3, 9], {"dml_loss": "ProxyAnchor"}),
}  # fmt: skip
STEM = replace(BACKBONE, options={**BACKBONE.options, "stem_width": 4})
METRICS = {"backbone": STEM, "dim": 6, "train_classes": [0, 1, 2, 3], "optim": ADAMW, "freeze_bn": False}

# class -> sizes of its views, arguments of the shared training, another value of each option
TABLE: dict[type, tuple[tuple[int, ...], dict[str, Any], dict[str, Any]]] = {
    MaskCon: (
        (8, 8),
        {"backbone": BACKBONE, "dim": 6, "hidden": 8, "memory": 12, "momentum": 0.9, "weight": 0.7, "num_coarse": 2}
        | {"train_classes": [0, 1, 2, 3], "optim": PLAIN},
        {
            "variant": "supcon", "weight": 0.3, "tau": 0.5, "tau0": 0.5, "dim": 4, "hidden": 4, "memory": 6,
            "momentum": 0.5, "num_coarse": With(3, {"variant": "supce"}),
            "train_classes": With([0, 1, 2, 3, 9], {"variant": "supfine"}),
        },
    ),
    MLS: (
        (8, 8),
        {"backbone": BACKBONE, **HEADS, **CONTRAST, "k": 3},
        KEYS | {
            "variant": "knn", "dictionary": "z", "k": 5, "lam": 0.9, "reduction": "balanced", "nce_weight": 0.5,
            "nce_warmup_epochs": 1,
        },
    ),
    OBDSD: (
        (8,),
        METRICS | {"distillation": Distillation(lam=10.0)},
        METRIC | {
            "normalize": Elsewhere(OBD_SD_TESTS, "test_embeddings_of_any_length_are_refused"),
            "distillation": IN_SETTINGS,
        },
    ),
    MetricLearning: ((8,), METRICS, METRIC),
    FLSL: (
        (16, 16),
        {"backbone": Backbone("vit_tiny_patch16_224", options=TOKENS | VIT), **DINO},
        DINOS | {
            "v": 0.5, "eta": 0.5, "gamma": 1.0, "tau_sa": 0.15, "tau_ca": 0.5, "prototypes": 5, "hidden": 4,
            "bottleneck": 3, "window": 1, "queries": "top_left", "teacher_views": FLSL_VIEWS,
            "local_crops": FLSL_VIEWS, "targets": "center",
        },
    ),
    CMD: (
        (16, 16, 8, 8),
        {"backbone": MAP, **DINO},
        DINOS | {
            "l_i": 0.9, "l_r": 0.9, "l_s": 0.5, "l_t": 0.5, "l_ts": 0.5, "teacher_crops": "all",
            "inter_level": "within_crop", "bags": "image", "image_bag": "instances", "prototypes": 5, "hidden": 4,
            "bottleneck": 3, "norm_last_layer": True, "koleo": 0.5,
        },
    ),
    MAE: (
        (16,),
        {"backbone": Backbone("vit_tiny_patch16_224", options=VIT), "decoder_dim": 16, "decoder_depth": 2}
        | {"decoder_heads": 2, "optim": ADAMW},
        {"mask_ratio": 0.5, "normalise_pixels": False, "decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 4},
    ),
    simclr.SimCLR: ((8, 8), {"backbone": BACKBONE, **HEADS}, {"dim": 4, "hidden": 4, "tau": 0.5}),
    byol.BYOL: ((8, 8), {"backbone": BACKBONE, **HEADS, **EMA}, BYOLS),
    simsiam.SimSiam: ((8, 8), {"backbone": BACKBONE, **HEADS}, {"dim": 4, "hidden": 4}),
    barlow_twins.BarlowTwins: ((8, 8), {"backbone": BACKBONE, **HEADS}, {"lam": 0.1, "dim": 4, "hidden": 4}),
    vicreg.VICReg: ((8, 8), {"backbone": BACKBONE, **HEADS}, {"lam": 5.0, "mu": 5.0, "nu": 5.0, "dim": 4, "hidden": 4}),
    swav.SwAV: (
        (8, 8),
        {"backbone": BACKBONE, **HEADS, "prototypes": 6, "queue_start": 1},
        {
            "prototypes": 5, "dim": 4, "hidden": 4, "tau": 0.5, "epsilon": 0.1, "iterations": 1, "freeze_prototypes": 0,
            "queue": 8, "queue_start": With(2, {"queue": 8}),
        },
    ),
    lcr.LCR: (
        (16, 16),
        {"backbone": MAP, **HEADS, **CONTRAST, "maps": 4, "nu": 0.5},
        KEYS | {"nu": 0.1, "maps": 2, "attention_tau": 0.2, "attention_over": "map"},
    ),
    lcr.BYOLLCR: (
        (16, 16),
        {"backbone": MAP, **HEADS, **EMA, "maps": 4, "nu": 0.5},
        BYOLS | {"nu": 0.1, "maps": 2, "attention_tau": 0.2, "attention_over": "rows"},
    ),
    lewel.LEWEL: (
        (16, 16), {"backbone": MAP, **HEADS, **EMA, "heads": 2}, BYOLS | {"lam": 0.9, "heads": 1, "tau": 0.2},
    ),
    densecl.DenseCL: ((16, 16), {"backbone": MAP, **HEADS, **CONTRAST}, KEYS | {"lam": 0.9}),
}  # fmt: skip

# Settings of their own: class -> what is trained, the argument of it that holds them, other values
STEPS = {"schedule": "steps", "milestones": [1]}
SETTINGS: dict[type, tuple[type, str, dict[str, Any]]] = {
    Optim: (
        MaskCon, "optim",
        {
            "name": "adam", "lr": 0.2, "momentum": 0.5, "betas": With((0.5, 0.9), {"name": "adam"}),
            "eps": With(0.1, {"name": "adam"}), "weight_decay": 0.1, "weight_decay_end": 0.5,
            "decay_1d": With(False, {"weight_decay": 0.5}), "lr_1d": 0.01, "warmup": 1, "min_lr": 0.05,
            "reference_batch": 2, "schedule": "linear", "length": 9, "milestones": With([2], STEPS),
            "unit": With("step", {"warmup": 2}), "gamma": With(0.5, STEPS), "clip_each": 1e-3, "layer_decay": 0.5,
            "power": With(0.5, {"schedule": "linear"}),
            "constant": "query.head", "groups": [Group("query.head", 0.01)],
        },
    ),
    Group: (MaskCon, "optim.groups", {"of": "query.backbone", "lr": 0.02, "weight_decay": 0.5}),
    Backbone: (
        MaskCon, "backbone",
        {
            "name": "resnet26", "small_input": False, "freeze": 2, "pooling": "avg+max",
            "pretrained": Elsewhere("nn/test_backbone_faults.py", "test_missing_network_is_said"),
            "options": {**BACKBONE.options, "channels": [4, 4, 4, 8]}, "weights": OF_A_FILE, "weights_of": OF_A_FILE,
            "freeze_statistics": True,
        },
    ),
    Distillation: (
        OBDSD, "distillation",
        {
            "teacher": "none", "lam": 50.0, "dynamic": False, "tau": 0.2, "omega": 0.7,
            "tau_d": 0.2, "normalization": "symmetric", "clamp": Elsewhere(HERE, "test_clamp_acts_on_negative_cosines"),
            "manifold": GLOBAL, "neighbours": GLOBAL, "power": GLOBAL,
            "checkpoint": LOADED,
            "head_dims": With([8, 9], {"teacher": "heads"}), "teacher_precision": "bf16",
        },
    ),
}  # fmt: skip


def row_of(kind: type) -> dict[str, Any]:
    return TABLE[kind][2] | OWN if kind in TABLE else SETTINGS[kind][2]


ROWS = {kind: row_of(kind) for kind in (*TABLE, *SETTINGS)}


def test_every_method_has_a_table():
    ours = {cls for cls in subclasses(Method) if cls.__module__.startswith("fgssl.")}
    assert ours - BASE_CLASSES - {cls for cls in ours if cls.__name__ in TASKS} == set(TABLE)


@pytest.mark.parametrize("kind", ROWS, ids=lambda kind: kind.__name__)
def test_every_option_has_a_line(kind):
    assert options_of(kind) == set(ROWS[kind])


def training_with(kind: type, changes: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The shared training of a method, or of the method whose settings ``kind`` are, with some options changed."""
    if kind in TABLE:
        sizes, arguments, _ = TABLE[kind]
        return trained(kind, sizes, arguments | changes)
    method, place, _ = SETTINGS[kind]
    sizes, arguments, _ = TABLE[method]
    if kind is Group:
        optim = replace(PLAIN, groups=[replace(Group("query.head", 0.05), **changes)])
        return trained(method, sizes, arguments | {"optim": optim})
    return trained(method, sizes, arguments | {place: replace(arguments[place], **changes)})


BASES: dict[tuple, dict[str, torch.Tensor]] = {}


@pytest.mark.parametrize(("kind", "option", "line"), cases(ROWS))
def test_another_value_gives_another_training(kind, option, line):
    value, beside = line if isinstance(line, With) else (line, {})
    key = (kind, repr(beside))
    if key not in BASES:
        BASES[key] = training_with(kind, beside)
    assert changed(training_with(kind, {**beside, option: value}), BASES[key])


@pytest.mark.parametrize(("option", "line"), elsewheres(ROWS))
def test_the_file_named_elsewhere_tests_the_option(option, line):
    check_named_test(option, line)


def test_clamp_acts_on_negative_cosines():
    d = torch.tensor([[1, 0.5, -0.1], [0.5, 1, 0.5], [-0.1, 0.5, 1]], dtype=torch.float64)
    clamped, plain = (Distillation(normalization="symmetric", clamp=clamp).targets(d) for clamp in (True, False))
    assert not torch.allclose(clamped, plain)


def test_equal_trainings_are_the_same():
    """What the tests above compare with."""
    sizes, arguments, _ = TABLE[MaskCon]
    assert not changed(trained(MaskCon, sizes, arguments), trained(MaskCon, sizes, dict(arguments)))
