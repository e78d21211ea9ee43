"""Printed numbers beside ours: only where every condition of their row holds, and then always; see ``printed.py``."""

import json

import pytest

from fgssl.report.published import Missing, Number, all_rows, published
from fgssl.report.runs import RunFolder
from tests.printed import Runs, changed, key, read_golden, table


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


def test_retrieval_of_cmd_has_rank_1_rank_5_and_map_of_table_ii(runs):
    run = runs.add("cmd", changed("cmd_cub", run__paper="cmd, Table II"))
    assert [beside(run, metric) for metric in ("recall@1", "recall@5", "map")] == [69.88, 88.66, 30.46]


def test_cmd_ablation_has_no_number_of_the_whole_method(runs):
    ablation = changed("cmd_cub", "cmd_ablations/table4_lt", run__paper="cmd, Table III")
    assert "components LV+MIL+LR+LT+LS, the run LV+MIL+LR+LT" in beside(runs.add("a", ablation), "recall@1")


def test_vit_s_8_has_the_numbers_of_vit_s_8(runs):
    for name, printed in (("vit_small_patch16_224", 65.6), ("vit_small_patch8_224", 73.5)):
        run = runs.add(name, changed("flsl_imagenet", model__backbone__name=name))
        assert beside(runs.davis(run), "jf_mean") == printed
    assert "radius 12, the run 24" in beside(runs.davis(run, radius=24), "jf_mean")


def test_reranked_run_has_no_printed_number(runs):
    run = runs.add("reranked", changed("maskcon_cars"))
    assert isinstance(published(run, "recall@1"), Number)
    run.results["reranking"] = "query expansion 5 (alpha 3)"
    assert "re-ranking none, the run query expansion 5" in beside(run, "recall@1")


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


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data__replacement": False}, "replacement yes, the run False"),
        ({"data__images_per_class": 4}, "images a class 2, the run 4"),
        ({"model__distillation__tau": 0.1}, "temperature 1, the run 0.1"),
        ({"model__freeze_bn": False}, "frozen BatchNorm yes, the run False"),
        ({"model__optim__lr": 1e-4}, "learning rate 1e-05, the run 0.0001"),
    ],
)
def test_draw_temperature_and_training_of_obd_sd_are_conditions(change, reason, runs):
    assert reason in beside(runs.add("run", changed("obd_sd_cub", run__paper="obd_sd, Table 1", **change)), "recall@1")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model__reduction": "balanced"}, "reduction mean, the run balanced"),
        ({"model__tau": 0.1}, "temperature 0.2, the run 0.1"),
        ({"model__memory": 65536}, "memory 4096, the run 65536"),
        ({"model__momentum": 0.999}, "EMA momentum 0.995, the run 0.999"),
        ({"model__nce_weight": 2.0}, "weight of InfoNCE 1, the run 2"),
        ({"model__optim__lr": 0.03}, "learning rate 0.3, the run 0.03"),
    ],
)
def test_settings_of_mls_are_conditions(change, reason, runs):
    run = runs.add("run", changed("mls_coco", **change))
    assert reason in beside(runs.task(run, "detect_coco_fpn", run__paper="mls, Table 1"), "ap_box")


def test_detector_has_the_number_of_the_method_that_it_starts_from(runs):
    mls, moco = (runs.add(name, changed(name, trainer__max_epochs=800)) for name in ("mls_coco", "mocov2_coco"))
    assert beside(runs.task(mls, "detect_voc0712"), "ap_box") == 55.0
    assert beside(runs.task(moco, "detect_voc0712"), "ap_box") == 53.7
    alone = runs.add("from chance", changed("detect_voc0712"))
    assert beside(alone, "ap_box") == 32.8
    named = runs.task(moco, "detect_voc0712", run__paper="mls, Table 4, MLS")
    assert beside(named, "ap_box") == "MLS, Table 4, MLS: the row has method MLS, the run moco_v2"


