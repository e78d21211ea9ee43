"""Conditions of a printed number, and their values in a run.

A row of ``published.csv`` states conditions in its columns (network, epochs) and in ``setting``; ``STATED`` adds
what a paper states once for all of its tables. ``FACTS`` reads the value of each condition from a run.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fgssl.report.runs import LAST, RunFolder, checkpoint_name

Row = dict[str, str]  # a row of published.csv

# Protocol -> task on top of a trained method; the method of such a row is that of the run that the task started from.
TASKS = {"linear_probe": "Probe", "finetune": "Finetune", "detection": "Detect", "segmentation": "Segment"}
MASKS_OF_OBJECTS = "coco"  # data set whose segmentation rows are of a detector
RETRIEVAL = ("recall", "retrieval_loo", "clustering", "embedding_space")
DATASETS = {"cifar10toy": "cifartoy", "voc07": "voc2007"}  # names in the tables -> names of our data sets
# Variants and methods whose names in the tables differ from ours.
ALSO = {
    "moco_v2": ("MoCo-v2", "MoCo v2", "Baseline"), "knn": ("+kNN",), "bce_pos": ("+BCE-pos",),
    "BarlowTwins": ("Barlow",), "BYOLLCR": ("BYOL+LCR",),
}  # fmt: skip
# Keys of ``setting`` that are no conditions.
REMARKS = ("note", "hyper_from", "reproduced", "reimplemented", "epochs_inferred", "elements", "extra_loss", "venue")

# Number of test images of each data set and split.
TEST_IMAGES = {
    ("cifar10toy", "good"): 8000, ("cifar10toy", "bad"): 8000, ("cifar100", "official"): 10_000,
    ("imagenet32", "official"): 50_000, ("imagenet", "official"): 50_000, ("sop", "sop_split1"): 25_278,
    ("sop", "sop_split2"): 2996, ("sop", "zero_shot"): 60_502, ("cub", "official"): 5794, ("cub", "zero_shot"): 5924,
    ("cars", "official"): 8041, ("cars", "zero_shot"): 8131, ("aircraft", "official"): 3333,
    ("flowers", "official"): 6149, ("indoor67", "official"): 1340, ("pets", "official"): 3669,
    ("dtd", "official"): 1880, ("voc07", "official"): 4952, ("voc0712", "official"): 4952, ("coco", "official"): 5000,
    ("ade20k", "official"): 2000, ("cityscapes", "official"): 500, ("davis2017", "official"): 30,
}  # fmt: skip

# Conditions of every row, unless it states another value.
WHOLE = {
    "held out": 0, "training batches": "all", "test batches": "all", "label_proportion": 100, "noise": 0,
    "pretraining images": 100, "frozen stages": 0, "frozen statistics": False, "checkpoint": LAST,
}  # fmt: skip

FIXED_W = ("SelfCon", "SupCon", "SupCE")  # methods of MaskCon's tables that do not use the option w
OBDSD = ("MS+OBD-SD", "Margin+OBD-SD", "R-Margin+OBD-SD")
PSD = ("MS+PSD",)
FROM_LCR = (
    "Barlow", "VICReg", "SimCLR", "BYOL", "SimSiam", "MoCo v2", "BYOL+LCR", "LCR", "LEWEL", "ContrastiveCrop",
)  # fmt: skip
MLS = ("MLS", "MoCo-v2", "Baseline", "+kNN", "+BCE-pos")
MARGINS = ("Margin", "Margin+OBD-SD", "R-Margin", "R-Margin+OBD-SD")

# What a paper states once: (columns of the row, conditions). Later entries override earlier ones; ``setting`` wins.
STATED: tuple[tuple[dict[str, str | tuple[str, ...]], dict[str, Any]], ...] = (
    # MaskCon, appendix A.1; its released code starts every data set from ImageNet weights
    ({"paper": "maskcon"}, {"batch": 128, "image size": 224, "stem": "7x7", "tau0": 0.1, "init": "imagenet"}),
    ({"paper": "maskcon", "dataset": ("cifar10toy", "cifar100")}, {"image size": 32, "stem": "3x3"}),
    ({"paper": "maskcon", "dataset": "imagenet32"}, {"image size": 32, "stem": "3x3", "batch": 256}),
    ({"paper": "maskcon"}, {"dimension": 128, "memory": 8192}),
    ({"paper": "maskcon", "dataset": "imagenet32"}, {"memory": 16_384}),  # of the released command
    ({"paper": "maskcon"}, {"hidden": 512, "optimizer": "sgd", "learning rate": 0.02, "weight decay": 5e-4}),
    ({"paper": "maskcon"}, {"augmentation": "cifar"}),
    ({"paper": "maskcon", "dataset": "cars"}, {"augmentation": "cars"}),
    ({"paper": "maskcon", "dataset": "sop"}, {"augmentation": "sop"}),
    # OBD-SD, section 5.1; batches of 112 images are those of its released code
    ({"paper": "obd_sd"}, {"batch": 112, "image size": 224, "init": "imagenet", "lr_schedule": "no"}),
    ({"paper": "obd_sd"}, {"frozen BatchNorm": "yes", "optimizer": "adam", "learning rate": 1e-5}),
    ({"paper": "obd_sd"}, {"weight decay": 4e-4}),
    ({"paper": "obd_sd"}, {"images a class": 2, "replacement": "yes", "temperature": 1}),  # the draw: released code
    ({"paper": "obd_sd", "method": OBDSD + PSD}, {"dynamic_weight": "yes"}),
    ({"paper": "obd_sd", "method": OBDSD}, {"diffusion": "batch"}),
    ({"paper": "obd_sd", "method": OBDSD + PSD, "dataset": "cub"}, {"lambda": 1000}),
    ({"paper": "obd_sd", "method": OBDSD + PSD, "dataset": "cars"}, {"lambda": 75}),
    ({"paper": "obd_sd", "method": OBDSD + PSD, "dataset": "sop"}, {"lambda": 100}),
    ({"paper": "obd_sd", "method": OBDSD, "dataset": "cub"}, {"omega": 0.3}),
    ({"paper": "obd_sd", "method": OBDSD, "dataset": "cars"}, {"omega": 0.99}),
    ({"paper": "obd_sd", "method": OBDSD, "dataset": "sop"}, {"omega": 0.5}),
    ({"paper": "obd_sd", "table": "Table 2"}, {"lambda": None}),  # not stated, and another one in the released code
    ({"paper": "obd_sd", "table": "Table 1", "method": MARGINS}, {"sampling": "distance"}),
    ({"paper": "obd_sd", "method": ("Margin", "Margin+OBD-SD")}, {"beta": 1.2}),
    ({"paper": "obd_sd", "method": ("MS", "Margin", "R-Margin", "ProxyAnchor")}, {"temperature": None}),  # no teacher
    # from ProxyAnchor's own paper and code: batches of 180 images, drawn without regard to their classes
    ({"paper": "obd_sd", "method": "ProxyAnchor"}, {"batch": 180, "images a class": "none", "replacement": None}),
    ({"paper": "obd_sd", "method": "ProxyAnchor"}, {"lr_schedule": "yes", "optimizer": None, "learning rate": None}),
    ({"paper": "obd_sd", "method": "ProxyAnchor"}, {"weight decay": None, "frozen BatchNorm": None}),
    # CMD, section IV-D
    ({"paper": "cmd"}, {"image size": 224, "init": "imagenet"}),
    # cited from LCR, whose released commands are of MoCo v2, BYOL and LCR on both; of the others it states no settings
    ({"paper": "cmd", "method": FROM_LCR, "backbone": "resnet50"}, {"batch": 128, "epochs": 100}),
    ({"paper": "cmd", "method": "CMD"}, {"components": "LV+MIL+LR+LT+LS", "region_crops": 8, "instance_size": 32}),
    ({"paper": "cmd", "method": "CMD"}, {"lambda1": 0.1, "EMA momentum": 0.996}),
    ({"paper": "cmd", "method": "CMD"}, {"optimizer": "adamw", "learning rate": 5e-4, "weight decay": 0.05}),
    ({"paper": "cmd", "method": "CMD"}, {"l_i": 0.5, "l_r": 0.5, "l_ts": 0}),
    # FLSL, section 5 and appendix E; detection: appendix G
    ({"paper": "flsl", "method": "FLSL"}, {"v": 0.03, "eta": 1, "gamma": 5, "sinkhorn": "no", "K": 4096}),
    ({"paper": "flsl", "method": "FLSL"}, {"batch_size": 512, "window": 2, "image size": 224, "init": "none"}),
    ({"paper": "flsl", "method": "FLSL"}, {"pretrain": "imagenet", "EMA momentum": 0.996, "augmentation": "paper"}),
    ({"paper": "flsl", "method": "FLSL"}, {"queries": "random", "teacher views": 2, "local crops": 0}),
    ({"paper": "flsl", "method": "FLSL"}, {"optimizer": "adamw", "learning rate": 2.5e-4}),
    ({"paper": "flsl", "method": "FLSL"}, {"weight decay": "0.05 to 0.5", "centring": "no"}),
    ({"paper": "flsl", "method": "FLSL"}, {"student temperature": 0.1, "teacher temperature": 0.07}),
    ({"paper": "flsl", "protocol": "detection"}, {"fine-tuning batch": 16}),
    ({"paper": "flsl", "dataset": "coco", "protocol": "segmentation"}, {"fine-tuning batch": 16}),
    ({"paper": "flsl", "table": "Table 2"}, {"fine-tuning batch": 64}),  # of ViTDet, whose recipe it follows
    # MLS, supplement A.2; a batch of 256 is implied by the learning rate
    ({"paper": "mls", "method": MLS}, {"batch": 256, "image size": 224, "init": "none", "temperature": 0.2}),
    ({"paper": "mls", "method": MLS}, {"dimension": 256, "hidden": 2048}),
    ({"paper": "mls", "method": MLS}, {"optimizer": "sgd", "learning rate": 0.3, "weight decay": 1e-4}),
    ({"paper": "mls", "method": MLS}, {"EMA momentum": 0.995, "augmentation": "moco"}),
    ({"paper": "mls", "method": ("MLS", "+kNN", "+BCE-pos")}, {"k": 20, "dictionary": "both", "lambda": 0.5}),
    ({"paper": "mls", "method": ("MLS", "+kNN", "+BCE-pos")}, {"reduction": "mean", "memory": 4096}),
    ({"paper": "mls", "method": ("MLS", "+kNN", "+BCE-pos")}, {"weight of InfoNCE": 1, "epochs of InfoNCE alone": 0}),
    # DenseCL's released configuration for COCO
    ({"paper": "mls", "method": "DenseCL"}, {"batch": 256, "image size": 224, "init": "none", "lambda": 0.5}),
    ({"paper": "mls", "method": "DenseCL"}, {"temperature": 0.2, "memory": 65_536}),
)  # fmt: skip

# Conditions written in words, as the facts below have them.
WORDS: dict[str, Any] = {
    "yes": True, "no": False, "90k": 90_000, "40k": 40_000, "24k": 24_000, "2x2": 2, "4x4": 4,
    "Qg_only": "g", "Qz_only": "z", "Qg_and_Qz": "both",
    "mask_rcnn_r50_fpn": "mask_rcnn_fpn", "mask_rcnn_r50_c4": "mask_rcnn_c4", "faster_rcnn_r50_c4": "faster_rcnn_c4",
    "vitdet_mask_rcnn": "mask_rcnn_simple",
}  # fmt: skip


@dataclass(frozen=True)
class Evidence:
    """A run as a row sees it.

    Attributes:
        run: the evaluated run.
        task: whether the row is of a task (a probe, fine-tuning, a detector) on top of a trained method.
    """

    run: RunFolder
    task: bool

    @cached_property
    def trained(self) -> RunFolder | None:
        """The run that trained the method; None for a task that started from no run of ours."""
        return self.run.origin.start if self.task else self.run.origin

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration of the method's training; that of the task where no run of ours came before it."""
        return (self.trained or self.run.origin).config

    @property
    def of_task(self) -> dict[str, Any]:
        return self.run.origin.config

    @property
    def data(self) -> dict[str, Any]:
        return self.run.results["data"]


