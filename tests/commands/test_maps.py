"""fgssl maps: activated instances and GradCAM. The kinds of ViTs are tested with FLSL."""

import runpy
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fgssl.cli.command_parser import picture
from fgssl.cli.main import main
from fgssl.commands.maps import Net, activated, gradcam, load, name_of, network_of
from fgssl.commands.networks import parse_network
from fgssl.errors import UserError
from fgssl.methods.cmd import CMD
from fgssl.methods.maskcon import MaskCon
from fgssl.nn.feature_map import last_features
from fgssl.tasks.frozen import Frozen
from tests.methods.runs import arguments
from tests.methods.test_cmd_method import method_of
from tests.tiny import BACKBONE

pytestmark = pytest.mark.slow

EVIDENCE = Path(__file__).parents[2] / "experiments" / "evidence"
AGREEMENT = runpy.run_path(str(EVIDENCE / "map_agreement.py"))


@pytest.fixture(scope="module")
def cmd() -> CMD:
    method = method_of().float().eval()
    method.centers["region"].value.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    return method


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def maskcon() -> MaskCon:
    torch.manual_seed(0)
    return MaskCon(BACKBONE, memory=4, dim=4, hidden=4, num_coarse=2).eval()


def test_the_network_that_is_asked_for(cmd, maskcon):
    assert network_of(cmd, None).backbone is cmd.teacher.backbone  # what its evaluation sees
    assert network_of(cmd, "student").backbone is cmd.student.backbone
    assert network_of(maskcon, None).backbone is maskcon.query.backbone
    assert network_of(maskcon, "teacher").backbone is maskcon.key.backbone
    with pytest.raises(UserError, match="Frozen has no teacher backbone"):
        network_of(Frozen(BACKBONE), "teacher")


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_activated_instances_are_the_region_heads_posterior(cmd, images, whose):
    networks = getattr(cmd, whose)
    with torch.no_grad():
        logits = networks.heads["region"](networks.features([images])[0].patches)
    centred = (logits - cmd.centers["region"].value) / 0.07 if whose == "teacher" else logits / 0.1
    p_BTK = centred.softmax(-1)
    for (panels,), p_TK in zip(activated(network_of(cmd, whose), images), p_BTK, strict=True):
        largest = p_TK.mean(0).argsort(descending=True)[:3]
        frames, *heats = panels
        np.testing.assert_array_equal(frames.marked_HW.ravel(), (p_TK.argmax(1) == largest[0]).numpy())
        for panel, prototype in zip(heats, largest, strict=True):
            assert panel.heat_HW.shape == (4, 4)
            np.testing.assert_allclose(panel.heat_HW.ravel(), p_TK[:, prototype].numpy(), rtol=1e-4)


def test_a_run_is_named_with_its_experiment(tmp_path):
    """Two runs of the name ``first`` are told apart."""
    (tmp_path / "cmd_cub" / "first").mkdir(parents=True)
    args = Namespace(model=None, ckpt_path=str(tmp_path / "cmd_cub" / "first"))
    assert name_of(args) == "cmd_cub/first"
    assert name_of(Namespace(model=None, ckpt_path="absent/weights.ckpt")) == "weights.ckpt"


def test_only_a_method_with_prototypes_has_activated_instances(maskcon, images):
    with pytest.raises(UserError, match="MaskCon has no prototypes"):
        activated(network_of(maskcon, None), images)


def test_gradcam_without_a_head_is_the_likeness_to_the_pooled_feature(maskcon, images):
    """For the score |f|^2 / 2, where f is the mean of the map, the channel weights are f / HW."""
    net = network_of(maskcon, None)
    with torch.no_grad():
        pooled_BF, map_BFHW = last_features(net.backbone, images)
    expected = (pooled_BF[:, :, None, None] * map_BFHW).sum(1).relu() / map_BFHW[0, 0].numel()
    for ((panel,),), heat in zip(gradcam(net, images), expected, strict=True):
        np.testing.assert_allclose(panel.heat_HW, heat.numpy(), rtol=1e-4, atol=1e-7)


def test_gradcam_is_of_the_most_probable_prototype(cmd, images):
    net = network_of(cmd, "teacher")
    ((first,), _) = gradcam(net, images)
    features = net.backbone.forward_features(images.requires_grad_())
    logits = cmd.teacher.heads["image"](net.backbone.forward_head(features, pre_logits=True))
    (slope,) = torch.autograd.grad(logits[0].max(), features)
    heat = (slope[0].mean((1, 2), keepdim=True) * features[0]).sum(0).relu().detach()
    np.testing.assert_allclose(first[0].heat_HW, heat.numpy(), rtol=1e-4, atol=1e-7)


