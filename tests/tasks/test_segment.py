"""Segmentation on tiny trees: it learns, starts from what it is told to, resumes, measures, says what is wrong."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from fgssl.callbacks.segmentation import Segmentation, mask_files
from fgssl.cli.main import main
from fgssl.data.datasets import ALL
from fgssl.data.segmentation import SegmentationBatch, SegmentationData, read_mask
from fgssl.errors import UserError
from fgssl.methods import FLSL
from fgssl.metrics.segmentation import IGNORED, confusion
from fgssl.nn.moco import write_moco
from fgssl.nn.segmenters import all_scores, class_scores
from fgssl.optim import Optim
from fgssl.report.published import Missing, published
from fgssl.report.runs import read_run
from fgssl.tasks import Segment
from tests import trees
from tests.methods.runs import ROOT, assert_same_state, losses, results, state
from tests.nn.test_detectors import RESNET, VIT
from tests.nn.test_segmenters import DILATED, TIMM_VIT
from tests.tasks.test_detect import checkpoint
from tests.tiny import tiny_trainer

QUICK = Optim(lr=1e-30, warmup=0)  # moves nothing
pytestmark = [pytest.mark.filterwarnings("ignore:ade20k"), pytest.mark.slow]


@pytest.fixture(scope="module")
def ade(tmp_path_factory):
    return trees.make_ade20k(tmp_path_factory.mktemp("ade"))


def run(root, runs, name: str, *flags: str, command: str = "fit") -> int:
    """Run one command in this process; an epoch has 2 steps of 2 images."""
    training = () if command != "fit" else ("--checkpoint.every_n_train_steps", "1")
    options = (
        "{embed_dim: 16, depth: 4, num_heads: 2, img_size: 32, patch_size: 8, class_token: false, global_pool: avg, "
        "fc_norm: false, dynamic_img_size: true, drop_path_rate: 0.1}"
    )
    return main(
        [
            command, "--config", str(ROOT / "experiments/segment_ade20k.yaml"), *training,
            "--data.dataset.root", str(root), "--data.dataset.partial", "true", "--data.num_workers", "0",
            "--data.batch_size", "2", "--data.size", "32", "--run.root", str(runs), "--run.name", name,
            "--model.backbone.options", options, "--model.width", "8", "--model.optim.warmup", "1",
            "--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.log_every_n_steps", "1",
            "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false", *flags,
        ]
    )  # fmt: skip


def test_an_interrupted_run_resumes_bit_for_bit_and_a_test_repeats_its_numbers(ade, tmp_path):
    """From FLSL's teacher, stopped after 3 of 5 steps, within an epoch; views and DropPath are random."""
    start = ("--model.init_from", flsl(tmp_path), "--model.init_network", "teacher")
    start += ("--model.optim.schedule", "steps")  # which does not ask how long the run is
    assert run(ade, tmp_path, "whole", *start, "--trainer.max_steps", "5") == 0
    assert run(ade, tmp_path, "cut", *start, "--trainer.max_steps", "3") == 0
    whole, cut = tmp_path / "segment_ade20k" / "whole", tmp_path / "segment_ade20k" / "cut"
    assert run(ade, tmp_path, "cut", *start, "--trainer.max_steps", "5", "--run.resume", "true") == 0
    assert [step for step, _ in losses(cut)] == [str(step) for step in range(5)]
    assert losses(cut) == losses(whole)
    assert_same_state(state(cut), state(whole))

    tested = {name: value for name, value in results(whole)["metrics"].items() if name.startswith("test/")}
    assert tested.keys() == {"test/miou", "test/macc", "test/aacc"}
    assert all(0 <= value <= 1 for value in tested.values())
    evaluate = ("--ckpt_path", str(whole), "--data.eval_batch_size", "3")
    assert run(ade, tmp_path, "test", *evaluate, command="test") == 0
    assert results(whole.parent / "test")["metrics"] == pytest.approx(tested, abs=1e-6)
    missing = published(read_run(whole), "miou")  # for `fgssl compare`: a small network has no number of the paper
    assert isinstance(missing, Missing)