IMAGENET_FILES = ("bn_inception-52deb4733",)  # known files of networks without weights in timm
SHAPE = ("layers", "channels", "depth", "embed_dim", "num_heads", "patch_size", "stem_width")


def option(name: str, missing: Any = None) -> Callable[[Evidence], Any]:
    """Reader of an option of the method's training."""
    return lambda e: e.config.get(name, missing)


def _network(e: Evidence) -> str:
    """Network as the tables name it (``vit_small_16``), with the options that change its shape."""
    name = str(e.config.get("model.backbone.name")).split(".")[0]
    name = name.replace("vitdet_", "vit_")  # named by the plain ViT whose weights it takes
    for ending in ("_224", "_window7", "_patch4", "_patch"):
        name = name.replace(ending, "_" if ending == "_patch" else "")
    place = "model.backbone.options."
    changed = {k.removeprefix(place): v for k, v in e.config.items() if k.startswith(place)}
    if name.startswith("swin"):  # part of the instance size
        changed.pop("patch_size", None)
    kept = {option: value for option, value in changed.items() if option in SHAPE}
    return name + "".join(f" with {option} {value}" for option, value in sorted(kept.items()))


def _pooling(e: Evidence) -> str:
    return e.config.get("model.backbone.pooling") or "avg"


def _start(e: Evidence) -> str:
    """Start weights: ``imagenet`` (labels of ImageNet-1k), ``none``, or the name of other weights."""
    weights = e.config.get("model.backbone.weights")
    if e.trained is None:
        weights = e.config.get("model.init_from") or weights  # a run that is not there any more
    if weights:
        return "imagenet" if Path(weights).stem in IMAGENET_FILES else str(weights)
    if not e.config.get("model.backbone.pretrained"):
        return "none"
    tag = str(e.config.get("model.backbone.name")).partition(".")[2]
    supervised = not tag or (tag.endswith("in1k") and "_ft_" not in tag)
    return "imagenet" if supervised else tag


