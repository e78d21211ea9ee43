"""FLSL as a LightningModule: its step against the golden numbers, its views, queries and targets."""

import csv
import inspect
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from fgssl.cli.compose import compose
from fgssl.cli.main import main
from fgssl.data.batch import Batch
from fgssl.data.views import MultiCrop, NestedCrops
from fgssl.errors import UserError
from fgssl.losses.flsl import mean_shift
from fgssl.methods.flsl import FLSL, TOKENS
from fgssl.nn.backbones import Backbone
from fgssl.optim import Group, Optim
from fgssl.report.published import rows_named
from fgssl.tasks import Detect, Segment
from tests.launches import Launches
from tests.methods.runs import ROOT, arguments, state
from tests.tiny import BACKBONE, blob_loader, tiny_trainer

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "flsl.json").read_text())
SHIFT, LOSS = GOLDEN["meanshift"], GOLDEN["loss"]
VIT = {**TOKENS, "img_size": 8, "patch_size": 2, "depth": 1, "embed_dim": 8, "num_heads": 2}
ADAMW = Optim(name="adamw", lr=0.01, warmup=0)


def flsl(vit=None, **options) -> FLSL:
    torch.manual_seed(0)
    settings = {"prototypes": 6, "hidden": 8, "bottleneck": 4, "optim": ADAMW}
    return FLSL(Backbone("vit_tiny_patch16_224", options=VIT | (vit or {})), **(settings | options))


def batch_of(*sizes: int, images: int = 3) -> Batch:
    """Views of these sizes, of noise."""
    generator, rows = torch.Generator().manual_seed(1), torch.arange(images)
    return Batch([torch.randn(images, 3, s, s, generator=generator) for s in sizes], rows, rows, rows, 10 + rows)


