"""The printed numbers and the runs of ours that they stand beside.

The runs are the experiments, their ablations and sweeps, and what follows them (probe, DAVIS, fine-tuning, detection):
the configuration as the command line resolves it, and the results of a whole data set without any training.
``tests/golden/printed.csv`` lists the runs of each printed number that one of them can produce. This module writes it::

    python -m tests.printed
"""

import copy
import csv
import itertools
import json
import tempfile
from pathlib import Path

import yaml

from fgssl.cli.compose import _apply_file, assign, read_yaml
from fgssl.commands import probe
from fgssl.data.datasets import ALL
from fgssl.methods.cmd import OTHERS
from fgssl.methods.obd_sd import Distillation
from fgssl.report.conditions import DATASETS, TEST_IMAGES
from fgssl.report.published import reproduced
from fgssl.report.runs import RunFolder, flatten
from tests.recipes import EXPERIMENTS, resolve

GOLDEN = Path(__file__).parent / "golden" / "printed.csv"
KEY = ("paper", "table", "method", "backbone", "dataset", "split", "protocol", "epochs", "setting")
NOT_OF_A_PAPER = ("_digits", "_small", "_small_start")
TASKS = ("detect", "finetune", "segment")

# ---- runs ------------------------------------------------------------------------------------------------------------


def changed(experiment: str, *files: str, **options) -> dict:
    """The configuration of an experiment with ablation files and options (``model__tau=0.1``) on top."""
    config = copy.deepcopy(resolve(experiment))
    for name in files:
        _apply_file(config, EXPERIMENTS / f"{name}.yaml")
    for option, value in options.items():
        assign(config, option.replace("__", "."), value)
    return config


def variant_of(config: dict) -> str | None:
    """The variant that the method of a configuration gives itself."""
    flat, options = flatten({"model": config["model"]}), config["model"]["init_args"]
    method = flat["model"]
    if method == "CMD":
        return OTHERS.get(tuple(options[name] for name in ("l_i", "l_r", "l_s", "l_t", "l_ts")))
    if method in ("MetricLearning", "OBDSD"):
        loss, margin = str(flat["model.dml_loss"]), bool(flat.get("model.dml_loss.push_own"))
        named = {"MultiSimilarity": "MS", "Margin": "R-Margin" if margin else "Margin"}.get(loss, loss)
        return named + (Distillation(**options["distillation"]).label if method == "OBDSD" else "")
    return options.get("variant")


class Runs:
    """Makes runs without training: the results name a whole data set and the configured epochs.

    Args:
        root: folder of the runs that are written.
    """

    def __init__(self, root: Path):
        self.root, self.numbers = root, itertools.count()

    def add(self, name: str, config: dict, data: dict | None = None, on_disk: bool = True) -> RunFolder:
        """The run of a configuration; ``on_disk`` where another run starts from it."""
        folder = self.root / str(next(self.numbers)) / name.replace("/", "_")
        flat = flatten(config)
        dataset = {cls.__name__: cls.name for cls in ALL.values()}[flat["data.dataset"]]
        protocol = (config["data"].get("protocol") or {}) | {}
        split = protocol.get("split", "official")
        paper_names = {ours: theirs for theirs, ours in DATASETS.items()} | {"coco_instances": "coco"}
        shown = flat.get("data.dataset.variant", split) if dataset == "cifartoy" else split
        test = TEST_IMAGES.get((paper_names.get(dataset, dataset), shown), 0)
        described = {"dataset": dataset, "split": split, **protocol, "train": {"images": 1, "rows_hash": "-"}}
        described["test"] = {"images": test, "rows_hash": "-"}
        written = {"method": flat["model"], "variant": variant_of(config), "seed": 0, "status": "finished"}
        written |= {"epochs": config["trainer"]["max_epochs"], "metrics": {}, "data": described | (data or {})}
        if not on_disk:
            return RunFolder(folder, written, flat)
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / "last.ckpt").touch()
        return self.write(folder, config, written)

    def write(self, folder: Path, config: dict, results: dict) -> RunFolder:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(results))
        (folder / "config.yaml").write_text(yaml.dump(config, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper)))
        return RunFolder(folder, results, flatten(config))

    def probe(self, run: RunFolder, config: dict, share: float = 1.0) -> RunFolder:
        """``fgssl probe --ckpt_path RUN --data.protocol.label_fraction SHARE``."""
        config = copy.deepcopy(config)
        args, _ = probe._parser().parse_known_args(["--ckpt_path", str(run.folder)])
        probe.probe_of(config, args)
        assign(config, "data.protocol.label_fraction", share)
        return self.add(f"{run.folder.name} probe {share:g}", config, on_disk=False)

    def task(self, run: RunFolder, experiment: str, **options) -> RunFolder:
        """``fgssl fit --config experiments/EXPERIMENT.yaml --model.init_from RUN``."""
        config = changed(experiment, model__init_from=str(run.folder), **options)
        return self.add(f"{run.folder.name} {experiment}", config, on_disk=False)

    def davis(self, run: RunFolder, **options) -> RunFolder:
        """``fgssl davis --ckpt_path RUN``."""
        config = {"davis": {"topk": 5, "radius": 12} | options, "model": None}
        data = {"dataset": "davis2017", "split": "val", "train": {"images": 0}, "test": {"images": 30}}
        results = {"method": run.folder.name, "seed": 0, "metrics": {}, "data": data, "ckpt_path": str(run.folder)}
        return self.write(self.root / str(next(self.numbers)) / "davis", config, results)


