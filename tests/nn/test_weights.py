"""Starting weights from files: every known layout, made here from tiny networks, gives the network's own features."""

import re
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import BasicBlock

from fgssl.errors import UserError
from fgssl.methods.flsl import FLSL
from fgssl.nn.backbones import Backbone, of_any_size

RESNET = Backbone("resnet18", options={"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]})
VIT = Backbone("vit_tiny_patch16_224", options={"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 12})
SWIN = Backbone(
    "swin_tiny_patch4_window7_224",
    options={"embed_dim": 12, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2], "window_size": 2, "img_size": 64},
)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def dino(backbone: Backbone, seed: int = 0) -> dict:
    """A checkpoint as DINO writes it: the student in DistributedDataParallel, the teacher not, and the arguments."""
    torch.manual_seed(seed)
    student, teacher = (backbone.build().state_dict() for _ in range(2))
    head = {"head.mlp.0.weight": torch.zeros(4, 4), "head.last_layer.weight_g": torch.zeros(4, 1)}
    states = [{f"backbone.{name}": w for name, w in state.items()} | head for state in (student, teacher)]
    return {
        "student": {f"module.{name}": w for name, w in states[0].items()},
        "teacher": states[1],
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(0.1)}]},
        "epoch": 100,
        "args": Namespace(arch="vit_small", lr=0.0005, local_crops_scale=(0.05, 0.4), best=np.float32(0.5)),
        "dino_loss": {"center": torch.zeros(1, 4)},
    }


# ---- normalisation --------------------------------------------------------------------------------------------------


def test_normalisation_is_that_of_the_starting_weights(tmp_path):
    assert Backbone("tf_efficientnet_lite0").normalisation() is None  # random weights
    assert Backbone("tf_efficientnet_lite0", pretrained=True).normalisation() == HALF
    assert Backbone("resnet50", pretrained=True).normalisation() == IMAGENET
    plain = tmp_path / "plain.safetensors"
    save_file(RESNET.build().state_dict(), plain)
    assert Backbone("vit_small_patch16_224", weights=str(plain)).normalisation() == HALF
    assert Backbone("vit_small_patch16_224.dino", weights=str(plain)).normalisation() == IMAGENET
    torch.save(dino(VIT), tmp_path / "dino.pth")  # whatever timm's own weights of that name were trained on
    assert Backbone("vit_small_patch16_224", weights=str(tmp_path / "dino.pth")).normalisation() == IMAGENET


def test_a_run_of_ours_has_its_own_normalisation(tmp_path):
    torch.save(run_of_ours(), tmp_path / "last.ckpt")
    assert Backbone("resnet18", weights=str(tmp_path / "last.ckpt")).normalisation() == (
        (0.1, 0.2, 0.3),
        (0.4, 0.5, 0.6),
    )


# ---- layouts --------------------------------------------------------------------------------------------------------


def run_of_ours(student: dict | None = None, teacher: dict | None = None) -> dict:
    """A checkpoint as a method of ours writes it."""
    state = {f"query.backbone.{name}": w for name, w in (student or {}).items()}
    state |= {f"key.backbone.{name}": w for name, w in (teacher or {}).items()}
    data = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    return {
        "method": "CMD",
        "evaluates": "teacher",
        "pytorch-lightning_version": "2.6.0",
        "state_dict": state,
        "backbones": {"student": "query.backbone.", "teacher": "key.backbone."},
        "config": {"data": data},
    }


def classified(state: dict, name: str = "fc") -> dict:
    return state | {f"{name}.weight": torch.zeros(5, 8), f"{name}.bias": torch.zeros(5)}


def prefixed(state: dict, prefix: str) -> dict:
    return {prefix + name: weight for name, weight in state.items()}


def moco(student: dict, teacher: dict) -> dict:
    state = prefixed(classified(student), "module.encoder_q.") | prefixed(classified(teacher), "module.encoder_k.")
    return {"arch": "resnet50", "state_dict": state | {"module.queue": torch.zeros(4, 8)}}


def moco_v3(student: dict, teacher: dict) -> dict:
    state = prefixed(student, "module.base_encoder.") | prefixed(teacher, "module.momentum_encoder.")
    return {"state_dict": state | {"module.predictor.0.weight": torch.zeros(4, 4)}}


def timms_training(student: dict, teacher: dict) -> dict:
    args = Namespace(model="resnet18", lr=0.1)
    return {"state_dict": classified(student), "state_dict_ema": classified(teacher), "args": args, "metric": 76.1}


def torchvisions_training(student: dict, teacher: dict) -> dict:
    ema = prefixed(classified(teacher), "module.") | {"n_averaged": torch.tensor(7)}
    return {"model": classified(student), "model_ema": ema, "args": Namespace(model="resnet18"), "epoch": 1}


