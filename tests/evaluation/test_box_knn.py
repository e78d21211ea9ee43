"""k-NN of the patches of an object's box: golden numbers, and runs from a checkpoint and of timm's networks."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fgssl.callbacks import box_knn
from fgssl.cli.main import main
from fgssl.data.views import EvalView
from fgssl.evaluation.box_knn import Nearest, box_patches, patches_right
from fgssl.evaluation.knn import vote
from fgssl.evaluation.search import search
from tests import trees
from tests.bank import nearest
from tests.ddp.ranks import run_by
from tests.methods.runs import results

pytestmark = pytest.mark.slow

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "box_knn.json").read_text())


def seen(view: EvalView, size: tuple[int, int]) -> torch.Tensor:
    return torch.tensor(view.boxes(size, view.numbers(0, np.array([-1]))[0]))


def test_box_patches_of_a_cropped_image_are_golden():
    golden = GOLDEN["patch_ids"]
    largest, expected = golden["aspect_preserving"]
    part = seen(EvalView(224, 256), (golden["W"], golden["H"]))
    patches = box_patches(torch.tensor([golden["boxes"][largest]]), part, (14, 14))
    assert patches.tolist() == [expected]


def test_box_is_cut_to_the_seen_part_before_its_centres_are_taken():
    """Seen is 100 to 300 at 4 patches; 0 to 200 leaves 100 to 200, whose centres are at 0.33, 1 and 1.67 patches."""
    part = torch.tensor([[100, 100, 300, 300]])
    assert box_patches(torch.tensor([[0, 0, 200, 200]]), part, (4, 4)).tolist() == [[0, 1, 1, 4, 5, 5, 4, 5, 5]]
    assert box_patches(torch.tensor([[0, 0, 400, 400]]), part, (4, 4)).tolist() == [[0, 2, 3, 8, 10, 11, 12, 14, 15]]
    outside = torch.tensor([[0, 0, 50, 400], [350, 350, 360, 390]])
    assert box_patches(outside, part.expand(2, 4), (4, 4)).tolist() == [[0, 0, 0, 8, 8, 8, 12, 12, 12], [15] * 9]


def centre_patches_of_the_code(width, height, box, crop=224, resize=256, patch=16) -> list[int]:
    """The released code's order: scale, shift, cut to the crop, centres; the image keeps its aspect ratio.

    The code ends the crop 0.001 px earlier, which decides the tie of a box over the whole crop the other way.
    """
    scale = resize / min(width, height)
    shift = [(side * scale - crop) / 2 for side in (width, height)]
    x0, y0, x1, y1 = (min(max(value * scale - shift[n % 2], 0), crop) / patch for n, value in enumerate(box))
    last = crop // patch - 1
    rows = [min(int(y0 + (y1 - y0) * (j + 0.5) / 3 + 1e-9), last) for j in range(3)]
    columns = [min(int(x0 + (x1 - x0) * (i + 0.5) / 3 + 1e-9), last) for i in range(3)]
    return [row * (last + 1) + column for row in rows for column in columns]


def test_patches_of_random_boxes_are_those_of_the_released_code():
    generator = np.random.default_rng(0)
    for _ in range(200):
        width, height = generator.integers(200, 700, 2).tolist()
        (x0, x1), (y0, y1) = (sorted(generator.integers(0, side + 1, 2).tolist()) for side in (width, height))
        side = min(width, height) * 224 / 256
        left, top = (width - side) / 2, (height - side) / 2
        part = torch.tensor([[left, top, left + side, top + side]], dtype=torch.float64)
        found = box_patches(torch.tensor([[x0, y0, x1, y1]]), part, (14, 14))
        assert found.tolist() == [centre_patches_of_the_code(width, height, (x0, y0, x1, y1))]


def test_box_patches_of_a_squeezed_image_cover_the_box():
    box, part = torch.tensor([[0, 0, 90, 30]]), seen(EvalView(96), (90, 30))
    assert box_patches(box, part, (3, 3)).tolist() == [list(range(9))]


def test_box_knn_votes_are_golden():
    golden = GOLDEN["knn"]
    train, test = (torch.tensor(golden[part], dtype=torch.float64) for part in ("train", "test"))
    train_labels, test_labels = torch.tensor(golden["train_labels"]), torch.tensor(golden["test_labels"])
    cosine, ids = nearest(test.flatten(0, 1), train.flatten(0, 1), golden["k"])
    predicted = vote(cosine, train_labels.repeat_interleave(train.shape[1])[ids], golden["T"])
    assert predicted.view(3, -1).tolist() == [result["patch_predictions"] for result in golden["result"]]
    options = {"k": golden["k"], "temperature": golden["T"]}
    rows = torch.arange(len(train))
    of_patches = patches_right(test, test_labels, [(train, rows)], train_labels, **options)
    assert of_patches.equal(predicted.view(3, -1) == test_labels[:, None])
    right = of_patches.any(dim=1)
    assert right.tolist() == [result["correct_any"] for result in golden["result"]]
    assert 100 * right.double().mean() == pytest.approx(golden["top1"])
    parts = [(train[[2, 0]], rows[[2, 0]]), (train[[3, 1]], rows[[3, 1]])]
    assert of_patches.equal(patches_right(test, test_labels, parts, train_labels, **options))


@pytest.mark.parametrize("at_once", [1, 7, 20, 100])
def test_nearest_in_parts_equals_one_search(at_once):
    """Each row of the bank occurs twice, so that there are ties between parts; a part may have fewer rows than k."""
    generator = torch.Generator().manual_seed(0)
    queries, bank = torch.randn(5, 3, generator=generator), torch.randn(20, 3, generator=generator).repeat(2, 1)
    for ours, whole in zip(nearest(queries, bank, 11, at_once=at_once), search(queries, bank, 11), strict=True):
        assert ours.equal(whole)


def test_nearest_does_not_depend_on_the_order_of_the_parts():
    """Each row of the bank occurs twice; parts of any order and precision give what one search gives."""
    generator = torch.Generator().manual_seed(0)
    queries, bank = torch.randn(5, 3, generator=generator), torch.randn(20, 3, generator=generator).half().repeat(2, 1)
    cosine, ids = search(queries, bank.float(), 11)
    order = torch.randperm(40, generator=generator)
    found = Nearest(queries, 11)
    for rows in order.split(7):
        found.add(bank[rows], rows)
    assert found.cosine_Qk.equal(cosine)
    assert found.ids_Qk.equal(ids)


def test_patches_right_is_empty_without_test_images():
    nothing, bank = torch.zeros(0, 9, 4), [(torch.ones(2, 9, 4), torch.arange(2))]
    right = patches_right(nothing, torch.zeros(0), bank, torch.zeros(2), k=1, temperature=0.07)
    assert right.shape == (0, 9)


FLAGS = (
    "--data.eval_size", "32", "--data.num_workers", "0", "--data.batch_size", "4", "--data.dataset.partial", "true",
    "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false",
    "--retrieval.grid", "0", "--trainer.callbacks+", "BoxKNN", "--run.name", "run",
)  # fmt: skip
VIT = "{patch_size: 8, img_size: 32, depth: 1, embed_dim: 12, num_heads: 2}"
RESNET = "{layers: [1, 1, 1, 1], channels: [4, 4, 8, 8]}"


def top1(run: Path) -> float:
    return results(run)["metrics"]["test/box_knn_top1"]


@pytest.fixture(scope="module")
def cub(tmp_path_factory) -> Path:
    return trees.make_cub(tmp_path_factory.mktemp("cub"))


@pytest.mark.parametrize(("network", "options"), [("vit_tiny_patch16_224", VIT), ("resnet18", RESNET)])
def test_box_knn_of_an_untrained_network(cub, tmp_path, network, options, capsys):
    config = Path(__file__).parents[2] / "experiments" / "maskcon_cub.yaml"
    command = ["test", "--config", str(config), "--model", "Frozen", "--model.backbone.name", network]
    command += ["--model.backbone.options", options, "--model.backbone.pretrained", "false"]
    assert main([*command, "--data.dataset.root", str(cub), *FLAGS, "--run.root", str(tmp_path)]) == 0
    assert 0 <= top1(tmp_path / "maskcon_cub" / "run") <= 1
    assert "box_knn_top1" in capsys.readouterr().out


def flsl(cub: Path, runs: Path, command: str, *flags: str) -> list[str]:
    options = VIT.replace("{", "{class_token: false, global_pool: avg, fc_norm: false, dynamic_img_size: true, ")
    config = Path(__file__).parents[2] / "experiments" / "flsl_cub_small.yaml"
    return [
        command, "--config", str(config), "--data.dataset.root", str(cub), *FLAGS, "--run.root", str(runs),
        "--model.backbone.options", options, "--model.prototypes", "8", "--model.hidden", "8",
        "--model.bottleneck", "4", *flags,
    ]  # fmt: skip


@pytest.mark.ddp
def test_box_knn_of_a_checkpoint_is_the_same_on_two_processes(cub, tmp_path):
    """A test of the checkpoint on two processes gives the result at the end of training, and the same clusters."""
    clusters = ("--trainer.callbacks.clusters", "5")
    assert main(flsl(cub, tmp_path, "fit", "--trainer.max_epochs", "1", "--data.views.size", "32", *clusters)) == 0
    fitted = tmp_path / "flsl_cub_small" / "run"
    command = flsl(cub, tmp_path, "test", "--ckpt_path", str(fitted), "--run.name", "several", *clusters)
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    run_by(2, tmp_path, command)
    several, one = (results(run)["metrics"] for run in (fitted.parent / "several", fitted))
    for name in ("box_knn_top1", "box_knn_patches", "patch_purity", "patch_nmi"):
        assert several[f"test/{name}"] == one[f"test/{name}"]
    assert 0 < one["test/box_knn_patches"] <= one["test/box_knn_top1"]
    assert 1 / 3 <= one["test/patch_purity"] <= 1


def test_box_knn_uses_only_images_with_a_box(tmp_path, capsys, monkeypatch):
    """Test images that are training images are found again. Images without a box, here of another class, do not count,
    neither as questions nor as answers."""
    root = trees.make_imagenet(tmp_path / "imagenet")
    wnids = sorted(folder.name for folder in (root / "train").iterdir())
    for seed, (wnid, other) in enumerate(zip(wnids, wnids[1:] + wnids[:1], strict=True)):
        train, test = sorted((root / "train" / wnid).iterdir()), sorted((root / "val" / wnid).iterdir())
        trees.write_image(train[0], seed=100 + seed)  # with a box
        shutil.copyfile(train[0], test[0])
        for path in (sorted((root / "train" / other).iterdir())[1], sorted((root / "val" / other).iterdir())[1]):
            shutil.copyfile(train[0], path)
    config = Path(__file__).parents[2] / "experiments" / "flsl_imagenet.yaml"
    command = ["test", "--config", str(config), "--model", "Frozen", "--model.backbone.name", "vit_tiny_patch16_224"]
    command += ["--model.backbone.options", VIT, "--model.backbone.pretrained", "false", "--data.eval_resize", "32"]
    command += ["--data.dataset.root", str(root), "--data.dataset.boxes", "true", *FLAGS, "--run.root", str(tmp_path)]
    command += ["--trainer.callbacks.k", "1", "--trainer.callbacks+", "OnlineKNN", "--trainer.callbacks.k", "1"]
    searched = []

    def watched(queries, labels, bank, *rest, **options):
        parts = list(bank)
        searched.extend(len(rows) for _, rows in parts)
        return patches_right(queries, labels, parts, *rest, **options)

    monkeypatch.setattr(box_knn, "patches_right", watched)
    assert main(command) == 0
    assert sum(searched) == len(wnids)  # one training image of each class has a box
    assert top1(tmp_path / "flsl_imagenet" / "run") == 1
    plain = results(tmp_path / "flsl_imagenet" / "run")["metrics"]["test/knn_top1"]
    assert 1 / 3 <= plain < 1  # of all images, also those that are misleading copies
    assert "k: 1\n" in (tmp_path / "flsl_imagenet" / "run" / "config.yaml").read_text()

    for path in (root / "Annotations" / "val").iterdir():
        path.unlink()
    assert main([*command, "--run.name", "none"]) == 2
    assert "none of the 9 test images of imagenet has a bounding box" in capsys.readouterr().err


def test_data_set_without_boxes_is_refused_before_the_run(cub, tmp_path, capsys):
    (tmp_path / "cub").mkdir()
    for entry in cub.iterdir():
        if entry.name != "bounding_boxes.txt":
            (tmp_path / "cub" / entry.name).symlink_to(entry)
    config = Path(__file__).parents[2] / "experiments" / "maskcon_cub.yaml"
    command = ["test", "--config", str(config), "--data.dataset.root", str(tmp_path / "cub"), *FLAGS]
    assert main([*command, "--model.memory", "4", "--run.root", str(tmp_path)]) == 2
    assert "bounding_boxes.txt" in capsys.readouterr().err