def _epochs(e: Evidence) -> int | None:
    """Epochs of the method's training; 90 for torchvision's first ImageNet weights."""
    if e.trained is None:
        return 90 if str(e.config.get("model.backbone.name")).endswith(".tv_in1k") else None
    return e.trained.epochs


def _pretraining_share(e: Evidence) -> float:
    """Percentage of the training images in the pretraining of a task."""
    return 100 * e.trained.results["data"].get("label_fraction", 1) if e.task and e.trained else 100


def _checkpoint(e: Evidence) -> str:
    """The evaluated checkpoint, or that of another name from which a task started."""
    began = checkpoint_name(e.run.origin.start_path) if e.task else LAST
    return began if e.run.checkpoint == LAST else e.run.checkpoint


def _held_out(e: Evidence) -> float:
    """Share of the training images that were held out, in the task or in the training of its method."""
    runs = [e.run, e.trained] if e.task and e.trained else [e.run]
    return max(run.results["data"].get("val_fraction", 0) for run in runs)


def _clusters(e: Evidence) -> Any:
    """Clusters of k-means; those of the paper's code are the training classes, which differ by two on SOP."""
    clusters = e.run.config.get("retrieval.clusters")
    return "classes" if clusters in (None, *(e.data[part].get("classes") for part in ("train", "test"))) else clusters


