"""trainer.compile and trainer.channels_last: the same numbers, the same names, no graph breaks."""

import copy
import shutil

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from fgssl.cli.main import main
from fgssl.errors import UserError
from fgssl.methods.maskcon import MaskCon
from fgssl.nn.backbones import Backbone
from fgssl.nn.compiled import compile_network, compile_networks, to_channels_last
from fgssl.nn.teacher import ema_update, teacher_of
from tests.methods.runs import arguments, losses, results, state
from tests.tiny import BACKBONE
from tests.trust.callbacks import Settings

SWIN = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "strict_img_size": False}
VIT = {"embed_dim": 16, "depth": 1, "num_heads": 2, "img_size": 32, "patch_size": 8, "dynamic_img_size": True}
NETWORKS = {
    "resnet18": BACKBONE,
    "swin": Backbone("swin_tiny_patch4_window7_224", options=SWIN),
    "vit": Backbone("vit_tiny_patch16_224", options=VIT),
    "convnext": Backbone("convnext_atto", options={"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}),
}
CALLS = {  # the ways in which the methods call a network
    "forward": lambda network, images: network(images),
    "features": lambda network, images: network.forward_features(images),
    "maps": lambda network, images: network.forward_intermediates(images, indices=[-1], intermediates_only=True)[0],
}
TRACED = [*(("resnet18", call) for call in CALLS), ("swin", "features"), ("vit", "forward"), ("convnext", "maps")]


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name].build()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "call"), TRACED)
def test_compiled_network_computes_the_same_without_graph_breaks(name, call):
    images, found = torch.randn(2, 3, 32, 32), []
    plain, compiled = build(name), build(name)
    compile_network(compiled, backend="aot_eager" if name == "vit" else "eager")  # aot: the backward pass is traced too
    for network in (plain, compiled):
        torch.manual_seed(1)  # of the stochastic depth
        found.append(CALLS[call](network, images))
        found[-1].square().mean().backward()
    torch.testing.assert_close(*found)
    for ours, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_deep_copy_is_compiled_with_weights_of_its_own_and_ema_moves_it():
    student = build("resnet18").eval()
    compile_network(student, backend="eager")
    teacher, images = teacher_of(student), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = student(images)
        assert torch.equal(teacher(images), before)
        for weight in student.parameters():
            weight.mul_(1.5)
        assert torch.equal(teacher(images), before)
        assert not torch.allclose(student(images), before)
        ema_update(student, teacher, 0.0)
        assert torch.equal(teacher(images), student(images))
    assert type(teacher) is type(student)


def test_names_of_weights_stay_and_compiling_twice_changes_nothing():
    network = build("resnet18")
    names = list(network.state_dict())
    compile_network(network, backend="eager")
    kind = type(network)
    compile_network(network, backend="eager")
    assert type(network) is kind
    assert list(network.state_dict()) == names
    assert isinstance(network, type(build("resnet18")))


def test_student_and_teacher_of_a_method_are_compiled():
    method = MaskCon(BACKBONE, num_coarse=2, memory=8)
    compile_networks(method, backend="eager")
    assert {type(network).__name__ for network in method.backbones().values()} == {"CompiledResNet"}


def test_method_without_a_timm_network_is_refused():
    with pytest.raises(UserError, match="trainer.compile: Linear has no timm network"):
        compile_networks(nn.Linear(2, 2))


@pytest.mark.parametrize(
    "options", [{"mode": "max-autotune"}, {"mode": "reduce-overhead"}, {"options": {"triton.cudagraphs": True}}]
)
def test_cuda_graphs_are_refused(options):
    with pytest.raises(UserError, match="results of CUDA graphs are overwritten.*max-autotune-no-cudagraphs"):
        compile_networks(build("resnet18"), **options)


@pytest.mark.parametrize("mode", ["default", "max-autotune-no-cudagraphs"])
def test_other_modes_compile(mode):
    network = build("resnet18")
    compile_networks(network, mode=mode)
    assert type(network).__name__ == "CompiledResNet"


def test_channels_last_maps_come_out_channels_last_with_the_same_values():
    plain, ours = build("resnet18").eval(), build("resnet18").eval()
    to_channels_last(ours)
    images = torch.randn(2, 3, 32, 32)
    expected, found = (network.forward_features(images) for network in (plain, ours))
    assert not expected.is_contiguous(memory_format=torch.channels_last)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected)
    theirs = copy.deepcopy(ours)
    with torch.no_grad():
        ema_update(plain, theirs, 0.5)
    torch.testing.assert_close(theirs.conv1.weight, plain.conv1.weight)


# ---- whole runs -----------------------------------------------------------------------------------------------------


def fit(tmp_path, name: str, *flags: str):
    assert main(arguments("maskcon", tmp_path, name, "--trainer.max_epochs", "1", *flags)) == 0
    return tmp_path / "maskcon" / name


def assert_close(ours: dict, theirs: dict) -> None:
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.slow
def test_options_act_and_a_compiled_run_trains_resumes_and_exports_as_a_plain_one(tmp_path):
    """Backend eager: the network is traced, and run by the kernels of the plain one."""
    compiled = ("--trainer.compile", "{backend: eager}", "--trainer.precision", "64-true")
    watch = ("--trainer.callbacks", "tests.trust.callbacks.Settings")
    plain = fit(tmp_path, "plain", "--trainer.precision", "64-true", *watch)
    assert Settings.seen == {"network": "ResNet", "channels_last": False, "benchmark": False}
    benchmark = torch.backends.cudnn.benchmark
    try:
        ours = fit(tmp_path, "compiled", *compiled, *watch, "--trainer.benchmark", "true")
    finally:
        torch.backends.cudnn.benchmark = benchmark
    assert Settings.seen == {"network": "CompiledResNet", "channels_last": False, "benchmark": True}
    fit(tmp_path, "last", "--trainer.channels_last", "true", *watch, "--trainer.limit_train_batches", "1")
    assert Settings.seen == {"network": "ResNet", "channels_last": True, "benchmark": benchmark}

    assert_close(state(ours), state(plain))
    assert results(ours)["metrics"]["test/recall@1"] == results(plain)["metrics"]["test/recall@1"]

    # the checkpoint of the compiled run goes on without compiling, and the other way round; a compiled run exports
    fit(tmp_path, "compiled", "--trainer.precision", "64-true", "--trainer.max_epochs", "2", "--run.resume", "true")
    fit(tmp_path, "plain", *compiled, "--trainer.max_epochs", "2", "--run.resume", "true")
    assert [step for step, _ in losses(ours)] == [str(step) for step in range(16)]
    assert_close(state(ours), state(plain))
    assert (
        main(["export", "--ckpt_path", str(plain), "--formats", "timm", "torch", "--out", str(tmp_path / "out")]) == 0
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler: no g++ here")
def test_inductor_compiles_a_network():
    """Forward alone: its compiler takes seconds a kernel."""
    network, images = build("vit").eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = network(images)
        compile_network(network)
        torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-5)
