"""k-NN of the patches of an object's box: golden numbers, and a run from a checkpoint and of public networks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fgssl.cli import main
from fgssl.data.views import EvalView
from fgssl.evaluation.box_knn import box_knn_accuracy, box_patches
from fgssl.evaluation.knn import knn_predict
from tests import trees

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "box_knn.json").read_text())


def seen(view: EvalView, size: tuple[int, int]) -> torch.Tensor:
    return torch.tensor(view.boxes(size, view.numbers(0, np.array([-1]))[0]))


def test_golden_patches_of_the_shorter_side_resized_and_cropped():
    golden = GOLDEN["patch_ids"]
    largest, expected = golden["aspect_preserving"]
    part = seen(EvalView(224, 256), (golden["W"], golden["H"]))
    patches = box_patches(torch.tensor([golden["boxes"][largest]]), part, (14, 14))
    assert patches.tolist() == [expected]


def test_centres_outside_of_the_crop_count_to_its_border():
    everything = torch.tensor([[0, 0, 400, 400]])
    part = torch.tensor([[100, 100, 300, 300]])
    corners = box_patches(everything, part, (4, 4))[0, [0, 2, 6, 8]]
    assert corners.tolist() == [0, 3, 12, 15]


def test_the_whole_image_squeezed():
    box, part = torch.tensor([[0, 0, 90, 30]]), seen(EvalView(96), (90, 30))
    assert box_patches(box, part, (3, 3)).tolist() == [list(range(9))]


def test_golden_votes():
    golden = GOLDEN["knn"]
    train, test = (torch.tensor(golden[part], dtype=torch.float64) for part in ("train", "test"))
    train_labels, test_labels = torch.tensor(golden["train_labels"]), torch.tensor(golden["test_labels"])
    options = {"k": golden["k"], "temperature": golden["T"]}
    flat = (test.flatten(0, 1), train.flatten(0, 1), train_labels.repeat_interleave(train.shape[1]))
    predicted = knn_predict(*flat, **options).view(3, -1).tolist()
    assert predicted == [result["patch_predictions"] for result in golden["result"]]
    accuracy = box_knn_accuracy(test, test_labels, train, train_labels, **options)
    assert 100 * accuracy == pytest.approx(golden["top1"])
    permuted = torch.tensor([2, 0, 3, 1])
    assert accuracy == box_knn_accuracy(test, test_labels, train[permuted], train_labels[permuted], **options)


FLAGS = (
    "--data.eval_size", "32", "--data.num_workers", "0", "--data.batch_size", "4", "--data.dataset.partial", "true",
    "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false",
    "--retrieval.grid", "0", "--trainer.callbacks+", "BoxKNN", "--run.name", "run",
)  # fmt: skip
VIT = "{patch_size: 8, img_size: 32, depth: 1, embed_dim: 12, num_heads: 2}"
RESNET = "{layers: [1, 1, 1, 1], channels: [4, 4, 8, 8]}"


@pytest.fixture(scope="module")
def cub(tmp_path_factory) -> Path:
    return trees.make_cub(tmp_path_factory.mktemp("cub"))


@pytest.mark.parametrize(("network", "options"), [("vit_tiny_patch16_224", VIT), ("resnet18", RESNET)])
def test_of_a_network_that_was_not_trained(cub, tmp_path, network, options, capsys):
    config = Path(__file__).parents[2] / "experiments" / "maskcon_cub.yaml"
    command = ["test", "--config", str(config), "--model", "Frozen", "--model.backbone.name", network]
    command += ["--model.backbone.options", options, "--model.backbone.pretrained", "false"]
    assert main([*command, "--data.dataset.root", str(cub), *FLAGS, "--run.root", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "maskcon_cub" / "run" / "results.json").read_text())
    assert 0 <= results["metrics"]["test/box_knn_top1"] <= 1
    assert "box_knn_top1" in capsys.readouterr().out


def test_a_copy_without_boxes_is_said_at_once(cub, tmp_path, capsys):
    (tmp_path / "cub").mkdir()
    for entry in cub.iterdir():
        if entry.name != "bounding_boxes.txt":
            (tmp_path / "cub" / entry.name).symlink_to(entry)
    config = Path(__file__).parents[2] / "experiments" / "maskcon_cub.yaml"
    command = ["test", "--config", str(config), "--data.dataset.root", str(tmp_path / "cub"), *FLAGS]
    assert main([*command, "--model.memory", "4", "--run.root", str(tmp_path)]) == 2
    assert "bounding_boxes.txt" in capsys.readouterr().err