def _image_size(e: Evidence) -> int | None:
    crops = e.config.get("data.views.crops")
    return crops[0]["size"] if crops else e.config.get("data.views.size")


def _evaluated_size(e: Evidence) -> int | None:
    """Side of an evaluated image, px."""
    return e.run.config.get("data.eval_size") or _image_size(e)


def _weight_decay(e: Evidence) -> Any:
    start, end = (e.config.get(f"model.optim.{name}") for name in ("weight_decay", "weight_decay_end"))
    return start if end is None else f"{start:g} to {end:g}"


def _batch(config: dict[str, Any]) -> int | None:
    size = config.get("data.batch_size")
    return None if size is None else size * (config.get("trainer.accumulate_grad_batches") or 1)


def _components(e: Evidence) -> str:
    """Table IV of CMD."""
    weights = [e.config.get(f"model.{name}", 0) > 0 for name in ("l_i", "l_r", "l_t", "l_s")]
    if not e.config.get("data.views.local_crops") and weights == [True, False, False, False]:
        return "LV+MIL" if e.config.get("model.image_bag") == "instances" else "LV"
    names = [name for name, used in zip(("LV+MIL", "LR", "LT", "LS"), weights, strict=True) if used]
    return "+".join(names)


def _instance_size(e: Evidence) -> int:
    """Side of the part of an image that an entry of the last map stands for, px: 32 of a ResNet or Swin."""
    stages = e.config.get("model.backbone.options.depths") or [0] * 4
    return e.config.get("model.backbone.options.patch_size", 4) * 2 ** (len(stages) - 1)


