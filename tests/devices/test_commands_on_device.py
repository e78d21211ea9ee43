"""Every command, every task and every callback works on the stand-in device."""

import json

import numpy as np
import pytest
from PIL import Image

from tests import trees
from tests.devices.on_device import SHORT, on_device, run
from tests.evaluation.test_davis import make_davis
from tests.methods.runs import arguments, results
from tests.tasks import test_detect, test_segment

pytestmark = pytest.mark.slow

QUIET = ("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def mls(folder, elsewhere):
    """A run with every callback and every metric."""
    neighbours = "{class_path: fgssl.callbacks.neighbours.Neighbours, init_args: {every_n_epochs: 1}}"
    callbacks = f"[{neighbours}, OnlineProbe, OnlineKNN, BestOnTest, Collapse]"
    flags = (
        *SHORT, "--trainer.callbacks", callbacks, "--data.protocol.val_fraction", "0.3", "--retrieval.gallery", "train",
        "--retrieval.extra", "[clustering, density, spectral_decay, cmd_code]", "--retrieval.grid", "2",
        "--model.memory", "32",
    )  # fmt: skip
    assert elsewhere(run, arguments("mls", folder, "run", *flags)) == 0
    return folder / "mls" / "run"


def test_callbacks_and_metrics(mls):
    metrics = results(mls)["metrics"]
    measured = ("recall@1", "nmi", "density", "spectral_decay", "online_top1", "knn_top1", "best_epoch_recall@1")
    assert {f"test/{name}" for name in measured} <= metrics.keys()
    assert {"val/recall@1", "train/feature_std", "train/online_top1"} <= metrics.keys()
    assert (mls / "neighbours_0002.png").is_file()
    assert (mls / "retrieval.jpg").is_file()


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_evaluation_of_a_checkpoint(command, mls, folder, elsewhere):
    line = arguments("mls", folder, command, *SHORT, "--ckpt_path", str(mls), command=command)
    line += ("--data.protocol.val_fraction", "0.3", "--model.memory", "32")
    assert elsewhere(run, line) == 0
    if command == "predict":
        assert np.load(folder / "mls" / command / "embeddings.npz")["embedding"].shape == (450, 16)
    elif command == "test":
        assert results(folder / "mls" / command)["metrics"]["test/recall@1"] > 0


def test_embed_and_search(mls, folder, elsewhere):
    assert elsewhere(run, ["embed", "--ckpt_path", str(mls), "--rows", "200", "--retrieval.grid", "0", *QUIET]) == 0
    embedded = mls.with_name("run_embed")
    picture = folder / "query.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(picture)
    assert elsewhere(run, ["search", str(embedded), str(picture), "--out", str(folder / "found.png")]) == 0
    assert (folder / "found.png").is_file()


def test_probe(mls, folder, elsewhere):
    line = ["probe", "--ckpt_path", str(mls), "--augment", "false", *SHORT, "--trainer.max_epochs", "2"]
    assert elsewhere(run, line) == 0


def test_export(mls, folder, elsewhere):
    out = folder / "export"
    assert elsewhere(run, ["export", "--ckpt_path", str(mls), "--out", str(out), "--formats", "timm", "torch"]) == 0
    assert json.loads((out / "config.json").read_text())


def test_maps_and_davis(folder, elsewhere):
    assert elsewhere(run, arguments("flsl", folder, "run", *SHORT, "--trainer.max_steps", "2")) == 0
    checkpoint = ["--ckpt_path", str(folder / "flsl" / "run")]
    picture = folder / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(picture)
    for kind in ("attention", "gradcam", "similarity", "tokens"):
        line = ["maps", kind, *checkpoint, str(picture), "--out", str(folder / f"{kind}.png")]
        assert elsewhere(run, line) == 0, kind
    root = make_davis(folder / "davis_data", still=(0, 0), moving=(1, -1))
    small = ["--root", str(root), "--partial", "--short_side", "32", "--radius", "2", "--run.root", str(folder)]
    assert elsewhere(run, ["davis", *checkpoint, *small]) == 0
    assert 0 < results(folder / "davis" / "run")["metrics"]["test/jf_mean"] <= 1


def detect(processes, *call):
    with on_device(processes):
        return test_detect.run(*call)


def segment(processes, *call):
    with on_device(processes):
        return test_segment.run(*call)


@pytest.mark.parametrize(("experiment", "processes"), [("detect_coco_fpn", 2), ("detect_coco_c4", 1)])
def test_detection(experiment, processes, tmp_path, elsewhere):
    root = trees.make_coco_instances(tmp_path / "coco")
    flags = ("--trainer.max_steps", "2")
    assert elsewhere(detect, processes, experiment, root, tmp_path, "run", *flags) == 0
    assert "test/ap_box" in results(tmp_path / experiment / "run")["metrics"]


@pytest.mark.parametrize("processes", [1, 2])
def test_segmentation(processes, tmp_path, elsewhere):
    root = trees.make_ade20k(tmp_path / "ade")
    flags = ("--trainer.max_steps", "2", "--data.batch_size", "4")
    assert elsewhere(segment, processes, root, tmp_path, "run", *flags) == 0
    assert "test/miou" in results(tmp_path / "segment_ade20k" / "run")["metrics"]