# ---- every run ------------------------------------------------------------------------------------------------------


def key(row: dict) -> tuple[str, ...]:
    """A row of ``published.csv`` without its metric, value and note."""
    setting = ";".join(part for part in row["setting"].split(";") if not part.startswith("note="))
    return tuple(setting if name == "setting" else row[name] for name in KEY)


def ablations_of(base: str) -> list[tuple[str, ...]]:
    """What goes on the command line after an experiment: nothing, an ablation, or one and the loss alone (OBD-SD)."""
    paper = next(name for name in ("cmd", "obd_sd", "flsl", "mls", "maskcon") if base.startswith(name))
    dataset = base.removeprefix(f"{paper}_").removesuffix("_r50_512d")
    files = {}
    for folder in (f"{paper}_ablations", f"{paper}_baselines"):
        files |= {path.stem: f"{folder}/{path.stem}" for path in sorted((EXPERIMENTS / folder).glob("*.yaml"))}
    chosen = [name for stem, name in files.items() if _fits(stem, dataset, base, files)]
    if paper != "obd_sd" or "512d" in base:
        return [(), *((name,) for name in chosen)]
    alone = "obd_sd_ablations/table3_alone"
    paired = [name for name in chosen if name.split("/")[1].split("_")[0] in ("table1", "table4", "table9")]
    return [(), *((name,) for name in chosen), *((name, alone) for name in paired)]


DATA = ("cub", "cars", "sop", "cifar100", "cifartoy_good", "cifartoy_bad", "sop_split1", "sop_split2")


def _fits(stem: str, dataset: str, base: str, files: dict[str, str]) -> bool:
    """Whether an ablation is meant for a data set: it names none or this one, and no other file is this one's own."""
    if ("table2" in stem) != ("512d" in base):
        return False
    named = [name for name in DATA if stem.startswith(f"{name}_") or stem.endswith(f"_{name}")]
    return max(named, key=len) == dataset if named else f"{stem}_{dataset}" not in files


def cells(sweep: Path) -> dict[str, tuple[list[str], dict]]:
    """Every cell of a sweep: name -> its experiment with the files on top, and its options."""
    content = read_yaml(sweep)
    given = content["parameters"]
    base = next((Path(part).stem for part in content["command"] if part.endswith(".yaml")), None)
    found: dict[str, tuple[list[str], dict]] = {}
    for values in itertools.product(
        *(parameter.get("values", [parameter.get("value")]) for parameter in given.values())
    ):
        options = dict(zip(given, values, strict=True))
        words = [f"{name.split('.')[-1]}={value}" for name, value in options.items() if "values" in given[name]]
        file = str(options.pop("config", "")).removeprefix("experiments/").removesuffix(".yaml")
        files = [name for name in (base, file) if name]
        found[f"sweeps/{sweep.stem} {' '.join(words)}"] = (files, {k.replace(".", "__"): v for k, v in options.items()})
    return found


# Options that the experiments' headers and the READMEs of the ablations name and that no file sets.
OPTIONS: dict[str, list[dict]] = {
    "flsl_imagenet": [
        {"model__backbone__name": "vit_small_patch8_224"},
        {"model__backbone__name": "vit_base_patch16_224"},
        {"trainer__max_epochs": 100},
        {"trainer__max_epochs": 100, "model__gamma": 1},
        *({"trainer__max_epochs": 100, "model__prototypes": prototypes} for prototypes in (1024, 2048, 8192, 16384)),
        *({"trainer__max_epochs": 100, "data__batch_size": size} for size in (64, 128, 256, 1024, 2048)),
        {"trainer__max_epochs": 100, "model__window": 4},
    ],
    "mls_coco": [{"trainer__max_epochs": 800}],
    "mocov2_coco": [{"trainer__max_epochs": 800}],
    "rivals/densecl_coco": [{"trainer__max_epochs": 400}],
}
ON_COCO = ("mls_coco", "mocov2_coco", "rivals/densecl_coco")  # what the detectors and fine-tuned networks start from