def test_a_resnet_validates_predicts_masks_and_embeds_nothing(ade, tmp_path, capsys):
    network = ("--model.backbone.name", "resnet18", "--model.optim.groups", "[]", "--model.head", "linear")
    network += ("--model.backbone.options", "{layers: [1, 1, 1, 1], channels: [8, 8, 16, 16]}")
    flags = ("--model.init_from", checkpoint(tmp_path), "--data.protocol.val_fraction", "0.5")
    assert run(ade, tmp_path, "resnet", *network, *flags, "--trainer.max_steps", "2") == 0
    folder = tmp_path / "segment_ade20k" / "resnet"
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}

    assert run(ade, tmp_path, "said", *network, "--ckpt_path", str(folder), command="predict") == 0
    assert f"masks: {folder.parent / 'said' / 'masks'}\n" in capsys.readouterr().out
    written = sorted((folder.parent / "said" / "masks").iterdir())
    assert [path.name for path in written] == sorted(p.name for p in (ade / "annotations/validation").iterdir())
    predicted = torch.from_numpy(np.stack([np.array(Image.open(path)) for path in written])) - 1
    masks = [ade / "annotations/validation" / path.name for path in written]
    labels = torch.from_numpy(np.stack([np.array(Image.open(path)) for path in masks]))
    matrix = confusion(predicted, labels - 1, classes=3)
    assert results(folder)["metrics"]["test/aacc"] == pytest.approx((matrix.diag().sum() / matrix.sum()).item())

    for command in ("embed", "probe"):
        assert main([command, "--ckpt_path", str(folder)]) == 2
        assert "Segment has no embeddings. Use the checkpoint that it started from" in capsys.readouterr().err


# ---- learning -------------------------------------------------------------------------------------------------------


def fitted(method: Segment, root, steps: int = 1, **options) -> dict[str, float]:
    """Train and evaluate on the test rows."""
    settings = {"size": 32, "batch_size": 4, "num_workers": 0} | options
    data = SegmentationData(ALL["ade20k"](str(root), partial=True), **settings)
    trainer = tiny_trainer(max_epochs=-1, max_steps=steps)
    trainer.fit(method, data)
    return trainer.test(method, datamodule=data, verbose=False)[0]


@pytest.mark.parametrize("command", ["test", "predict"])
def test_data_of_other_classes_are_refused(command, ade, tmp_path):
    """Their numbers mean something else."""
    method = segment()
    fitted(method, ade)
    root = trees.make_ade20k(tmp_path)
    table = root / "objectInfo150.txt"
    table.write_text(table.read_text().replace("red", "violet"))
    other = SegmentationData(ALL["ade20k"](str(root), partial=True), size=32, batch_size=4, num_workers=0)
    with pytest.raises(UserError, match=r"trained on other classes \(red.*\) than ade20k has \(violet"):
        getattr(tiny_trainer(), command)(method, datamodule=other)


def segment(**options) -> Segment:
    torch.manual_seed(0)
    return Segment(**({"backbone": RESNET, "num_fine": 3, "width": 16, "optim": QUICK} | options))


@pytest.mark.parametrize(("backbone", "head"), [(RESNET, "fpn"), (TIMM_VIT, "fpn"), (VIT, "linear"), (DILATED, "psp")])
def test_segment_learns_four_images(backbone, head, ade, tmp_path):
    root = tmp_path / "same"
    shutil.copytree(ade, root)
    for kind in ("images", "annotations"):
        shutil.rmtree(root / kind / "validation")
        shutil.copytree(root / kind / "training", root / kind / "validation")
    optim = Optim(name="adamw", lr=5e-3, weight_decay=0, warmup=0, schedule="linear")
    method = segment(backbone=backbone, head=head, optim=optim)
    scores = fitted(method, root, steps=30, scale=(1.0, 1.0), size=64)
    assert scores["test/miou"] > 0.8


def test_the_learning_rate_falls_in_a_line():
    method = segment(optim=Optim(warmup=2, unit="step", schedule="linear"))
    method._trainer = SimpleNamespace(
        max_epochs=-1, max_steps=10, world_size=1, accumulate_grad_batches=1, datamodule=None
    )
    factors = [method.lr_factor(step) for step in (0, 1, 2, 6, 10)]
    assert factors == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_the_learning_rate_falls_as_a_polynomial():
    """mmsegmentation's poly: (peak - min) (1 - step / total) ** power + min."""
    method = segment(optim=Optim(lr=0.01, warmup=0, unit="step", schedule="linear", power=0.9, min_lr=1e-4))
    method._trainer = SimpleNamespace(
        max_epochs=-1, max_steps=40, world_size=1, accumulate_grad_batches=1, datamodule=None
    )
    rates = [0.01 * method.lr_factor(step) for step in (0, 10, 39, 40)]
    expected = [(0.01 - 1e-4) * (1 - step / 40) ** 0.9 + 1e-4 for step in (0, 10, 39, 40)]
    assert rates == pytest.approx(expected)
    with pytest.raises(UserError, match="power is 0"):
        Optim(power=0)


