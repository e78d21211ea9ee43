"""Printed numbers beside ours: only where every condition of their row holds, and then always.

``tests/golden/printed.csv`` lists the runs that each printed number stands beside, ``UNREACHABLE`` the numbers that no
experiment of ours can produce. The runs are the experiments, their ablations and sweeps, and what follows them (probe,
DAVIS, fine-tuning, detection), each as a folder with the resolved configuration and no training.
"""

import copy
import itertools
import json
from pathlib import Path

import pytest
import yaml

from fgssl.cli.compose import _apply_file, assign, read_yaml
from fgssl.commands import probe
from fgssl.data.datasets import ALL
from fgssl.methods.cmd import OTHERS
from fgssl.methods.obd_sd import Distillation
from fgssl.report.conditions import DATASETS, TEST_IMAGES
from fgssl.report.published import Missing, Number, all_rows, published, reproduced
from fgssl.report.runs import RunFolder, flatten
from tests.recipes import EXPERIMENTS, resolve

GOLDEN = Path(__file__).parents[1] / "golden" / "printed.csv"
KEY = ("paper", "table", "method", "backbone", "dataset", "split", "protocol", "epochs", "setting")

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
    if method == "OBDSD":
        loss, margin = str(flat["model.dml_loss"]), bool(flat.get("model.dml_loss.push_own"))
        named = {"MultiSimilarity": "MS", "Margin": "R-Margin" if margin else "Margin"}.get(loss, loss)
        return named + Distillation(**options["distillation"]).label
    return options.get("variant")


class Runs:
    """Writes run folders below a folder.

    ``add`` gives the run of a configuration; results are those of a whole data set and the configured epochs.
    """

    def __init__(self, root: Path):
        self.root, self.numbers = root, itertools.count()

    def add(self, name: str, config: dict, results: dict | None = None, data: dict | None = None) -> RunFolder:
        folder = self.root / str(next(self.numbers)) / name.replace("/", "_")
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / "last.ckpt").touch()
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
        return self.write(folder, config, written | (results or {}))

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
        return self.add(f"{run.folder.name} probe {share:g}", config)

    def task(self, run: RunFolder, experiment: str, **options) -> RunFolder:
        """``fgssl fit --config experiments/EXPERIMENT.yaml --model.init_from RUN``."""
        config = changed(experiment, model__init_from=str(run.folder), **options)
        return self.add(f"{run.folder.name} {experiment}", config)

    def davis(self, run: RunFolder, **options) -> RunFolder:
        """``fgssl davis --ckpt_path RUN``."""
        config = {"davis": {"topk": 5, "radius": 12} | options, "model": None}
        data = {"dataset": "davis2017", "split": "val", "train": {"images": 0}, "test": {"images": 30}}
        results = {"method": run.folder.name, "seed": 0, "metrics": {}, "data": data, "ckpt_path": str(run.folder)}
        return self.write(self.root / str(next(self.numbers)) / "davis", config, results)


@pytest.fixture
def runs(tmp_path) -> Runs:
    return Runs(tmp_path)


def beside(run: RunFolder, metric: str) -> float | str | None:
    """The printed number beside a metric of a run, in the paper's unit; or why there is none."""
    found = published(run, metric)
    if isinstance(found, Number):
        return pytest.approx(found.value * 100)
    return found.reason if isinstance(found, Missing) else None


# ---- numbers that stood beside the run of another row ---------------------------------------------------------------


def test_cmd_on_another_network_has_no_printed_number(runs):
    assert beside(runs.add("swin", changed("cmd_cub")), "recall@1") == 69.88
    narrow = changed("cmd_cub", model__backbone__name="resnet18", model__backbone__options={})
    assert "network swin_tiny, the run resnet18" in beside(runs.add("narrow", narrow), "recall@1")


def test_cmd_ablation_has_no_number_of_the_whole_method(runs):
    ablation = changed("cmd_cub", "cmd_ablations/table4_lt", run__paper="cmd, Table III")
    assert "components LV+MIL+LR+LT+LS, the run LV+MIL+LR+LT" in beside(runs.add("a", ablation), "recall@1")