def _pretraining_data(e: Evidence) -> str:
    """The data set of the method's training, or of the weights that a task began with."""
    return e.trained.results["data"]["dataset"] if e.trained else _start(e)


def _neighbours(e: Evidence) -> int:
    """k of the ``BoxKNN`` that measured the run, whose default is the paper's."""
    return e.run.callbacks.get("BoxKNN", {}).get("k", 140)


def _detector(e: Evidence) -> str:
    kind = "mask" if e.of_task.get("model.masks") else "faster"
    return f"{kind}_rcnn_{e.of_task.get('model.neck')}"


def _schedule(e: Evidence) -> str:
    steps, epochs = e.of_task.get("trainer.max_steps"), e.of_task.get("trainer.max_epochs")
    return "1x" if epochs == 12 or steps == 90_000 else f"{epochs} epochs"


def _limit(*names: str) -> Callable[[Evidence], Any]:
    """``all``, or the share or number of batches that the trainer was limited to."""

    def read(e: Evidence) -> Any:
        limits = [e.of_task.get(f"trainer.{name}") or e.config.get(f"trainer.{name}") for name in names]
        return next((limit for limit in limits if limit not in (None, 0, 0.0, 1.0)), "all")

    return read


SAMPLING = {
    "RandomTriplets": "random",
    "SemiHard": "semi_hard",
    "SoftHard": "soft_hard",
    "DistanceWeighted": "distance",
}

HEADS = {"fpn": "semantic_fpn", "psp": "PSPNet", "psa": "PSANet"}