def trainings() -> dict[str, dict]:
    """Every training that the experiments describe: name -> configuration."""
    found: dict[str, dict] = {}
    for path in sorted(EXPERIMENTS.glob("*.yaml")):
        name = path.stem
        if name.endswith(NOT_OF_A_PAPER) or name.startswith(TASKS):
            continue
        rival = name.startswith(("dino", "esvit", "mocov2"))
        for files in [()] if rival else ablations_of(name):
            found["+".join([name, *(file.split("/")[1] for file in files)])] = changed(name, *files)
    for path in sorted((EXPERIMENTS / "rivals").glob("*.yaml")):
        found[f"rivals/{path.stem}"] = changed(f"rivals/{path.stem}")
    for name, several in OPTIONS.items():
        for options in several:
            words = " ".join(f"{option.split('__')[-1]}={value}" for option, value in options.items())
            found[f"{name} {words}"] = changed(name, **options)
    for sweep in sorted((EXPERIMENTS / "sweeps").glob("*.yaml")):
        for name, (files, options) in cells(sweep).items():
            if not files[0].endswith(NOT_OF_A_PAPER):
                found[name] = changed(*files, **options)
    return found


def everything(root: Path) -> dict[str, RunFolder]:
    """Every run that a printed number may stand beside, by name; the folders lie below ``root``."""
    runs, found = Runs(root), {}
    tasks = [path.stem for path in sorted(EXPERIMENTS.glob("*.yaml")) if path.stem.startswith(TASKS)]
    tasks = [name for name in tasks if not name.endswith(NOT_OF_A_PAPER)]
    of_vits = ["detect_coco_vit", "detect_coco_vit8", "detect_coco_vitdet", "detect_uavdt", "segment_ade20k"]
    for name, config in trainings().items():
        first = name.split("+")[0].split(" ")[0]
        probed = str(flatten(config).get("run.paper")).startswith("cmd")
        patches_8 = "patch8" in flatten(config)["model.backbone.name"]
        of_flsl = [task for task in of_vits if (task == "detect_coco_vit8") == patches_8]
        followed = of_flsl if first == "flsl_imagenet" else [t for t in tasks if t not in of_vits]
        followed = followed if first in ("flsl_imagenet", *ON_COCO) else []
        run = found[name] = runs.add(name, config, on_disk=bool(followed) or probed)
        for share in (1.0, 0.5, 0.2) if probed else ():
            found[f"{name} > probe {share:g}"] = runs.probe(run, config, share)
        if first == "flsl_imagenet":
            found[f"{name} > davis"] = runs.davis(run)
        for task in followed:
            found[f"{name} > {task}"] = runs.task(run, task)
    for task in tasks:
        found[task] = runs.add(task, changed(task), on_disk=False)
        for start in ("supervised", "random") if task.startswith("detect") and task not in of_vits else ():
            found[f"{task}+{start}"] = runs.add(task, changed(task, f"starts/{start}"), on_disk=False)
        if task.startswith("segment_cityscapes"):
            weights = {"model__backbone__name": "resnet50.tv_in1k", "model__backbone__pretrained": True}
            found[f"{task} of ImageNet's labels"] = runs.add(task, changed(task, **weights), on_disk=False)
    return found


def table() -> dict[tuple[str, ...], list[str]]:
    """Printed rows (``key``) -> the runs that they stand beside."""
    beside: dict[tuple[str, ...], list[str]] = {}
    with tempfile.TemporaryDirectory() as root:
        for name, run in everything(Path(root)).items():
            for row in dict.fromkeys(key(row) for row in reproduced(run)):
                beside.setdefault(row, []).append(name)
    return beside


def read_golden() -> dict[tuple[str, ...], list[str]]:
    with GOLDEN.open(newline="") as file:
        return {tuple(row[name] for name in KEY): row["runs"].split("; ") for row in csv.DictReader(file)}


if __name__ == "__main__":
    with GOLDEN.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*KEY, "runs"])
        writer.writerows([*row, "; ".join(names)] for row, names in sorted(table().items()))
    print(f"Wrote {GOLDEN}.")