def of(rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_step_gives_the_golden_loss_and_gradient(monkeypatch):
    """Its networks give the golden tokens: the images are tokens, the heads are matrices."""
    method = flsl().double()
    method.temperature_sa, method.temperature_ca = SHIFT["temp_sa"], SHIFT["temp_ca"]
    for network, head in ((method.student, LOSS["W_student"]), (method.teacher, LOSS["W_teacher"])):
        network.backbone.forward_features = lambda tokens: tokens
        network.head.forward = lambda z, matrix=of(head): z @ matrix
    asked = torch.tensor(SHIFT["mask"]).nonzero()[:, 1].view(2, 3)
    monkeypatch.setattr(FLSL, "query_tokens", lambda *_: asked)
    student, rows = of(SHIFT["s"]).requires_grad_(), torch.arange(2)
    result = method.step(Batch([of(SHIFT["t"]), student], rows, rows, rows, rows))
    for name, golden in (("intra", "intra"), ("inter", "inter"), ("volume", "vmr")):
        assert result.parts[name].item() == pytest.approx(LOSS[golden], rel=1e-6)
    assert result.loss.item() == pytest.approx(LOSS["total"], rel=1e-6)
    result.loss.backward()
    golden = of(LOSS["grad_total_wrt_s_teacher_branch_constant"])
    torch.testing.assert_close(student.grad, golden, rtol=1e-6, atol=1e-9)
    entropy, divergence = (result.parts[name] for name in ("teacher_entropy", "teacher_student_kl"))
    torch.testing.assert_close((entropy + divergence).double(), result.parts["inter"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("targets", ["plain", "sinkhorn", "center"])
def test_assignments_take_one_softmax_for_each_network(targets):
    """They are [T, B, Q, K]: 64 images of 2 x 49 queries and 4096 centroids are 103 MB in float32."""
    method = flsl(targets=targets)
    z_TBQD = torch.randn(1, 3, 4, 8)
    with Launches("cpu") as launches:
        method.objective(z_TBQD, z_TBQD, z_TBQD)
    assert (launches.by_name["_log_softmax"], launches.by_name["_softmax"]) == (1, 1)


@pytest.mark.parametrize("teachers", [1, 2])
@pytest.mark.parametrize("local", [0, 2])
def test_each_student_is_compared_with_the_other_teacher_view(teachers, local, monkeypatch):
    """Algorithm 1: M(s1, t2) and M(s2, t1). With one teacher view, all students are compared with it."""
    method = flsl(teacher_views=teachers, local_crops=local)
    crops = NestedCrops(8, local_size=4, local_crops=local, teacher_views=teachers).crops
    assert [crop.inside for crop in crops] == [None] * teachers + method.parents
    batch, seen = batch_of(*(crop.size for crop in crops)), {}
    keep = lambda _, z, z_hat, z_hat_plus: seen.update(z=z, z_hat=z_hat, z_hat_plus=z_hat_plus)  # noqa: E731
    monkeypatch.setattr(FLSL, "objective", keep)
    method.step(batch)
    assert seen["z"].shape == (teachers, 3, 4 + local, 8)  # 4 x 4 tokens, and 2 x 2 of a local crop; windows of 2 x 2
    for pair in range(teachers):
        other = 1 - pair if teachers == 2 else 0
        t = method.teacher.backbone.forward_features(batch.views[other])
        at = 0
        for view, crop in zip(batch.views, crops, strict=True):
            if crop.inside != pair:
                continue
            part = slice(at, at := at + (crop.size // 4) ** 2)
            z = seen["z"][pair, :, part]
            s = method.student.backbone.forward_features(view)
            torch.testing.assert_close(seen["z_hat"][pair, :, part], mean_shift(z, s, temperature=0.1 / 8**0.5))
            torch.testing.assert_close(seen["z_hat_plus"][pair, :, part], mean_shift(z, t, temperature=0.2 / 8**0.5))


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def algorithm_1(students, teachers, asked, constant) -> float:
    """The paper's pseudo-code in numpy, query by query, with the volume term's log K.

    ``constant`` are the students' tokens as the teacher's queries, through which no gradient flows.
    """
    head_s, head_t = np.array(LOSS["W_student"]), np.array(LOSS["W_teacher"])

    def pair(s_BND, t_BND, asked_BQ, constant_BND):
        intra, inter, assignments = [], [], []
        for image, numbers_Q in enumerate(asked_BQ):
            s_ND, t_ND = s_BND[image], t_BND[image]
            for number in numbers_Q:
                z = s_ND[number]
                z_hat = softmax(SHIFT["temp_sa"] * s_ND @ z) @ s_ND
                z_hat_plus = softmax(SHIFT["temp_ca"] * t_ND @ constant_BND[image, number]) @ t_ND
                intra.append(((z / np.linalg.norm(z) - z_hat / np.linalg.norm(z_hat)) ** 2).sum())
                p, p_plus = softmax(z_hat @ head_s / 0.1), softmax(z_hat_plus @ head_t / 0.04)
                inter.append(-(p_plus * np.log(p)).sum())
                assignments.append(p)
        p_bar = np.mean(assignments, axis=0)
        return 0.03 * np.mean(intra) + 1.0 * np.mean(inter) + 5.0 * ((p_bar * np.log(p_bar)).sum() + np.log(len(p_bar)))

    (s1, s2), (t1, t2) = students, teachers
    return 0.5 * pair(s1, t2, asked[0], constant[0]) + 0.5 * pair(s2, t1, asked[1], constant[1])


def test_two_teacher_views_give_the_loss_and_gradient_of_algorithm_1(monkeypatch):
    generator, rows = np.random.default_rng(0), torch.arange(2)
    _, count, width = np.array(SHIFT["s"]).shape
    teachers, students = generator.normal(size=(2, 2, 2, count, width))
    asked = generator.permuted(np.tile(np.arange(count), (2, 2, 1)), axis=2)[..., :3]  # of 2 views of 2 images
    method = flsl(teacher_views=2).double()
    method.temperature_sa, method.temperature_ca = SHIFT["temp_sa"], SHIFT["temp_ca"]
    for network, head in ((method.student, LOSS["W_student"]), (method.teacher, LOSS["W_teacher"])):
        network.backbone.forward_features = lambda tokens: tokens
        network.head.forward = lambda z, matrix=of(head): z @ matrix
    monkeypatch.setattr(FLSL, "query_tokens", lambda _, batch, number: torch.tensor(asked[number - 2]))
    s1, s2 = (torch.tensor(view).requires_grad_() for view in students)
    loss = method.step(Batch([*torch.tensor(teachers), s1, s2], rows, rows, rows, rows)).loss
    assert loss.item() == pytest.approx(algorithm_1(students, teachers, asked, students), rel=1e-6)

    loss.backward()
    for number, gradient in enumerate((s1.grad, s2.grad)):
        for place in ((0, 0, 0), (1, count - 1, width - 1), (0, asked[number, 0, 0], 1)):
            around = []
            for step in (1e-6, -1e-6):
                moved = students.copy()
                moved[(number, *place)] += step
                around.append(algorithm_1(moved, teachers, asked, students))
            assert gradient[place].item() == pytest.approx((around[0] - around[1]) / 2e-6, rel=1e-5, abs=1e-8)


def test_other_views_than_nested_crops_are_refused():
    method = flsl(local_crops=1)
    with pytest.raises(UserError, match=r"gives 2 views.*local_crops 1.*NestedCrops"):
        method.check_views(NestedCrops(8, local_crops=0).crops)
    trainer = {"precision": "32-true", "max_epochs": 1, "max_steps": -1}
    for views in (MultiCrop(8, local_crops=1), NestedCrops(8, local_crops=0), NestedCrops(8, teacher_views=2)):
        method._trainer = SimpleNamespace(**trainer, datamodule=SimpleNamespace(views=views))
        with pytest.raises(UserError, match="NestedCrops with teacher_views 1 and local_crops 1"):
            method.setup("fit")
    views = NestedCrops(8, local_crops=1)
    method._trainer = SimpleNamespace(**trainer, datamodule=SimpleNamespace(views=views))
    method.setup("fit")


def test_query_tokens_depend_on_seed_and_sample_only():
    method, batch = flsl(), batch_of(8, 8, images=40)
    asked = method.query_tokens(batch, 1)
    assert asked.shape == (40, 4)
    assert torch.equal(asked, method.query_tokens(batch, 1))
    part = batch._replace(views=[view[5:9] for view in batch.views], draw=batch.draw[5:9])
    assert torch.equal(method.query_tokens(part, 1), asked[5:9])  # on another process, the same
    assert not torch.equal(method.query_tokens(batch, 0), asked)
    method._seed = 1
    assert not torch.equal(method.query_tokens(batch, 1), asked)
    assert asked.unique().numel() == 16
    top_left = flsl(queries="top_left").query_tokens(batch, 1)
    assert torch.equal(top_left, torch.tensor([[0, 2, 8, 10]]).expand(40, 4))
    corners = flsl(queries="top_left", window=3).query_tokens(batch, 1)  # one window of 3 x 3 of 4 x 4 tokens
    assert corners.unique().tolist() == [0, 1, 4, 5]
    assert flsl(window=3).query_tokens(batch_of(8, 8, images=400), 1).unique().numel() == 16
    with pytest.raises(UserError, match="model.window is 5"):
        flsl(window=5).query_tokens(batch, 1)


def test_teacher_targets_are_plain_batch_softmax_or_centred():
    logits = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    tau = 0.04  # the teacher's in the first epoch
    assert torch.equal(flsl().balanced(logits), logits)
    columns = (logits / tau).flatten(1, 2).softmax(dim=1)  # each pair of views by itself
    expected = (columns / columns.sum(dim=2, keepdim=True)).view(2, 3, 4, 6)
    sinkhorn = (flsl(targets="sinkhorn").balanced(logits) / tau).softmax(dim=-1)
    torch.testing.assert_close(sinkhorn, expected, rtol=1e-4, atol=1e-6)
    centred = flsl(targets="center")
    centred.step(batch_of(8, 8))
    assert centred.center.value.abs().sum() > 0
    torch.testing.assert_close(centred.balanced(logits), logits - centred.center.value)
    assert "center.value" in centred.state_dict()
    losses = {targets: flsl(targets=targets) for targets in ("plain", "sinkhorn", "center")}
    values = []
    for method in losses.values():
        if method.center is not None:
            method.center.value.copy_(torch.linspace(-1, 1, 6))
        values.append(method.step(batch_of(8, 8)).loss.item())
    assert len(set(values)) == 3


@pytest.mark.parametrize(("weight", "term"), [("v", "intra"), ("eta", "inter"), ("gamma", "volume")])
def test_weight_scales_its_term_of_the_loss(weight, term):
    weights = dict.fromkeys(("v", "eta", "gamma"), 0.0) | {weight: 2.5}
    result = flsl(**weights).step(batch_of(8, 8))
    torch.testing.assert_close(result.loss, 2.5 * result.parts[term])


def test_gradient_reaches_the_student_except_its_positions():
    method = flsl()
    method.step(batch_of(8, 8)).loss.backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    without = [name for name, p in method.student.named_parameters() if p.grad is None]
    assert without == ["backbone.pos_embed"]


def test_embed_gives_the_mean_of_the_teacher_tokens():
    method, images = flsl().eval(), batch_of(8).views[0]
    with torch.no_grad():
        for p in method.student.parameters():
            p.add_(1)
    torch.testing.assert_close(method.embed(images), method.teacher.backbone.forward_features(images).mean(dim=1))


@pytest.mark.parametrize("targets", ["plain", "sinkhorn", "center"])
def test_training_changes_the_weights_but_not_the_positions(targets):
    method = flsl({"depth": 2, "drop_path_rate": 0.5}, targets=targets)
    before = {name: weight.clone() for name, weight in method.state_dict().items()}
    drops = [network.backbone.blocks[1].drop_path1 for network in (method.student, method.teacher)]
    assert [drop.drop_prob for drop in drops] == [0.5, 0.0]
    tiny_trainer(max_epochs=2).fit(method, blob_loader())
    after = method.state_dict()
    for name in ("student.backbone.blocks.0.mlp.fc1.weight", "teacher.head.prototypes_KC", "student.head.mlp.0.weight"):
        assert not torch.equal(after[name], before[name]), name
    for whose in ("student", "teacher"):
        assert torch.equal(after[f"{whose}.backbone.pos_embed"], before[f"{whose}.backbone.pos_embed"])


def test_tau_ca_below_tau_sa_warns():
    with pytest.warns(UserWarning, match="model.tau_ca 0.05 is below model.tau_sa 0.1"):
        flsl(tau_ca=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"v": -0.1}, "v is -0.1"),
        ({"v": 0, "eta": 0, "gamma": 0}, "all 0"),
        ({"window": 0}, "window is 0"),
        ({"prototypes": 0}, "prototypes is 0"),
        ({"vit": {"class_token": True}}, "class_token: false"),
        ({"vit": {"fc_norm": None}}, "fc_norm: false"),
        ({"vit": {"global_pool": "max"}}, "global_pool: avg"),
    ],
)
def test_invalid_options_are_refused_by_name(options, message):
    with pytest.raises(UserError, match=message):
        flsl(**options)


def test_network_without_patch_tokens_is_refused():
    with pytest.raises(UserError, match="'resnet18' with its options is no ViT"):
        FLSL(BACKBONE)


# ---- from the command line ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Two steps on digits."""
    root = tmp_path_factory.mktemp("runs")
    assert main(arguments("flsl", root, "run", "--trainer.max_steps", "2", "--trainer.limit_test_batches", "1")) == 0
    return root / "flsl" / "run"


def test_run_logs_teacher_entropy_and_divergence(run):
    rows = [row for row in csv.DictReader((run / "metrics.csv").open()) if row["train/loss"]]
    assert len(rows) == 2
    for row in rows:
        assert 0 < float(row["train/teacher_entropy"]) <= math.log(16) + 1e-5
        assert float(row["train/teacher_student_kl"]) >= 0


def test_exported_backbone_loads_into_timm_without_missing_keys(run, tmp_path):
    assert main(["export", "--ckpt_path", str(run), "--out", str(tmp_path / "out"), "--formats", "timm"]) == 0
    options = {**TOKENS, "img_size": 32, "patch_size": 4, "depth": 1, "embed_dim": 16, "num_heads": 2}
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, **options).eval()
    missing, unexpected = network.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"), strict=False)
    assert (missing, unexpected) == ([], [])
    weights = {name: value for name, value in state(run).items() if name.startswith("teacher.backbone.")}
    for name, value in network.state_dict().items():
        assert torch.equal(value, weights[f"teacher.backbone.{name}"]), name
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'timm.create_model("local-dir:.", pretrained=True)' in card
    named = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = torch.randn(2, 3, 48, 32)  # of another size: the positions are interpolated
    with torch.no_grad():
        torch.testing.assert_close(named(images), network(images))


@pytest.mark.parametrize("kind", ["similarity", "attention", "tokens"])
def test_maps_command_draws_two_runs_side_by_side(kind, run, tmp_path):
    Image.new("RGB", (40, 50), "red").save(tmp_path / "red.png")
    out, again = tmp_path / "maps.png", tmp_path / "alone.png"
    line = ["maps", kind, "--ckpt_path", str(run), str(tmp_path / "red.png")]
    assert main([*line, "--beside", str(run), "--out", str(out)]) == 0
    assert main([*line, "--out", str(again)]) == 0
    assert Image.open(out).width > 1.5 * Image.open(again).width


def test_ablations_readme_has_published_numbers_and_existing_flags():
    text = (ROOT / "experiments" / "flsl_ablations" / "README.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 15
    for number, what, flags, paper in rows:
        if what.startswith("batch "):
            assert flags == f"`--data.batch_size {what.removeprefix('batch ')}`"  # of all devices together
        if paper:
            assert float(paper) in {float(row["value"]) for row in rows_named(f"flsl, Table {number}")}, number
    named = set(re.findall(r"--model\.(\w+)", text))
    assert named == {"gamma", "targets", "v", "prototypes", "window", "teacher_views"}
    assert named <= set(inspect.signature(FLSL).parameters)


def test_experiment_of_the_paper_carries_its_numbers():
    """Appendix E.2 and E.3."""
    config = compose([ROOT / "experiments" / "flsl_imagenet.yaml"])
    model, views = config["model"]["init_args"], config["data"]["views"]["init_args"]
    optim = Optim(**model["optim"])
    assert optim.peak(config["data"]["batch_size"]) == pytest.approx(5e-4)
    assert (optim.warmup, optim.weight_decay, optim.weight_decay_end, optim.clip_each) == (10, 0.05, 0.5, None)
    assert (model["teacher_views"], model["local_crops"], model["queries"]) == (2, 0, "random")
    crops = NestedCrops(**views).crops
    assert [crop.inside for crop in crops] == [None, None, 0, 1]
    assert [crop.scale for crop in crops] == [(0.8, 1.0)] * 2 + [(0.5, 1.0)] * 2
    for crop in crops:
        assert (crop.size, crop.flip, crop.photometric.blur, crop.photometric.solarise) == (224, 0.0, 0.5, 0.2)
        assert crop.photometric.other_half is None


def test_experiment_of_the_code_carries_its_numbers():
    """The defaults of main_flsl.py and the README's command."""
    config = compose([ROOT / "experiments" / "flsl_imagenet_code.yaml"])
    model, views = config["model"]["init_args"], config["data"]["views"]["init_args"]
    optim = Optim(**model["optim"])
    assert optim.peak(config["data"]["batch_size"]) == pytest.approx(1e-3)
    assert (optim.warmup, optim.weight_decay, optim.weight_decay_end, optim.clip_each) == (30, 0.04, 0.4, 3.0)
    assert (model["teacher_views"], model["local_crops"], model["queries"]) == (1, 2, "top_left")
    crops = NestedCrops(**views).crops
    assert [crop.inside for crop in crops] == [None, 0, 0, 0]
    assert [(crop.size, crop.scale) for crop in crops[2:]] == [(96, (0.05, 0.4))] * 2
    for crop in crops:
        assert (crop.flip, crop.photometric.blur, crop.photometric.solarise) == (0.0, 0.5, 0.0)
        assert crop.photometric.other_half == (0.1, 0.2)


@pytest.mark.parametrize(
    ("experiment", "task", "options"),
    [
        ("detect_coco_vit", Detect, {"neck": "fpn", "sizes": [64], "width": 8}),
        ("segment_ade20k", Segment, {"width": 8}),
    ],
)
def test_position_embeddings_do_not_decay_in_detection_and_segmentation(experiment, task, options):
    """Appendix H and the released configurations; the blocks' matrices decay."""
    section = compose([ROOT / "experiments" / f"{experiment}.yaml"])["model"]["init_args"]["optim"]
    optim = Optim(**section | {"groups": [Group(**group) for group in section["groups"]]})
    vit = Backbone("vit_tiny_patch16_224", options=VIT | {"patch_size": 8, "img_size": 32, "depth": 4})
    method = task(vit, num_fine=2, optim=optim, **options)
    groups = optim.build(method, global_batch=16).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert all(group["lr"] == section["lr"] for group in groups)
    network = method.backbone_of()
    assert decay[id(network.pos_embed)] == 0
    assert decay[id(network.blocks[0].norm1.weight)] == 0
    assert decay[id(network.blocks[0].attn.qkv.weight)] == section["weight_decay"] > 0


@pytest.mark.parametrize(
    ("name", "tokens", "parameters"),
    [("vit_small_patch16_224", 196, 21), ("vit_small_patch8_224", 784, 21), ("vit_base_patch16_224", 196, 85)],
)
def test_networks_have_the_tokens_and_parameters_of_table_8(name, tokens, parameters):
    """Table 8, whose 785 tokens of ViT-S/8 count a class token that the text says is not there."""
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=0, **TOKENS)
    assert network.pos_embed.shape[1] == tokens
    assert sum(p.numel() for p in network.parameters()) // 10**6 == parameters