def test_vit_s_8_has_the_numbers_of_vit_s_8(runs):
    for name, printed in (("vit_small_patch16_224", 65.6), ("vit_small_patch8_224", 73.5)):
        run = runs.add(name, changed("flsl_imagenet", model__backbone__name=name))
        assert beside(runs.davis(run), "jf_mean") == printed
    assert "radius 12, the run 24" in beside(runs.davis(run, radius=24), "jf_mean")


def test_label_noise_has_the_numbers_of_its_noise(runs):
    clean = runs.add("clean", changed("obd_sd_cub"))
    assert beside(clean, "recall@1") == 67.76
    noisy = runs.add("noisy", changed("obd_sd_cub", "obd_sd_ablations/table9_noise_40"))
    assert beside(noisy, "recall@1") == 58.11
    alone = ("obd_sd_ablations/table3_alone", "obd_sd_ablations/table9_noise_40")
    assert beside(runs.add("alone", changed("obd_sd_cub", *alone)), "recall@1") == 48.25
    other = changed("obd_sd_cub", run__paper="obd_sd, Table 1", data__protocol__label_noise=0.4)
    assert "noise 0, the run 0.4" in beside(runs.add("other", other), "recall@1")


def test_ibn_pooling_and_dimension_are_conditions(runs):
    table = {"run__paper": "obd_sd, Table 2"}
    base = changed("obd_sd_cub_r50_512d", **table)
    assert beside(runs.add("r50", base), "recall@1") == 69.4
    plain = changed("obd_sd_cub_r50_512d", model__backbone__pooling=None, **table)
    assert beside(runs.add("plain", plain), "recall@1") == 69.1
    narrow = changed("obd_sd_cub_r50_512d", model__dim=64, **table)
    assert "dimension 128, the run 64" in beside(runs.add("narrow", narrow), "recall@1")
    other = changed("obd_sd_cub_r50_512d", model__backbone__name="inception_v3.tv_in1k", **table)
    assert "network bn_inception, the run inception_v3" in beside(runs.add("inception", other), "recall@1")


def test_coins_at_another_weight_has_no_printed_number(runs):
    table = {"model__variant": "coins", "run__paper": "maskcon, Table 2"}
    assert beside(runs.add("half", changed("maskcon_cifar100", model__weight=0.5, **table)), "recall@1") == 60.10
    one = runs.add("one", changed("maskcon_cifar100", model__weight=1.0, **table))
    assert beside(one, "recall@1") == "MaskCon, Table 2, CoIns: the row has w 0.5, the run 1"


def test_detector_has_the_number_of_the_method_that_it_starts_from(runs):
    mls, moco = (runs.add(name, changed(name, trainer__max_epochs=800)) for name in ("mls_coco", "mocov2_coco"))
    assert beside(runs.task(mls, "detect_voc0712"), "ap_box") == 55.0
    assert beside(runs.task(moco, "detect_voc0712"), "ap_box") == 53.7
    alone = runs.add("from chance", changed("detect_voc0712"))
    assert beside(alone, "ap_box") == 32.8
    named = runs.task(moco, "detect_voc0712", run__paper="mls, Table 4, MLS")
    assert beside(named, "ap_box") == "MLS, Table 4, MLS: the row has method MLS, the run moco_v2"


def test_mls_table_1_has_both_lengths_of_pretraining(runs):
    for epochs, printed in ((400, 40.1), (800, 40.5)):
        run = runs.add(str(epochs), changed("mls_coco", trainer__max_epochs=epochs))
        assert beside(runs.task(run, "detect_coco_fpn"), "ap_box") == printed
    short = runs.add("short", changed("mls_coco", trainer__max_epochs=200))
    assert "epochs 400, the run 200" in beside(runs.task(short, "detect_coco_fpn"), "ap_box")


def test_voc07_map_resolves_in_each_of_its_definitions(runs):
    mls = runs.task(runs.add("mls", changed("mls_coco")), "finetune_voc07")
    supervised = runs.add("supervised", changed("finetune_voc07"))
    for metric in ("map_11point", "map_allpoint", "map_noninterpolated"):
        assert (beside(mls, metric), beside(supervised, metric)) == (85.8, 89.0)