def test_the_auxiliary_classifier_adds_four_tenths_of_its_loss():
    method = segment(backbone=DILATED, head="psp").train()
    images, labels = torch.randn(2, 3, 32, 32), torch.randint(0, 3, (2, 32, 32))
    numbers = torch.arange(2)
    batch = SegmentationBatch(list(images), list(labels.byte()), numbers, numbers)
    for module in method.modules():  # BatchNorm and dropout give the same in both passes
        module.training = not isinstance(module, (torch.nn.Dropout2d, torch.nn.modules.batchnorm._BatchNorm))
    main, auxiliary = all_scores(method.backbone, method.head, images)
    expected = cross_entropy(main, labels) + 0.4 * cross_entropy(auxiliary, labels)
    torch.testing.assert_close(method.step(batch).loss, expected)


@pytest.mark.filterwarnings("ignore:cityscapes")
def test_predicted_masks_have_the_format_of_the_data_set(tmp_path, monkeypatch):
    """Cityscapes' label ids, as its evaluation script reads them; views and images are twice as wide as high."""
    root = trees.make_cityscapes(tmp_path / "cityscapes")
    data = SegmentationData(
        ALL["cityscapes"](str(root), partial=True), size=(16, 32), short_side=24, batch_size=2, num_workers=0
    )
    method = segment(backbone=DILATED, head="psp", num_fine=19)
    trainer = tiny_trainer(max_epochs=-1, max_steps=1)
    trainer.fit(method, data)
    assert {view.shape for view in next(iter(data.train_dataloader())).images} == {(3, 16, 32)}
    index, predicted = data.parts.index, torch.tensor([[0, 13], [18, 5]])
    monkeypatch.setattr("fgssl.callbacks.segmentation.from_rank_zero", lambda _: str(tmp_path))
    place = SimpleNamespace(datamodule=data, loggers=[SimpleNamespace(log_dir="of this process")])
    batch = SimpleNamespace(index=torch.from_numpy(data.parts.test[:1]))
    callback = Segmentation()
    callback.on_predict_start(place, method)
    callback.on_predict_batch_end(place, method, {"predicted": [predicted]}, batch, 0)
    (path,) = (tmp_path / "masks").iterdir()
    assert path.stem == "frankfurt_000000_000019_leftImg8bit"
    assert np.array(Image.open(path)).tolist() == [[7, 26], [33, 17]]
    assert read_mask(str(path), index.classes).equal(predicted.byte())


def test_masks_of_images_of_equal_names_are_in_folders():
    assert mask_files(["data/a/1.jpg", "data/b/2.jpg"]) == ["1.png", "2.png"]
    assert mask_files(["data/a/1.jpg", "data/b/1.jpg", "data/b/c/2.jpg"]) == ["a/1.png", "b/1.png", "b/c/2.png"]


def test_only_labelled_pixels_count():
    """Mean over labelled pixels; the loss of a batch without any is 0, not NaN."""
    method = segment()
    images, masks = torch.randn(2, 3, 32, 32), torch.full((2, 32, 32), IGNORED, dtype=torch.uint8)
    numbers = torch.arange(2)
    assert method.step(SegmentationBatch(list(images), list(masks), numbers, numbers)).loss == 0
    masks[0, 3, 4] = 2
    method.eval()
    loss = method.step(SegmentationBatch(list(images), list(masks), numbers, numbers)).loss
    half = method.step(SegmentationBatch([images[0]], [masks[0]], numbers[:1], numbers[:1])).loss
    torch.testing.assert_close(loss, half)
    assert loss > 0


# ---- where it starts ------------------------------------------------------------------------------------------------