def test_task_on_a_run_that_is_gone_has_no_number_of_supervised_weights(runs, tmp_path):
    gone = runs.add("gone", changed("finetune_cub", model__init_from=str(tmp_path / "gone")))
    assert beside(runs.add("supervised", changed("finetune_cub")), "top1") is not None
    assert f"method Supervised, the run {tmp_path / 'gone'}" in beside(gone, "top1")


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
    first = changed("cmd_cub", run__paper="cmd, Table I")  # has all labels only
    assert "label_proportion 100, the run 20" in beside(runs.probe(runs.add("one", first), first, 0.2), "top1")
    third = changed("cmd_cub", run__paper="cmd, Table III")  # retrieval, by the features of the method itself
    assert not isinstance(beside(runs.probe(runs.add("three", third), third, 1.0), "recall@1"), float)
    other = changed("cmd_cub", "cmd_ablations/table1_resnet50")
    assert beside(runs.probe(runs.add("resnet", other), other, 1.0), "top1") == 76.38


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"trainer__max_epochs": 15}, "epochs 200, the run 15"),
        ({"data__batch_size": 64}, "batch 128, the run 64"),
        ({"trainer__accumulate_grad_batches": 2}, "batch 128, the run 256"),
        ({"data__views__size": 96}, "image size 224, the run 96"),
        ({"model__backbone__pretrained": False}, "init imagenet, the run none"),
        ({"model__tau": 0.5}, "tau 0.1, the run 0.5"),
        ({"trainer__limit_train_batches": 10}, "training batches all, the run 10"),
        ({"model__backbone__freeze": 2}, "frozen stages 0, the run 2"),
        ({"data__protocol__val_fraction": 0.1}, "held out 0, the run 0.1"),
        ({"model__memory": 1024}, "memory 8192, the run 1024"),
        ({"model__dim": 64}, "dimension 128, the run 64"),
        ({"model__optim__lr": 0.2}, "learning rate 0.02, the run 0.2"),
        ({"model__optim__weight_decay": 0.0}, "weight decay 0.0005, the run 0"),
        ({"model__optim__name": "adamw"}, "optimizer sgd, the run adamw"),
        ({"data__views__recipe": "sop"}, "augmentation cars, the run sop"),
        ({"data__eval_size": 448}, "evaluated size 224, the run 448"),
        ({"model__backbone__options": {"layers": [1, 1, 1, 1]}}, "network resnet18, the run resnet18 with layers"),
    ],
)
def test_note_names_the_condition_that_is_not_met(change, reason, runs):
    assert beside(runs.add("whole", changed("maskcon_cars")), "recall@1") == 45.53
    assert reason in beside(runs.add("changed", changed("maskcon_cars", **change)), "recall@1")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model__optim__weight_decay_end": 0.4}, "weight decay 0.05, the run 0.05 to 0.4"),
        ({"model__l_i": 5.0}, "l_i 0.5, the run 5"),
        ({"model__l_ts": 0.1}, "l_ts 0, the run 0.1"),
    ],
)
def test_weights_and_optimiser_of_cmd_are_conditions(change, reason, runs):
    assert reason in beside(runs.add("run", changed("cmd_cub", run__paper="cmd, Table II", **change)), "recall@1")


def test_settings_of_flsls_released_code_have_no_printed_number(runs):
    code = changed("flsl_imagenet_code", run__paper="flsl, Table 4")
    reason = "augmentation paper, the run code; queries random, the run top_left"
    assert reason in beside(runs.davis(runs.add("code", code)), "jf_mean")
    centred = changed("flsl_imagenet", model__targets="center")
    assert "centring no, the run True" in beside(runs.davis(runs.add("centred", centred)), "jf_mean")


def test_neighbours_of_a_patch_are_a_condition_of_k_nn_by_boxes(runs):
    """k of the run's ``BoxKNN``, which Table 9 has as k = 20 times cs = 7."""

    def reason(k: int, part: str, epochs: int) -> float | str | None:
        callback = {"class_path": "fgssl.callbacks.box_knn.BoxKNN", "init_args": {"k": k, "temperature": 0.07}}
        callbacks = [callback] if part == "Table 6" else callback  # as in a file, and as given alone
        options = {"trainer__callbacks": callbacks, "trainer__max_epochs": epochs, "run__paper": f"flsl, {part}"}
        return beside(runs.add("flsl", changed("flsl_imagenet", **options)), "box_knn_top1")

    for part, epochs, printed in (("Table 6", 100, 72.4), ("Table 9", 1600, 76.7)):
        assert reason(140, part, epochs) == printed
        assert "neighbours of a patch 140, the run 20" in reason(20, part, epochs)