def test_probe_has_the_number_of_its_share_of_the_labels(runs):
    config = changed("cmd_cub")
    run = runs.add("cmd", config)
    for share, printed in ((1.0, 81.45), (0.5, 76.44), (0.2, 63.70)):
        assert beside(runs.probe(run, config, share), "top1") == printed
    assert "label_proportion 100, the run 10" in beside(runs.probe(run, config, 0.1), "top1")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"trainer__max_epochs": 15}, "epochs 200, the run 15"),
        ({"data__batch_size": 64}, "batch 128, the run 64"),
        ({"data__views__size": 96}, "image size 224, the run 96"),
        ({"model__backbone__pretrained": False}, "init imagenet, the run none"),
        ({"model__tau": 0.5}, "tau 0.1, the run 0.5"),
        ({"trainer__limit_train_batches": 10}, "training batches all, the run 10"),
        ({"data__protocol__val_fraction": 0.1}, "held out 0, the run 0.1"),
        ({"model__backbone__options": {"layers": [1, 1, 1, 1]}}, "network resnet18, the run resnet18 with layers"),
    ],
)
def test_note_names_the_condition_that_is_not_met(change, reason, runs):
    assert beside(runs.add("whole", changed("maskcon_cars")), "recall@1") == 45.53
    assert reason in beside(runs.add("changed", changed("maskcon_cars", **change)), "recall@1")


def test_part_of_a_data_set_has_no_printed_number(runs):
    run = runs.add("part", changed("maskcon_cars"), data={"test": {"images": 2903, "rows_hash": "-"}})
    assert "test images 8041, the run 2903" in beside(run, "recall@1")


def test_dino_and_esvit_are_called_so(runs):
    assert runs.add("dino", changed("dino_cub")).method == "DINO"
    assert runs.add("esvit", changed("esvit_cub")).method == "EsViT"
    assert runs.add("cmd", changed("cmd_cub")).method == "CMD"


# ---- the whole table, both ways -------------------------------------------------------------------------------------


def key(row: dict) -> tuple[str, ...]:
    """A row without its metric and value; its notes left out."""
    setting = ";".join(part for part in row["setting"].split(";") if not part.startswith("note="))
    return tuple(setting if name == "setting" else row[name] for name in KEY)


def ablations_of(base: str) -> list[tuple[str, ...]]:
    """What goes on the command line after an experiment: nothing, an ablation, or one and the loss alone."""
    paper = next(name for name in ("cmd", "obd_sd", "flsl", "mls", "maskcon") if base.startswith(name))
    folder, dataset = f"{paper}_ablations", base.removeprefix(f"{paper}_").split("_")[0]
    files = [f"{folder}/{path.stem}" for path in sorted((EXPERIMENTS / folder).glob("*.yaml"))]
    other = {"cub", "cars", "sop"} - {dataset}
    files = [name for name in files if name.rsplit("_", 1)[-1] not in other]
    files = [name for name in files if ("table2" in name) == ("512d" in base)]
    alone = f"{folder}/table3_alone"
    return [
        (),
        *((name,) for name in files),
        *(
            (name, alone)
            for name in files
            if paper == "obd_sd" and name.split("/")[1][:6] in ("table1", "table4", "table9")
        ),
    ]


def cells(sweep: Path) -> list[tuple[str, str, dict]]:
    """(name, experiment, options) of every cell of a sweep."""
    content = read_yaml(sweep)
    names = list(content["parameters"])
    values = [given.get("values", [given.get("value")]) for given in content["parameters"].values()]
    base = next(Path(part).stem for part in content["command"] if part.endswith(".yaml"))
    grid = [dict(zip(names, cell, strict=True)) for cell in itertools.product(*values)]
    words = [
        [f"{k.split('.')[-1]}={v}" for k, v in options.items() if "values" in content["parameters"][k]]
        for options in grid
    ]
    return [(f"sweeps/{sweep.stem} {' '.join(w)}", base, options) for w, options in zip(words, grid, strict=True)]