def test_a_gradcam_that_is_0_everywhere_says_so(maskcon, images):
    """A logit that each feature lowers; the map of a ResNet has no negative feature."""
    falling = Namespace(teacher=Namespace(heads={"image": lambda f_BF: -f_BF}), centers={"image": Namespace(value=0)})
    for ((panel,),) in gradcam(Net(falling, maskcon.key.backbone, "teacher"), images):
        assert panel.title == "GradCAM: 0 everywhere"
        assert not panel.heat_HW.any()
    assert gradcam(network_of(maskcon, "teacher"), images)[0][0][0].title == "GradCAM"


def test_out_has_to_be_a_picture_and_its_folder_is_made(tmp_path, capsys):
    assert main(["maps", "gradcam", "bird.jpg", "--out", str(tmp_path / "found.txt")]) == 2
    assert "found.txt is no picture: it must end in .png," in capsys.readouterr().err
    assert picture(str(tmp_path / "new" / "maps.png")).parent.is_dir()


def test_maps_of_a_run(tmp_path, capsys):
    quick = ("--trainer.max_steps", "1", "--trainer.limit_test_batches", "1")
    assert main(arguments("cmd", tmp_path, "run", *quick)) == 0
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    run, image, out = str(tmp_path / "cmd" / "run"), str(tmp_path / "a.png"), tmp_path / "out.png"
    widths = []
    for kind in ("activated", "gradcam"):
        assert main(["maps", kind, "--ckpt_path", run, image, image, "--out", str(out)]) == 0
        widths.append(Image.open(out).width)
    assert widths[0] > widths[1]  # 1 + 4 pictures, 1 + 1
    assert main(["maps", "gradcam", "--ckpt_path", run, str(tmp_path / "none.png")]) == 2
    assert "image not found" in capsys.readouterr().err


def test_maps_at_another_size(tmp_path, capsys):
    """More patches of a CNN's run, and of a ViT that takes one size alone; the part of the photograph stays."""
    assert main(arguments("cmd", tmp_path, "run", "--trainer.max_steps", "1", "--data.eval_resize", "36")) == 0
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    run, image, vit = str(tmp_path / "cmd" / "run"), str(tmp_path / "a.png"), parse_network("timm/test_vit")
    vit.pretrained = "false"
    for args, size, scale in ((parse_network(run), 64, 2), (vit, 320, 2)):
        (net, view, small), (wide, larger, large) = load(args, [image]), load(args, [image], size)
        assert large.shape[-1] == size == scale * small.shape[-1]
        assert larger.resize / larger.size == pytest.approx(view.resize / view.size, rel=0.02)
        coarse, fine = (gradcam(*seen)[0][0][0].heat_HW for seen in ((net, small), (wide, large)))
        assert fine.shape == tuple(scale * side for side in coarse.shape)
    capsys.readouterr()
    refused = ["maps", "gradcam", image, "--model", "timm/test_vit", "--pretrained", "false", "--data.eval_size", "100"]
    assert main(refused) == 2
    assert "100 px, is no multiple of a patch, 16 px" in capsys.readouterr().err


def test_maps_correlate_image_by_image_without_constant_ones():
    one_NP = np.array([[0.0, 1, 2, 5], [3, 0, 0, 1], [0, 0, 0, 0], [1, 2, 3, 4]])
    other_NP = np.array([[1.0, 3, 5, 11], [-3, 0, 0, -1], [1, 2, 3, 4], [7, 7, 7, 7]])
    assert AGREEMENT["correlation"](one_NP, one_NP) == pytest.approx(1)
    assert AGREEMENT["correlation"](one_NP, other_NP) == pytest.approx((1 - 1) / 2, abs=1e-12)


def test_maps_of_a_run_agree_with_themselves(tmp_path, monkeypatch, capsys):
    assert main(arguments("cmd", tmp_path, "run", "--trainer.max_steps", "1")) == 0
    run = str(tmp_path / "cmd" / "run")
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["map_agreement", f"one={run}", f"same={run}"])
    AGREEMENT["main"]()
    *_, last = capsys.readouterr().out.splitlines()
    assert last.split() == ["one", "and", "same", "1.00", "100.0"]
