"""Detection on tiny trees: it starts from what it is told to, resumes, measures, and says what is wrong."""

import json
import re
import shlex
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fgssl.callbacks.detection import Detection
from fgssl.cli.compose import read_yaml
from fgssl.cli.main import main
from fgssl.data.datasets import ALL
from fgssl.data.detection import DetectionBatch, DetectionData
from fgssl.errors import UserError
from fgssl.methods import FLSL, MaskCon
from fgssl.nn.moco import write_moco
from fgssl.optim import Optim
from fgssl.report.published import Missing, published
from fgssl.report.runs import read_run
from fgssl.tasks import Detect
from tests import trees
from tests.methods.runs import ROOT, assert_same_state, losses, results, state
from tests.nn.test_detectors import RESNET, VIT, WINDOWED
from tests.tiny import tiny_trainer

pytestmark = pytest.mark.slow

NETWORK = "{layers: [1, 1, 1, 1], channels: [8, 8, 16, 16]}"
QUICK = Optim(lr=1e-30, warmup=0)  # moves nothing


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return trees.make_coco_instances(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    return trees.make_voc0712(tmp_path_factory.mktemp("voc"))


def run(experiment: str, root, runs, name: str, *flags: str, command: str = "fit") -> int:
    """Run one command in this process; a step has 2 images, an epoch 2 or 4 steps."""
    training = () if command != "fit" else ("--checkpoint.every_n_train_steps", "1")
    return main(
        [
            command, "--config", str(ROOT / "experiments" / f"{experiment}.yaml"), *training,
            "--data.dataset.root", str(root), "--data.dataset.partial", "true", "--data.num_workers", "0",
            "--data.batch_size", "2", "--run.root", str(runs), "--run.name", name,
            "--model.backbone.name", "resnet18", "--model.backbone.options", NETWORK,
            "--model.sizes", "[48, 64]", "--model.width", "8",
            "--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.log_every_n_steps", "1",
            "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false", *flags,
        ]
    )  # fmt: skip


def test_an_interrupted_run_resumes_bit_for_bit_and_a_test_repeats_its_numbers(coco, tmp_path):
    """Stopped after 3 of 5 steps, within an epoch of two; flips, sizes and regions are random."""
    assert run("detect_coco_fpn", coco, tmp_path, "whole", "--trainer.max_steps", "5") == 0
    assert run("detect_coco_fpn", coco, tmp_path, "cut", "--trainer.max_steps", "3") == 0
    whole, cut = tmp_path / "detect_coco_fpn" / "whole", tmp_path / "detect_coco_fpn" / "cut"
    again = ("--trainer.max_steps", "5", "--run.resume", "true")
    assert run("detect_coco_fpn", coco, tmp_path, "cut", *again) == 0
    assert [step for step, _ in losses(cut)] == [str(step) for step in range(5)]
    assert losses(cut) == losses(whole)
    assert_same_state(state(cut), state(whole))

    tested = {name: value for name, value in results(whole)["metrics"].items() if name.startswith("test/")}
    assert {"test/ap_box", "test/ap50_box", "test/ap75_box", "test/ap_mask"} <= tested.keys()
    assert all(0 <= value <= 1 for value in tested.values())
    evaluate = ("--ckpt_path", str(whole), "--data.eval_batch_size", "1")
    assert run("detect_coco_fpn", coco, tmp_path, "test", *evaluate, command="test") == 0
    assert results(whole.parent / "test")["metrics"] == pytest.approx(tested, abs=1e-6)

    printed = published(read_run(whole), "ap_box")  # for `fgssl compare`: a small network has no number of the paper
    assert isinstance(printed, Missing)
    assert "the row has" in printed.reason


def test_voc_starts_from_another_methods_run_validates_and_predicts(voc, tmp_path, capsys):
    path = checkpoint(tmp_path)
    flags = ("--model.init_from", path, "--trainer.max_steps", "2", "--data.protocol.val_fraction", "0.5")
    assert run("detect_voc0712", voc, tmp_path, "voc", *flags) == 0
    folder = tmp_path / "detect_voc0712" / "voc"
    metrics = results(folder)["metrics"]
    assert {"test/ap_box", "test/ap50_box", "test/ap75_box", "train/loss_objectness"} <= metrics.keys()
    assert not any("recall" in name or "mask" in name for name in metrics)
    assert read_yaml(ROOT / "experiments" / "sweeps" / "mls_coco.yaml")["metric"]["name"] in metrics
    assert read_run(folder).settings["model.init_from"] == path

    sees_dogs(folder / "checkpoints" / "last.ckpt")
    assert run("detect_voc0712", voc, tmp_path, "found", "--ckpt_path", str(folder), command="predict") == 0
    entries = json.loads((folder.parent / "found" / "detections.json").read_text())["detections"]
    assert entries
    names = {image.name for image in (voc / "VOC2007/JPEGImages").iterdir()}
    assert all(entry["file_name"] in names and len(entry["bbox"]) == 4 for entry in entries)
    assert f"detections: {folder.parent / 'found' / 'detections.json'}\n" in capsys.readouterr().out

    for command in ("embed", "probe"):
        assert main([command, "--ckpt_path", str(folder)]) == 2
        assert "Detect has no embeddings. Use the checkpoint that it started from" in capsys.readouterr().err


def test_detections_do_not_depend_on_the_images_of_the_same_batch():
    """Images of other shapes would be padded to a common size, and the padding enters the features."""
    method = detect(neck="fpn", masks=True).eval()
    torch.nn.init.normal_(method.detector.roi_heads.box_predictor.cls_score.weight)  # some score above the threshold
    numbers, noise = torch.arange(3), torch.Generator().manual_seed(0)
    images = [torch.randn(3, *size, generator=noise) for size in ((40, 96), (96, 40), (64, 64))]
    with torch.inference_mode():
        together = method.validation_step(DetectionBatch(images, [], numbers, numbers), 0)["detections"]
        for number, (image, found) in enumerate(zip(images, together, strict=True)):
            batch = DetectionBatch([image], [], numbers[number : number + 1], numbers[:1])
            (alone,) = method.validation_step(batch, 0)["detections"]
            assert len(alone["scores"]) > 0
            assert all(np.array_equal(alone[name], found[name]) for name in ("boxes", "scores", "labels", "masks"))


@pytest.mark.parametrize("hook", ["on_test_start", "on_validation_start", "on_predict_start"])
def test_data_of_other_classes_are_refused(hook, voc):
    method = detect()
    index = ALL["voc0712"](str(voc), partial=True).index()
    trainer = SimpleNamespace(datamodule=SimpleNamespace(parts=SimpleNamespace(index=index)))
    for classes in ((), index.fine_names):
        method.classes = classes
        getattr(Detection(), hook)(trainer, method)
    method.on_load_checkpoint({"classes": {"names": ["dog", "cat"]}})
    with pytest.raises(UserError, match=r"trained on other classes \(dog, cat\) than voc0712 has \(aeroplane, "):
        getattr(Detection(), hook)(trainer, method)


def test_detections_name_the_video_of_a_frame(tmp_path):
    paths = ["data/UAVDT/M0203/img000001.jpg", "data/UAVDT/M0205/img000001.jpg"]
    index = SimpleNamespace(paths=np.array(["data/other/1.jpg", *paths]), fine_names=("car",))
    found = {"boxes": np.ones((1, 4)), "scores": np.ones(1), "labels": np.zeros(1, int)}
    data = SimpleNamespace(parts=SimpleNamespace(index=index, test=np.array([1, 2])))
    callback = Detection()
    callback._outputs = [{1: found, 2: found}]
    place = SimpleNamespace(datamodule=data, is_global_zero=True, loggers=[SimpleNamespace(log_dir=tmp_path)])
    callback.on_predict_epoch_end(place, None)
    written = json.loads((tmp_path / "detections.json").read_text())["detections"]
    assert [one["file_name"] for one in written] == ["M0203/img000001.jpg", "M0205/img000001.jpg"]


def sees_dogs(path) -> None:
    """Raise the score of one class; after two steps all 21 are still near 1 / 21, below the threshold of 0.05."""
    saved = torch.load(path, weights_only=True)
    saved["state_dict"]["detector.roi_heads.box_predictor.cls_score.bias"][12] += 3
    torch.save(saved, path)


# ---- from pretraining to a detector ---------------------------------------------------------------------------------

README = ROOT / "experiments" / "mls_ablations" / "README.md"
CHAINS = [
    [shlex.split(line)[1:] for line in block.splitlines() if line.startswith("fgssl")]
    for block in re.findall(r"^```bash\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
]
FITS = list(dict.fromkeys(shlex.join(line) for chain in CHAINS for line in chain if line[0] == "fit"))


@pytest.mark.parametrize("line", FITS)
def test_commands_of_mls_ablations_resolve(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        main([*shlex.split(line), "--print_config"])
    assert stop.value.code == 0


@pytest.mark.parametrize("chain", CHAINS[:2], ids=["tables_1_and_6", "ablation"])
def test_chain_of_mls_ablations_runs_from_pretraining_to_the_comparison(chain, coco, tmp_path, monkeypatch, capsys):
    """The commands of the README on tiny data: each detector starts from the run of the previous command."""
    monkeypatch.chdir(tmp_path)
    for folder in ("experiments", "configs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    photographs = trees.make_coco(tmp_path / "photographs")
    quick = (
        "--data.dataset.partial", "true", "--data.num_workers", "0", "--data.batch_size", "2",
        "--model.backbone.name", "resnet18", "--model.backbone.options", NETWORK, "--trainer.max_steps", "1",
        "--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.enable_progress_bar", "false",
        "--trainer.enable_model_summary", "false",
    )  # fmt: skip
    for line in chain[:-1]:
        own = ("--model.memory", "4", "--data.views.size", "32", "--data.dataset.root", str(photographs))
        if "experiments/detect_coco_fpn.yaml" in line:
            own = ("--model.sizes", "[48]", "--model.width", "8", "--data.dataset.root", str(coco))
            start = line[line.index("--model.init_from") + 1]
            assert (tmp_path / start / "checkpoints" / "last.ckpt").is_file()
        assert main([*line, *quick, *own]) == 0
    capsys.readouterr()
    assert main(chain[-1]) == 0
    detectors = sum("experiments/detect_coco_fpn.yaml" in line for line in chain)
    rows = re.findall(r"^ +\d+ +Detect ", capsys.readouterr().out, re.MULTILINE)
    assert len(rows) == detectors


# ---- where it starts ------------------------------------------------------------------------------------------------


def checkpoint(folder) -> str:
    """A checkpoint of MaskCon; teacher and student differ."""
    torch.manual_seed(1)
    method = MaskCon(RESNET, memory=8, dim=4, hidden=8, num_coarse=2)
    torch.nn.init.normal_(method.key.backbone.conv1.weight)
    saved = {"state_dict": method.state_dict()}
    method.on_save_checkpoint(saved)
    torch.save(saved, folder / "maskcon.ckpt")
    return str(folder / "maskcon.ckpt")


def trained(method: Detect, voc, **options) -> Detect:
    """A run of one step."""
    data = DetectionData(ALL["voc0712"](str(voc), partial=True), batch_size=2, num_workers=0)
    tiny_trainer(max_epochs=-1, max_steps=1, **options).fit(method, data)
    return method


def detect(**options) -> Detect:
    torch.manual_seed(0)
    settings = {"backbone": RESNET, "neck": "c4", "num_fine": 20, "sizes": [64], "width": 8, "optim": QUICK}
    return Detect(**(settings | options))


@pytest.mark.filterwarnings("ignore:voc0712")
@pytest.mark.parametrize(("network", "prefix"), [("student", "query"), ("teacher", "key")])
def test_detect_starts_from_the_network_that_is_named(network, prefix, voc, tmp_path):
    path = checkpoint(tmp_path)
    method = trained(detect(init_from=path, init_network=network), voc)
    expected = torch.load(path, weights_only=True)["state_dict"]
    for name, weight in method.detector.backbone.network.named_parameters():
        torch.testing.assert_close(weight, expected[f"{prefix}.backbone.{name}"], rtol=0, atol=1e-20)


def test_detect_starts_from_a_file_in_mocos_format(tmp_path):
    torch.manual_seed(1)
    published = RESNET.build()
    write_moco(tmp_path / "moco.pth", published)
    network = detect(backbone=replace(RESNET, weights=str(tmp_path / "moco.pth"))).detector.backbone.network
    assert_same_state(network.state_dict(), published.state_dict())


@pytest.mark.filterwarnings("ignore:voc0712")
@pytest.mark.parametrize("neck", ["fpn", "simple"])
def test_detect_starts_from_flsls_vit(neck, voc, tmp_path):
    pretrained = FLSL(VIT, prototypes=8, hidden=8, bottleneck=4)
    saved = {"state_dict": pretrained.state_dict()}
    pretrained.on_save_checkpoint(saved)
    torch.save(saved, tmp_path / "flsl.ckpt")
    method = trained(detect(backbone=VIT, neck=neck, init_from=str(tmp_path / "flsl.ckpt")), voc)
    for name, weight in method.detector.backbone.network.named_parameters():
        expected = pretrained.student.backbone.get_parameter(name)
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-20)


@pytest.mark.filterwarnings("ignore:voc0712")
def test_vitdet_starts_from_a_plain_vit_of_ours_and_says_what_it_converted(voc, tmp_path, capfd, caplog):
    backbone = replace(VIT, options=VIT.options | {"patch_size": 16, "img_size": 32})
    pretrained = FLSL(backbone, prototypes=8, hidden=8, bottleneck=4)
    torch.nn.init.normal_(pretrained.teacher.backbone.pos_embed)
    saved = {"state_dict": pretrained.state_dict(), "pytorch-lightning_version": "2.5"}
    pretrained.on_save_checkpoint(saved)
    torch.save(saved, tmp_path / "flsl.ckpt")
    options = {"backbone": WINDOWED, "neck": "simple", "init_from": str(tmp_path / "flsl.ckpt"), "init_network": None}
    with caplog.at_level("INFO"):
        method = trained(detect(**options, optim=replace(QUICK, layer_decay=0.7)), voc)
    said = caplog.text + capfd.readouterr().err
    assert "weights of FLSL (teacher); interpolated: pos_embed; begin anew: blocks.0.attn.rel_pos_h" in said
    network = method.detector.backbone.network
    for name, weight in pretrained.teacher.backbone.named_parameters():
        if name.startswith(("blocks", "patch_embed")):
            torch.testing.assert_close(network.get_parameter(name), weight, rtol=0, atol=1e-20)
    assert network.pos_embed.shape == (1, 4, 4, 16)
    assert network.pos_embed.abs().sum() > 1


@pytest.mark.filterwarnings("ignore:voc0712")
def test_frozen_batch_norm_keeps_weights_and_statistics(voc):
    method = detect(freeze_bn=True, optim=replace(QUICK, lr=1e-3))
    before = {name: value.clone() for name, value in method.state_dict().items()}
    trained(method, voc)
    changed = {name for name, value in method.state_dict().items() if not value.equal(before[name])}
    assert any(name.endswith("layer1.0.conv1.weight") for name in changed)
    assert not any(part in name for name in changed for part in ("bn", "downsample.1", "running"))


# ---- what it says ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:voc0712")
def test_masks_need_outlines(voc):
    with pytest.raises(UserError, match="model.masks is true, but voc0712 has boxes only"):
        trained(detect(masks=True), voc)


@pytest.mark.filterwarnings("ignore:coco_instances")
def test_an_object_of_the_test_part_without_an_outline_is_named_before_training(tmp_path):
    path = trees.make_coco_instances(tmp_path) / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    del content["annotations"][0]["segmentation"]
    path.write_text(json.dumps(content))
    data = DetectionData(ALL["coco_instances"](str(tmp_path), partial=True), batch_size=2, num_workers=0)
    method = detect(masks=True, num_fine=2)
    with pytest.raises(
        UserError, match=r"val2017.json, annotation 1: its outline .segmentation. is missing.* --model.masks false"
    ):
        tiny_trainer(max_epochs=-1, max_steps=1).fit(method, data)


@pytest.mark.filterwarnings("ignore:voc0712")
def test_a_checkpoint_of_another_network_is_refused(voc, tmp_path):
    path = checkpoint(tmp_path)
    other = replace(RESNET, options={**RESNET.options, "channels": [8, 8, 16, 24]})
    with pytest.raises(UserError, match=r"maskcon.ckpt does not fit the model: layer4"):
        trained(detect(init_from=path, backbone=other), voc)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--model.sizes", "[]"), "model.sizes is empty"),
        (("--model.sizes", "[8]"), "model.sizes is 8; it must be 32 or more"),
        (("--data.dataset", "Digits", "--data.dataset.root", "null"), "Digits has no boxes of objects"),
        (("--model.neck", "simple"), "neck simple is for ViTs"),
        (("--data.views.size", "64"), "views"),
    ],
)
def test_mistakes_are_one_line(flags, said, voc, tmp_path, capsys):
    assert run("detect_voc0712", voc, tmp_path, "wrong", *flags) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("processes", "options", "synchronised", "warned"),
    [(2, {}, False, True), (1, {}, False, False), (2, {"freeze_bn": True}, False, False), (2, {}, True, False)],
)
def test_statistics_of_the_images_of_one_of_many_processes_are_warned_of(processes, options, synchronised, warned):
    method = detect(**options)
    if synchronised:
        method = torch.nn.SyncBatchNorm.convert_sync_batchnorm(method)
    method._trainer = SimpleNamespace(world_size=processes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        method._check_batch_norm()
    assert (
        any("BatchNorm computes its statistics from the few images" in str(line.message) for line in caught) == warned
    )