def test_part_of_a_data_set_has_no_printed_number(runs):
    run = runs.add("part", changed("maskcon_cars"), data={"test": {"images": 2903, "rows_hash": "-"}})
    assert "test images 8041, the run 2903" in beside(run, "recall@1")


def test_dino_and_esvit_are_called_so(runs):
    assert runs.add("dino", changed("dino_cub")).method == "DINO"
    assert runs.add("esvit", changed("esvit_cub")).method == "EsViT"
    assert runs.add("cmd", changed("cmd_cub")).method == "CMD"


@pytest.mark.parametrize(
    ("rival", "printed"), [("barlow_twins", 33.45), ("vicreg", 37.78), ("byol", 39.27), ("lcr_byol", 51.20)]
)
def test_probe_of_a_rival_has_its_number_of_cmds_table(rival, printed, runs):
    config = changed(f"rivals/{rival}_cub")
    assert beside(runs.probe(runs.add(rival, config), config), "top1") == printed
    short = changed(f"rivals/{rival}_cub", trainer__max_epochs=15)
    assert "epochs 100, the run 15" in beside(runs.probe(runs.add("short", short), short), "top1")


def test_lcr_and_byol_do_not_take_the_number_of_each_other(runs):
    named = {"run__paper": "cmd, Table I, BYOL"}
    run = runs.add("lcr", config := changed("rivals/lcr_byol_cub", **named))
    assert "method BYOL, the run BYOLLCR" in beside(runs.probe(run, config), "top1")


def test_detector_from_densecl_has_the_number_of_its_epochs(runs):
    long = runs.add("long", changed("rivals/densecl_coco"))
    assert beside(runs.task(long, "detect_coco_fpn"), "ap_box") == 39.6
    assert "epochs 400, the run 800" in beside(runs.task(long, "finetune_cub"), "top1")
    short = runs.add("short", changed("rivals/densecl_coco", trainer__max_epochs=400))
    assert beside(runs.task(short, "finetune_cub"), "top1") == 69.3
    other = runs.add("other", changed("rivals/densecl_coco", trainer__max_epochs=400, model__lam=0.3))
    assert "lambda 0.5, the run 0.3" in beside(runs.task(other, "finetune_cub"), "top1")


# ---- the whole table, both ways -------------------------------------------------------------------------------------

# Printed numbers that no experiment of ours can produce: the reason, and columns of their rows.
NOT_BUILT = {
    "cmd": "MoCo v2 + Bilinear, SAM-SSL, SAM-SSL + Bilinear, DiLo, CVSA, LCR + MultiTask",
    "flsl": "DetCo, SCRL, MOCO-v3, MoCo-v3, MoBY, DINO+SelfPatch, ADCLR, CT, MAST, SimCLR-v2, MoCov3, iBOT, ReSim",
    "mls": "ReSim-C4, LEWEL_M, SetSim, SoCo, Self-EMD, ORL",
    "obd_sd": "Div&Conq, MIC, PADS, RankMI, MS+PLG, ProxyGML, PA+DRML, PA+MemVir, EPSHN, DiVA, DCML-MDW, MS+DAS",
}
ELSEWHERE = {  # methods that are built, in rows of other data or networks
    "flsl": "MoCo-v2, MoCov2, DenseCL, BYOL, SwAV, DINO, EsViT, MAE, Supervised",
    "mls": "BYOL, SwAV, SimCLR",
}
ON_CUB = "Barlow, VICReg, SimCLR, BYOL, SimSiam, LCR, BYOL+LCR, LEWEL, ContrastiveCrop"