def esvit_resnet(student: dict, teacher: dict) -> dict:
    """A wrapper in a wrapper."""
    states = prefixed(student, "module.backbone.backbone."), prefixed(teacher, "backbone.backbone.")
    return {"student": states[0], "teacher": states[1]}


BOTH = {  # of files that hold a student and a teacher: the writer, and the network that its project evaluates
    "moco": (moco, "student"),
    "moco_v3": (moco_v3, "student"),
    "timm_training": (timms_training, "teacher"),
    "torchvision_training": (torchvisions_training, "teacher"),
    "esvit_resnet": (esvit_resnet, "teacher"),
    "ours": (run_of_ours, "teacher"),
}


def networks(backbone: Backbone) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Two with other weights, and with BatchNorm statistics that are not the initial ones."""
    torch.manual_seed(0)
    pair = backbone.build(), backbone.build()
    for network in pair:
        for name, buffer in network.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
    return pair


def features(network: torch.nn.Module, size: int = 32) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("asked", [None, "student", "teacher"])
@pytest.mark.parametrize("layout", BOTH)
def test_a_file_of_both_networks_gives_the_one_that_is_asked_for(layout, asked, tmp_path):
    student, teacher = networks(RESNET)
    write, default = BOTH[layout]
    torch.save(write(student.state_dict(), teacher.state_dict()), tmp_path / "file.pth")
    ours = replace(RESNET, weights=str(tmp_path / "file.pth"), weights_of=asked).build()
    expected = {"student": student, "teacher": teacher}[asked or default]
    assert torch.equal(features(ours), features(expected))


@pytest.mark.parametrize("asked", [None, "student", "teacher"])
@pytest.mark.parametrize("project", ["dino", "ibot", "flsl"])
def test_dino_ibot_and_flsl_give_the_network_that_is_asked_for(project, asked, tmp_path):
    options = {"class_token": False, "global_pool": "avg", "fc_norm": False} if project == "flsl" else {}
    vit = replace(VIT, options=VIT.options | options)
    content = dino(vit)
    if project == "ibot":
        content["student"]["module.backbone.masked_embed"] = torch.zeros(1, 12)
        content["teacher"]["backbone.masked_embed"] = torch.zeros(1, 12)
    torch.save(content, tmp_path / "file.pth")
    ours = replace(vit, weights=str(tmp_path / "file.pth"), weights_of=asked).build()
    prefix, entry = ("module.backbone.", "student") if asked == "student" else ("backbone.", "teacher")
    expected = vit.build()
    theirs = {n.removeprefix(prefix): w for n, w in content[entry].items() if n.startswith(prefix)}
    expected.load_state_dict(theirs, strict=project != "ibot")
    assert torch.equal(features(ours), features(expected))


def microsofts(state: dict) -> dict:
    """Microsoft's names of a Swin: a stage ends with the downsampling that timm's next one begins with."""
    renamed = {}
    for name, weight in state.items():
        stage = re.match(r"layers\.(\d)\.downsample", name)
        renamed[f"layers.{int(stage[1]) - 1}{name[8:]}" if stage else name] = weight
    index = {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.long)}
    return renamed | index | {"head.mlp.0.weight": torch.zeros(2, 2), "head_dense.mlp.0.bias": torch.zeros(2)}


@pytest.mark.parametrize("asked", [None, "student", "teacher"])
def test_esvits_swin_gives_the_network_that_is_asked_for(asked, tmp_path):
    student, teacher = networks(SWIN)
    content = {"student": prefixed(microsofts(student.state_dict()), "module."), "args": Namespace(arch="swin_tiny")}
    torch.save(content | {"teacher": microsofts(teacher.state_dict())}, tmp_path / "file.pth")
    ours = replace(SWIN, weights=str(tmp_path / "file.pth"), weights_of=asked).build()
    assert torch.equal(features(ours, 64), features(student if asked == "student" else teacher, 64))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_timms_state_dict_loads_without_its_classifier(suffix, tmp_path, caplog):
    path, state = tmp_path / f"file.{suffix}", classified(networks(RESNET)[0].state_dict())
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    with caplog.at_level("INFO"):
        ours = replace(RESNET, weights=str(path)).build()
    assert torch.equal(features(ours), features(networks(RESNET)[0]))
    assert f"{path}: 78 weights of timm or torchvision; left out: fc." in caplog.text


TV = {  # torchvision's network without its classifier, ours of the same sizes, and the side of an image
    "resnet": (
        lambda: torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1]),
        Backbone("resnet18", options={"layers": [1, 1, 1, 1]}),
        32,
    ),
    "vit": (
        lambda: torchvision.models.VisionTransformer(32, 8, 2, 3, 12, 48),
        replace(VIT, options=VIT.options | {"num_heads": 3}),
        32,
    ),
    "swin": (
        lambda: torchvision.models.SwinTransformer([4, 4], 12, [1, 2, 1, 1], [1, 1, 2, 2], [4, 4]),
        Backbone(
            "swin_tiny_patch4_window7_224",
            options=SWIN.options | {"depths": [1, 2, 1, 1], "window_size": 4, "img_size": 128},
        ),
        128,
    ),
    "convnext": (
        lambda: torchvision.models.ConvNeXt([CNBlockConfig(8, 12, 2), CNBlockConfig(12, 16, 1)] + LAST),
        Backbone("convnext_tiny", options={"depths": [2, 1, 1, 1], "dims": [8, 12, 16, 24]}),
        64,
    ),
    "efficientnet": (lambda: torchvision.models.efficientnet_b0(), Backbone("efficientnet_b0"), 64),
}  # fmt: skip
LAST = [CNBlockConfig(16, 24, 1), CNBlockConfig(24, None, 1)]


@pytest.mark.parametrize("family", TV)
def test_torchvisions_networks_give_torchvisions_features(family, tmp_path):
    make, backbone, size = TV[family]
    torch.manual_seed(0)
    theirs = make()
    torch.save(theirs.state_dict(), tmp_path / "file.pth")
    for name in ("fc", "heads", "head", *(["classifier"] if family == "efficientnet" else [])):
        if hasattr(theirs, name):
            setattr(theirs, name, torch.nn.Identity())
    if family == "convnext":
        theirs.classifier[2] = torch.nn.Identity()
    ours = replace(backbone, weights=str(tmp_path / "file.pth"))
    torch.testing.assert_close(features(ours.build(), size), features(theirs, size), rtol=1e-4, atol=1e-5)
    assert family == "resnet" or ours.normalisation() == IMAGENET


def test_a_simsiam_encoder_loads(tmp_path):
    student, _ = networks(RESNET)
    state = prefixed(classified(student.state_dict()), "module.encoder.") | {
        "module.predictor.0.weight": torch.zeros(2)
    }
    torch.save({"state_dict": state}, tmp_path / "file.pth")
    assert torch.equal(features(replace(RESNET, weights=str(tmp_path / "file.pth")).build()), features(student))


# ---- sizes ----------------------------------------------------------------------------------------------------------


def test_positions_of_another_size_are_interpolated_as_timm_does_and_said(tmp_path, caplog):
    content = dino(VIT)
    torch.save(content, tmp_path / "file.pth")
    larger = replace(VIT, weights=str(tmp_path / "file.pth"), options=VIT.options | {"img_size": 64})
    with caplog.at_level("INFO"):
        network = larger.build()
    expected = resample_abs_pos_embed(content["teacher"]["backbone.pos_embed"], [8, 8])
    assert torch.equal(network.pos_embed, expected)
    assert "interpolated: pos_embed" in caplog.text


def test_a_network_of_any_size_has_the_weights_and_reads_them_once(tmp_path, caplog):
    """What detectors and segmenters are built on."""
    content = dino(VIT)
    torch.save(content, tmp_path / "file.pth")
    with caplog.at_level("INFO"):
        network = of_any_size(replace(VIT, weights=str(tmp_path / "file.pth")))
    assert caplog.text.count("weights of DINO, iBOT or FLSL (teacher)") == 1
    assert torch.equal(network.pos_embed, content["teacher"]["backbone.pos_embed"])
    assert features(network, 48).shape == (2, 12)


def test_a_swins_other_window_is_interpolated_and_said(tmp_path, caplog):
    torch.save(SWIN.build().state_dict(), tmp_path / "file.pth")
    with caplog.at_level("INFO"):
        replace(SWIN, weights=str(tmp_path / "file.pth"), options=SWIN.options | {"window_size": 4}).build()
    assert "interpolated: layers.0.blocks.0.attn.relative_position_bias_table, " in caplog.text


def test_a_network_without_class_token_starts_from_one_with_it(tmp_path):
    content = dino(VIT)
    torch.save(content, tmp_path / "file.pth")
    tokens = {"class_token": False, "global_pool": "avg", "fc_norm": False}
    network = replace(VIT, weights=str(tmp_path / "file.pth"), options=VIT.options | tokens).build()
    assert torch.equal(network.pos_embed, content["teacher"]["backbone.pos_embed"][:, 1:])


def test_flsl_keeps_the_positions_of_its_starting_weights(tmp_path):
    """Without weights they are fixed sines and cosines."""
    content = dino(VIT)
    torch.save(content, tmp_path / "file.pth")
    tokens = {"class_token": False, "global_pool": "avg", "fc_norm": False, "dynamic_img_size": True}
    vit = replace(VIT, weights=str(tmp_path / "file.pth"), options=VIT.options | tokens)
    method = FLSL(vit, prototypes=4, hidden=4, bottleneck=4)
    assert torch.equal(method.student.backbone.pos_embed, content["teacher"]["backbone.pos_embed"][:, 1:])


def test_the_small_stem_begins_anew_and_everything_else_loads(tmp_path, caplog):
    large, _ = networks(RESNET)
    torch.save(large.state_dict(), tmp_path / "large.pth")
    with caplog.at_level("INFO"):
        small = replace(RESNET, small_input=True, weights=str(tmp_path / "large.pth")).build()
    assert small.conv1.weight.shape[-1] == 3
    assert "begin anew: conv1.weight" in caplog.text
    assert torch.equal(small.layer1[0].conv1.weight, large.layer1[0].conv1.weight)
    torch.save(small.state_dict(), tmp_path / "small.pth")
    again = replace(RESNET, small_input=True, weights=str(tmp_path / "small.pth")).build()
    assert torch.equal(again.conv1.weight, small.conv1.weight)


def test_files_older_than_num_batches_tracked_load(tmp_path):
    state = {n: w for n, w in networks(RESNET)[0].state_dict().items() if not n.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "file.pth")
    network = replace(RESNET, weights=str(tmp_path / "file.pth")).build()
    assert torch.equal(network.bn1.running_var, state["bn1.running_var"])


# ---- refusals -------------------------------------------------------------------------------------------------------


def refusal(path, content=None, backbone: Backbone = RESNET, whose=None) -> str:
    if content is not None:
        torch.save(content, path)
    with pytest.raises(UserError) as caught:
        replace(backbone, weights=str(path), weights_of=whose).build()
    return str(caught.value)


def test_a_file_that_fits_nothing_is_refused_with_the_two_nearest_layouts(tmp_path):
    deeper = replace(RESNET, options=RESNET.options | {"layers": [1, 1, 2, 1]}).build().state_dict()
    said = refusal(tmp_path / "deeper", moco(deeper, deeper))  # every weight of the shallow network is in it
    assert "Nearest layouts: MoCo v1 or v2 (student) (78 of 78 weights) and " in said
    assert "layer3.1.conv1.weight is not in the network" in said
    other = refusal(tmp_path / "other", {"model": VIT.build().state_dict()})
    assert "Nearest layout: torchvision's training script, " in other
    assert "(0 of 78 weights). In it, conv1.weight is missing" in other
    assert "pos_embed is not in the network" in other
    wider = refusal(tmp_path / "wider", replace(RESNET, options={"layers": [1, 1, 1, 1]}).build().state_dict())
    assert "layer1.0.conv1.weight is (64, 64, 3, 3) there and (4, 64, 3, 3) here" in wider


def test_torchvisions_families_with_other_names_are_named(tmp_path):
    state = {"features.0.0.weight": torch.zeros(1), "features.1.conv.0.0.weight": torch.zeros(1)}
    assert "torchvision's names that differ" in refusal(tmp_path / "mobilenet", state, Backbone("mobilenetv2_100"))


class Trap:
    """Creates a file when it is unpickled the ordinary way."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path):
    said = refusal(tmp_path / "hostile.pth", {"state_dict": {}, "args": Trap(tmp_path / "sprung")})
    assert "hostile.pth cannot be loaded safely" in said
    assert not (tmp_path / "sprung").exists()
    assert "cannot be loaded safely" in refusal(tmp_path / "whole_model.pth", RESNET.build())


def test_broken_files_are_named(tmp_path):
    assert "no file" in refusal(tmp_path / "absent.pth")
    assert "no checkpoint at" in refusal(tmp_path)  # a folder, and no run
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("not a checkpoint")
        assert f"{name} cannot be loaded safely" in refusal(tmp_path / name)
    torch.save(RESNET.build().state_dict(), tmp_path / "short.pth")
    (tmp_path / "short.pth").write_bytes((tmp_path / "short.pth").read_bytes()[:20_000])
    assert "short.pth cannot be loaded safely" in refusal(tmp_path / "short.pth")
    assert "holds a Tensor" in refusal(tmp_path / "tensor.pth", torch.zeros(3))
    assert "only epoch. Known layouts: timm" in refusal(tmp_path / "empty.pth", {"epoch": 3})
    assert "holds no teacher" in refusal(tmp_path / "plain.pth", RESNET.build().state_dict(), whose="teacher")