def flsl(folder) -> str:
    """A checkpoint of FLSL with the ViT of ``run``; teacher and student differ."""
    torch.manual_seed(1)
    pretrained = FLSL(VIT, prototypes=8, hidden=8, bottleneck=4)
    torch.nn.init.normal_(pretrained.teacher.backbone.pos_embed)
    saved = {"state_dict": pretrained.state_dict()}
    pretrained.on_save_checkpoint(saved)
    torch.save(saved, folder / "flsl.ckpt")
    return str(folder / "flsl.ckpt")


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_segment_starts_from_the_network_that_is_named(network, ade, tmp_path):
    path = flsl(tmp_path)
    method = segment(backbone=VIT, init_from=path, init_network=network)
    fitted(method, ade)
    expected = torch.load(path, weights_only=True)["state_dict"]
    for name, weight in method.backbone.named_parameters():
        torch.testing.assert_close(weight, expected[f"{network}.backbone.{name}"], rtol=0, atol=1e-20)


def test_segment_starts_from_a_file_in_mocos_format(tmp_path):
    torch.manual_seed(1)
    network = RESNET.build()
    write_moco(tmp_path / "moco.pth", network)
    started = segment(backbone=replace(RESNET, weights=str(tmp_path / "moco.pth")))
    assert_same_state(started.backbone.state_dict(), network.state_dict())


@pytest.mark.parametrize("head", ["linear", "fpn"])
def test_a_frozen_backbone_stays_as_it_is(head, ade):
    method = segment(head=head, frozen=True, optim=replace(QUICK, lr=1e-2))
    before = {name: value.clone() for name, value in method.state_dict().items()}
    fitted(method, ade)
    changed = {name for name, value in method.state_dict().items() if not value.equal(before[name])}
    assert "head.classify.weight" in changed
    assert not any(name.startswith("backbone.") for name in changed)


def test_a_checkpoint_of_another_network_is_refused(ade, tmp_path):
    other = replace(RESNET, options={**RESNET.options, "channels": [8, 8, 16, 24]})
    with pytest.raises(UserError, match=r"maskcon.ckpt does not fit the model: layer4"):
        fitted(segment(init_from=checkpoint(tmp_path), backbone=other), ade)


# ---- how it is measured ---------------------------------------------------------------------------------------------


def test_images_that_come_again_on_another_process_count_once():
    """Three images on two processes: the first image is repeated to pad the second process."""
    masks = [torch.full((2, 2), label, dtype=torch.uint8) for label in (0, 1, 2)]
    total = torch.zeros(3, 3, dtype=torch.int64)
    for rank, shown in enumerate(([0, 1], [2, 0])):
        index = SimpleNamespace(fine_names=("a", "b", "c"))
        parts = SimpleNamespace(test=np.arange(3), index=index)
        trainer = SimpleNamespace(global_rank=rank, world_size=2, datamodule=SimpleNamespace(parts=parts))
        callback = Segmentation()
        callback.on_test_epoch_start(trainer, SimpleNamespace(device="cpu"))
        for row in shown:
            callback.on_test_batch_end(
                trainer, None, {"predicted": [masks[row].long()]}, SimpleNamespace(masks=[masks[row]]), 0
            )
        total += callback._matrix
    assert total.tolist() == [[4, 0, 0], [0, 4, 0], [0, 0, 4]]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--data.dataset", "Digits", "--data.dataset.root", "null"), "Digits has no pixel classes"),
        (("--model.backbone.name", "mixer_s32_224", "--model.backbone.options", "{}"), "needs four stages or a ViT"),
        (("--model.init_from", "nowhere"), "--model.init_from: no checkpoint at nowhere"),
    ],
)
def test_mistakes_are_one_line(flags, said, ade, tmp_path, capsys):
    assert run(ade, tmp_path, "wrong", *flags) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_classes_are_those_of_scores_whose_pixels_are_areas():
    """The half pixel at the border counts, as in mmsegmentation (``align_corners: False``) and in PIL."""
    torch.manual_seed(0)
    method = Segment(backbone=RESNET, num_fine=3, width=8, init_network=None).eval()
    image = torch.randn(3, 64, 64)
    with torch.no_grad():
        scores_CHW = class_scores(method.backbone, method.head, image[None])[0]
        pictures = [Image.fromarray(score).resize((96, 80), Image.Resampling.BILINEAR) for score in scores_CHW.numpy()]
        expected = torch.tensor(np.stack([np.asarray(picture) for picture in pictures])).argmax(0)
        found = method.classes_of(image, torch.Size([80, 96]))
    assert (found == expected).float().mean() > 0.999
    assert len(found.unique()) > 1