def rows_of(reason: str, methods: dict[str, str]) -> list[tuple[str, dict[str, str]]]:
    return [(reason, {"paper": paper, "method": m}) for paper, names in methods.items() for m in names.split(", ")]


UNREACHABLE: list[tuple[str, dict[str, str]]] = [
    ("a property of the network, measured by nothing that writes results", {"dataset": ""}),
    *rows_of("a method that is not built here", NOT_BUILT),
    *rows_of("pretraining on ImageNet or COCO, where the method has no experiment, or another network", ELSEWHERE),
    ("MAE leaves out the hidden patches of a ViT; a ResNet-50 has none", {"paper": "cmd", "method": "MAE"}),
    *(
        ("a rival that has an experiment on CUB alone", {"paper": "cmd", "method": method, "dataset": dataset})
        for method in ON_CUB.split(", ")
        for dataset in ("cars", "aircraft")
    ),
    ("a network trained on the labels, called a linear probe in the table", {"paper": "cmd", "method": "Supervised"}),
    ("a public network: fgssl probe --model, which names no paper", {"paper": "cmd", "method": "ResNet-50"}),
    ("timm has no CvT; the stand-in is not the same network", {"paper": "cmd", "backbone": "cvt"}),
    ("timm has no Vision Longformer; the stand-in is not the same network", {"paper": "cmd", "backbone": "vil"}),
    ("the table's 1600 and 600 epochs contradict the 300 of section 5", {"paper": "flsl", "table": "Table 9"}),
]


def reason(row: dict) -> str | None:
    """Why no experiment can produce a printed number; None where one should."""
    return next(
        (why for why, columns in UNREACHABLE if all(row[name] == value for name, value in columns.items())), None
    )


def test_every_printed_number_stands_beside_the_runs_listed_for_it_and_no_other():
    found, listed = table(), read_golden()
    assert found.keys() == listed.keys(), "run: python -m tests.printed, and read the difference"
    wrong = [f"{row}: {found[row]}, listed {listed[row]}" for row in found if found[row] != listed[row]]
    assert not wrong, "\n".join(wrong)


def test_every_printed_number_is_listed_with_its_runs_or_has_a_reason_to_be_out_of_reach():
    listed = read_golden()
    lost = {key(row) for row in all_rows() if key(row) not in listed and not reason(row)}
    assert not lost, f"{len(lost)} rows: no experiment reproduces them, and no reason is given: {sorted(lost)}"
    both = {key(row) for row in all_rows() if key(row) in listed and reason(row)}
    assert not both, f"reproduced, though said to be out of reach: {sorted(both)}"


def test_every_reason_is_of_some_row():
    for why, columns in UNREACHABLE:
        assert any(all(row[name] == value for name, value in columns.items()) for row in all_rows()), (why, columns)


def test_images_held_out_of_the_training_before_a_task_are_a_condition(runs):
    """The data of the task itself may have all images."""
    config = changed("cmd_cub")
    run = runs.add("run", config)
    run.results["data"]["val_fraction"] = 0.3
    (run.folder / "results.json").write_text(json.dumps(run.results))
    assert "held out 0, the run 0.3" in beside(runs.probe(run, config, 1.0), "top1")


def test_clusters_of_nmi_are_a_condition(runs):
    """None, or as many as there are classes in one part, as in the released code."""
    table, classes = {"run__paper": "obd_sd, Table 1"}, 100
    for clusters in (None, classes):
        run = runs.add(f"run{clusters}", changed("obd_sd_cub", retrieval__clusters=clusters, **table))
        for part in ("train", "test"):
            run.results["data"].setdefault(part, {})["classes"] = classes
        assert beside(run, "nmi") == 70.81
    run = runs.add("fewer", changed("obd_sd_cub", retrieval__clusters=20, **table))
    assert "clusters classes, the run 20" in beside(run, "nmi")
    assert beside(run, "recall@1") == 67.76


def test_numbers_that_are_no_shares_are_as_printed(runs):
    run = runs.add("run", changed("obd_sd_cub", run__paper="obd_sd, Table 8"))
    assert [published(run, metric).value for metric in ("density", "spectral_decay")] == [0.6291, 0.0292]