# Options that the experiments' headers and the ablations' READMEs name, where no file sets them.
OPTIONS = {
    "flsl_imagenet": [
        {"model__backbone__name": "vit_small_patch8_224"},
        {"model__backbone__name": "vit_base_patch16_224"},
        *({"trainer__max_epochs": 100, **more} for more in (
            {}, {"model__gamma": 1}, *({"model__gamma": 1, "model__targets": "sinkhorn", "model__v": v} for v in (0, 0.01, 0.02, 0.03, 0.1)),
            *({"model__prototypes": k} for k in (1024, 2048, 8192, 16384)),
            *({"data__batch_size": size} for size in (64, 128, 256, 1024, 2048)), {"model__window": 4},
        )),
    ],
    "mls_coco": [
        {"trainer__max_epochs": 800}, {"model__variant": "knn"}, {"model__variant": "bce_pos"},
        {"model__dictionary": "g"}, {"model__dictionary": "z"}, {"model__k": 1}, {"model__k": 5}, {"model__k": 40},
    ],
    "mocov2_coco": [{"trainer__max_epochs": 800}],
    **{f"cmd_{data}": [
        {"model__backbone__name": "resnet50.tv_in1k", "model__backbone__options": {}},
        {"model__backbone__name": "resnet101.tv_in1k", "model__backbone__options": {}},
        {"model__backbone__name": "swin_small_patch4_window7_224"},
        {"data__views__local_crops": 2}, {"data__views__local_crops": 4},
        {"model__backbone__options__patch_size": 1},
    ] for data in ("cub", "cars", "aircraft")},
    **{f"obd_sd_{data}_r50_512d": [{"model__backbone__pooling": None}] for data in ("cub", "cars", "sop")},
}  # fmt: skip
BASELINES = {  # of MaskCon, by variant and w, on each of its data sets
    "variants": ("selfcon", "grafit", "supcon", "coins", "supce", "supfine"),
    "weights": (0.2, 0.5, 0.8, 1.0),
}


def trainings() -> dict[str, dict]:
    """Name -> configuration of every training that the experiments describe."""
    found: dict[str, dict] = {}
    skipped = ("_digits", "_small", "_small_start")
    for path in sorted(EXPERIMENTS.glob("*.yaml")):
        name = path.stem
        if name.endswith(skipped) or name.startswith(("detect", "finetune", "segment")):
            continue
        if name.startswith(("dino", "esvit", "mocov2")):
            found[name] = changed(name)
        else:
            found |= {
                "+".join([name, *(f.split("/")[1] for f in files)]): changed(name, *files)
                for files in ablations_of(name)
            }
        for options in OPTIONS.get(name, []):
            words = " ".join(f"{option.split('__')[-1]}={value}" for option, value in options.items())
            found[f"{name} {words}"] = changed(name, **options)
    for sweep in sorted((EXPERIMENTS / "sweeps").glob("*.yaml")):
        for name, base, options in cells(sweep):
            if not base.endswith(skipped):
                found[name] = changed(base, **{option.replace(".", "__"): value for option, value in options.items()})
    return found


def everything(runs: Runs) -> dict[str, RunFolder]:
    """Every run that a printed number may stand beside, by name."""
    found = {}
    for name, config in trainings().items():
        run = found[name] = runs.add(name, config)
        paper = str(run.config.get("run.paper")).split(",")[0]
        if paper == "cmd":
            for share in (1.0, 0.5, 0.2) if " " not in name and "+" not in name else (1.0,):
                found[f"{name} > probe {share:g}"] = runs.probe(run, config, share)
        if name.startswith("flsl_imagenet") and paper == "flsl":
            found[f"{name} > davis"] = runs.davis(run)
        follow = {
            "mls_coco": ("detect_coco_fpn", "detect_coco_c4", "detect_voc0712"),
            "flsl_imagenet": ("detect_coco_vit", "segment_ade20k"),
        }
        follow["mocov2_coco"] = follow["mls_coco"]
        follow["mls_coco"] += tuple(
            sorted(p.stem for p in EXPERIMENTS.glob("finetune_*.yaml") if "digits" not in p.stem)
        )
        follow["mocov2_coco"] = follow["mls_coco"]
        for experiment in follow.get(name.split("+")[0].split(" ")[0], ()):
            found[f"{name} > {experiment}"] = runs.task(run, experiment)
    for path in sorted(EXPERIMENTS.glob("*.yaml")):
        if path.stem.startswith(("detect", "finetune", "segment")) and "digits" not in path.stem:
            found[path.stem] = runs.add(path.stem, changed(path.stem))
    return found
