"""MoCo v2's format: a published file goes into our network, and our network comes out in it."""

import pytest
import torch
from torchvision.models import resnet50

from fgssl.cli.main import main
from fgssl.nn.backbones import Backbone
from fgssl.nn.heads import mlp
from fgssl.nn.moco import PREFIX, write_moco

pytestmark = pytest.mark.slow

TINY = {"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}


def published(path, network: torch.nn.Module, features: int = 2048) -> None:
    """A file as MoCo v2 writes it: both encoders, the queue, the optimiser, and an MLP in the place of fc."""
    network.fc = mlp(features, features, 128)
    state = {PREFIX + name: weight for name, weight in network.state_dict().items()}
    state |= {name.replace("encoder_q", "encoder_k"): torch.zeros_like(w) for name, w in state.items()}
    state |= {"module.queue": torch.zeros(128, 16), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.03, momentum=0.9).state_dict()
    torch.save({"epoch": 800, "arch": "resnet50", "state_dict": state, "optimizer": optimizer}, path)


def test_a_published_resnet50_gives_torchvisions_features(tmp_path):
    torch.manual_seed(0)
    theirs = resnet50().eval()
    published(tmp_path / "moco.pth.tar", theirs)
    theirs.fc = torch.nn.Identity()
    ours = Backbone("resnet50", pretrained=True, weights=str(tmp_path / "moco.pth.tar")).build().eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


def test_what_we_write_has_the_published_names_and_comes_back_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    network, head = Backbone("resnet18", options=TINY).build(), mlp(8, 8, 6)
    write_moco(tmp_path / "ours.pth.tar", network, head, "resnet18")
    file = torch.load(tmp_path / "ours.pth.tar", weights_only=True)
    assert file["arch"] == "resnet18"
    assert {PREFIX + n for n in ("conv1.weight", "layer1.0.bn1.running_var", "fc.0.weight", "fc.2.bias")} < set(
        file["state_dict"]
    )
    back = Backbone("resnet18", options=TINY, weights=str(tmp_path / "ours.pth.tar")).build()
    for name, weight in network.state_dict().items():
        assert torch.equal(back.state_dict()[name], weight), name


def test_command_line_exports_and_starts_from_it(tmp_path):
    network = ("--model.backbone.options", "{layers: [1, 1, 1, 1], channels: [4, 4, 8, 8]}")
    tiny = (
        "--config", "experiments/mls_digits.yaml", *network, "--data.protocol.label_fraction", "0.1",
        "--model.memory", "8", "--run.root", str(tmp_path), "--trainer.enable_progress_bar", "false",
        "--retrieval.grid", "0", "--trainer.enable_model_summary", "false",
    )  # fmt: skip
    assert main(["fit", *tiny, "--run.name", "run", "--trainer.max_steps", "1", "--trainer.max_epochs", "1"]) == 0
    run = tmp_path / "mls_digits" / "run"
    assert main(["export", "--ckpt_path", str(run), "--formats", "moco"]) == 0
    file = run / "export" / "moco.pth.tar"
    assert "module.encoder_q.fc.2.weight" in torch.load(file, weights_only=True)["state_dict"]
    assert main(["test", *tiny, "--run.name", "from", "--model.backbone.weights", str(file)]) == 0
    scores = [(tmp_path / "mls_digits" / name / "results.json").read_text() for name in ("run", "from")]
    ours, theirs = ([line for line in text.splitlines() if "test/map" in line] for text in scores)
    assert ours == theirs