# Condition -> how to read it from a run. The names are those of the tables, as a reader knows them.
FACTS: dict[str, Callable[[Evidence], Any]] = {
    "network": _network,
    "dimension": option("model.dim"),
    "pooling": _pooling,
    "stem": lambda e: "3x3" if e.config.get("model.backbone.small_input") else "7x7",
    "init": _start,
    "epochs": _epochs,
    "pretraining images": _pretraining_share,
    "batch": lambda e: _batch(e.config),
    "batch_size": lambda e: _batch(e.config),
    "image size": _image_size,
    "evaluated size": _evaluated_size,
    "augmentation": option("data.views.recipe"),
    "optimizer": option("model.optim.name"),
    "learning rate": option("model.optim.lr"),
    "weight decay": _weight_decay,
    "EMA momentum": option("model.momentum"),
    "test images": lambda e: e.data["test"]["images"],
    "checkpoint": _checkpoint,
    "held out": _held_out,
    "clusters": _clusters,
    "frozen stages": lambda e: e.of_task.get("model.backbone.freeze") or e.config.get("model.backbone.freeze", 0),
    "frozen statistics": option("model.backbone.freeze_statistics", False),
    "training batches": _limit("limit_train_batches", "overfit_batches"),
    "test batches": _limit("limit_test_batches"),
    "gallery": lambda e: e.run.results.get("gallery", "evaluated"),
    "re-ranking": lambda e: e.run.results.get("reranking", "none"),
    "label_proportion": lambda e: 100 * e.data.get("label_fraction", 1),
    "noise": lambda e: e.data.get("label_noise", 0),
    "memory": option("model.memory"),
    "temperature": lambda e: e.config.get("model.distillation.tau", e.config.get("model.tau")),
    # MaskCon
    "w": option("model.weight"),
    "tau": option("model.tau"),
    "tau0": option("model.tau0"),
    "hidden": option("model.hidden"),
    # OBD-SD
    "beta": option("model.dml_loss.beta"),
    "sampling": lambda e: SAMPLING.get(str(e.config.get("model.miner")), e.config.get("model.miner")),
    "images a class": lambda e: e.config.get("data.images_per_class") or "none",
    "replacement": option("data.replacement"),
    "dynamic_weight": option("model.distillation.dynamic"),
    "diffusion": option("model.distillation.manifold"),
    "neighbours": option("model.distillation.neighbours"),
    "lambda": lambda e: e.config.get("model.distillation.lam", e.config.get("model.lam")),
    "omega": option("model.distillation.omega"),
    "push_own": option("model.dml_loss.push_own"),
    "frozen BatchNorm": option("model.freeze_bn"),
    "lr_schedule": lambda e: bool(e.config.get("model.optim.milestones")),
    # CMD
    "components": _components,
    "lambda1": lambda e: e.config.get("model.l_s") or e.config.get("model.l_t"),
    "region_crops": option("data.views.local_crops"),
    "instance_size": _instance_size,
    "l_i": option("model.l_i"),
    "l_r": option("model.l_r"),
    "l_ts": option("model.l_ts", 0),
    # FLSL
    "v": option("model.v"),
    "eta": option("model.eta"),
    "gamma": option("model.gamma"),
    "sinkhorn": lambda e: e.config.get("model.targets") == "sinkhorn",
    "centring": lambda e: e.config.get("model.targets") == "center",
    "student temperature": option("model.tau_s"),
    "teacher temperature": option("model.tau_t"),
    "neighbours of a patch": _neighbours,
    "K": option("model.prototypes"),
    "window": option("model.window"),
    "queries": option("model.queries"),
    "teacher views": option("model.teacher_views"),
    "local crops": option("model.local_crops"),
    "topk": lambda e: e.run.config.get("davis.topk"),
    "radius": lambda e: e.run.config.get("davis.radius"),
    # MLS
    "k": option("model.k"),
    "dictionary": option("model.dictionary"),
    "reduction": option("model.reduction"),
    "weight of InfoNCE": option("model.nce_weight"),
    "epochs of InfoNCE alone": option("model.nce_warmup_epochs"),
    # tasks on top of a trained method
    "pretrain": _pretraining_data,
    "detector": _detector,
    "iterations": lambda e: e.of_task.get("trainer.max_steps"),
    "schedule": _schedule,
    "finetune_epochs": lambda e: e.run.origin.epochs,
    "fine-tuning batch": lambda e: _batch(e.of_task),
    "head": lambda e: HEADS.get(str(e.of_task.get("model.head")), e.of_task.get("model.head")),
}


def task_of(row: Row) -> str | None:
    """Our task that measures what a row prints; None where the trained method itself is evaluated."""
    if row["protocol"] == "segmentation" and row["dataset"] == MASKS_OF_OBJECTS:
        return "Detect"
    return TASKS.get(row["protocol"])


def settings(row: Row) -> dict[str, str]:
    """``w=1;tau=0.1`` as a mapping."""
    return dict(part.split("=", 1) for part in row["setting"].split(";") if "=" in part)


def conditions(row: Row) -> dict[str, Any]:
    """Everything that has to hold of a run for the row's number to stand beside it, but method, data set and task."""
    stated: dict[str, Any] = {**WHOLE, "network": row["backbone"]}
    if row["paper"] == "obd_sd":
        name, _, rest = row["backbone"].partition("_")
        dimension, _, doubled = rest.partition("d")
        stated["network"] = {"r50": "resnet50", "ibn": "bn_inception"}[name]
        stated |= {"dimension": dimension, "pooling": "avg+max" if doubled else "avg"}
    if row["epochs"]:
        stated["epochs"] = row["epochs"]
    if row["protocol"] in RETRIEVAL:
        stated |= {"gallery": "evaluated", "re-ranking": "none"}
    if row["protocol"] == "clustering":
        stated["clusters"] = "classes"
    stated["test images"] = TEST_IMAGES.get((row["dataset"], row["split"]))
    for columns, known in STATED:
        if all(row[name] in ((value,) if isinstance(value, str) else value) for name, value in columns.items()):
            stated |= known
    if row["protocol"] in (*RETRIEVAL, "linear_probe", "bbox_knn"):
        stated["evaluated size"] = stated.get("image size")
    stated |= {name: value for name, value in settings(row).items() if name not in REMARKS}
    if row["protocol"] == "bbox_knn":  # 20 for each image's 9 patches times 7; ours are always those of 3 x 3 cells
        stated = {name: value for name, value in stated.items() if name not in ("k", "cs", "s")}
        stated["neighbours of a patch"] = 140
    if row["method"] in FIXED_W:
        stated.pop("w", None)
    if stated.get("dynamic_weight") == "no":
        stated.pop("lambda", None)  # the paper chose it by ablation and does not say it
    if stated.get("components", "").count("L") and "LS" not in stated["components"]:
        stated.pop("lambda1", None)  # has no part in the loss
    if stated.get("components") in ("LV", "LV+MIL"):
        stated |= {"region_crops": 0, "l_i": 1, "l_r": 0}
    return stated


def unmet(row: Row, run: RunFolder) -> list[str]:
    """Conditions of a row that a run does not meet, as ``epochs 200, the run 15``.

    If the data set or the method differs, this is the only one that is returned.
    """
    e = Evidence(run, task_of(row) is not None)
    where, here = f"{row['dataset']} {row['split']}", _data_of(run)
    names = [DATASETS.get(row["dataset"], row["dataset"]), row["split"]]
    if here != names:
        return [f"data {where}, the run {' '.join(here)}"]
    if letters(row["method"]) not in {letters(name) for name in method_names(e, row)}:
        return [f"method {row['method']}, the run {method_names(e, row)[0]}"]
    found = {name: (stated, FACTS[name](e) if name in FACTS else None) for name, stated in conditions(row).items()}
    return [
        f"{name} {stated}, the run {_shown(fact)}" for name, (stated, fact) in found.items() if not same(stated, fact)
    ]


def _data_of(run: RunFolder) -> list[str]:
    data = run.results["data"]
    split = {"davis2017": "official", "cifartoy": run.config.get("data.dataset.variant")}.get(data["dataset"])
    return [{"coco_instances": "coco"}.get(data["dataset"], data["dataset"]), split or data["split"]]


def method_names(e: Evidence, row: Row) -> list[str]:
    """Names of a run's method, our own name first."""
    if e.trained is None:  # a task that started from other weights
        supervised = _start(e) == "imagenet"
        return ["Supervised"] if supervised else ["Random", "None"] if _start(e) == "none" else [_start(e)]
    results = e.trained.results
    own = str(results.get("variant") or results["method"])
    if e.config.get("data.views") == "ContrastiveCrop":  # a row of its own, on MoCo v2
        return ["ContrastiveCrop" if own == "moco_v2" else f"{own} with ContrastiveCrop"]
    if settings(row).get("components"):  # Table IV of CMD, whose first rows are DINO and EsViT
        return [str(results["method"])]
    return [own, *ALSO.get(own, ())]


def same(stated: Any, fact: Any) -> bool:
    """Whether a condition holds. ``best``, a searched value that the paper does not state, always holds."""
    stated = WORDS.get(stated, stated) if isinstance(stated, str) else stated
    if stated is None or stated == "best":
        return True
    if isinstance(stated, bool) or isinstance(fact, bool):
        return stated is fact
    try:
        return math.isclose(float(stated), float(fact), rel_tol=1e-9, abs_tol=1e-12)
    except (TypeError, ValueError):
        return str(stated) == str(fact)


def _shown(fact: Any) -> str:
    return f"{fact:g}" if isinstance(fact, float) else "none" if fact is None else str(fact)


def letters(name: str) -> str:
    """Letters, digits and + of a name in lower case: ``OBD-SD`` and ``obd_sd`` are equal."""
    return "".join(letter for letter in name.lower() if letter.isalnum() or letter == "+")
