"""Parts of a user's own package: a network that timm does not build, a data module, a sampler, an optimiser."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import fgssl
from fgssl.callbacks.queue import enqueue
from fgssl.cli.main import main
from fgssl.data.samplers import TrainSampler
from fgssl.errors import UserError
from fgssl.methods.base import Method, StepResult
from tests.methods.runs import results
from tests.methods.test_own_method import SHORT

HERE = "tests.methods.test_own_parts"
DIGITS = (*SHORT[2:], "--data.dataset", "Digits", "--data.views.recipe", "digits", "--data.views.size", "16")


class Convolution(nn.Module):
    """One convolution: ``forward_features`` and ``num_features`` of timm's interface, without ``forward_head``."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.num_features = width
        self.layer = nn.Conv2d(3, width, 3, stride=2)

    def forward_features(self, images):
        return self.layer(images).relu()

    def forward(self, images):
        return self.forward_features(images).mean(dim=(2, 3))


class Sorted(TrainSampler):
    """The images by label in the first ``until`` epochs."""

    def __init__(self, labels, batch_size, *, until, **options):
        super().__init__(len(labels), batch_size, **options)
        self.labels, self.until = labels, until

    def order(self, epoch):
        shuffled = np.random.default_rng([self.seed, epoch + 1]).permutation(self.images)
        return shuffled[np.argsort(self.labels[shuffled], kind="stable")] if epoch < self.until else shuffled


class SortedData(fgssl.DataModule):
    """Data module with a sampler of its own.

    Args:
        until: epochs in the order of the labels.
    """

    def __init__(self, *args, until: int = 1, **options):
        super().__init__(*args, **options)
        self.until = until

    def train_sampler(self, **options):
        labels = self.parts.index.fine[self.parts.train]
        return Sorted(labels, self.batch_size, until=self.until, **options)


class Own(Method):
    """Contrastive loss of a network that is an argument, with an optimiser of torch."""

    data_module = SortedData
    views_needed = (2, 2)

    def __init__(self, network: nn.Module, **base):
        super().__init__(**base)
        self.network = network
        self.labels_seen = []

    def embed(self, images):
        return self.network(images)

    def step(self, batch):
        self.labels_seen += batch.fine.tolist()
        x_BF, y_BF = (F.normalize(self.network(view), dim=1) for view in batch.views)
        return StepResult(F.cross_entropy(x_BF @ y_BF.T / 0.1, torch.arange(len(x_BF))))

    def configure_optimizers(self):
        return torch.optim.Adagrad(self.parameters(), lr=0.01)


class OwnData(fgssl.SimCLR):
    """SimCLR with a data module of the user's own."""

    data_module = SortedData


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fit(method: str, *flags: str) -> int:
    return main(["fit", "--model", f"{HERE}.{method}", *DIGITS, "--run.experiment", "own", "--run.name", "a", *flags])


def test_own_network_and_optimiser_train_resume_and_are_exported(folder, capsys):
    assert fit("Own", "--model.network", f"{HERE}.Convolution", "--model.network.width", "4") == 0
    assert main(["fit", "--ckpt_path", "runs/own/a", "--trainer.max_epochs", "2"]) == 0
    assert results(folder / "runs" / "own" / "a")["epochs"] == 2
    assert main(["export", "--ckpt_path", "runs/own/a"]) == 0  # by default what such a network can be written as
    assert not (folder / "runs" / "own" / "a" / "export" / "model.safetensors").exists()
    assert fgssl.load("runs/own/a/export").embed([np.zeros((16, 16, 3), np.uint8)]).shape == (1, 4)
    assert main(["export", "--ckpt_path", "runs/own/a", "--formats", "timm", "--out", "x"]) == 2
    assert "Convolution was not built by timm. Take --formats torch" in capsys.readouterr().err
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save("photo.png")
    assert main(["maps", "gradcam", "photo.png", "--ckpt_path", "runs/own/a"]) == 2
    assert "Convolution lacks forward_head" in capsys.readouterr().err


def test_own_data_module_orders_the_batches_and_the_probe_leaves_its_options(folder, capsys):
    flags = ("--model.backbone.options", SHORT[1], "--model.optim.warmup", "0", "--data.until", "2")
    assert fit("OwnData", *flags) == 0
    assert main(["probe", "--ckpt_path", "runs/own/a", "--augment", "false", "--blocks", "1", *SHORT[-10:]]) == 0
    assert "Not used by the probe: data.until" in capsys.readouterr().out


def test_own_sampler_gives_its_order():
    data = SortedData(fgssl.Digits(), views=fgssl.PairViews("digits", 16), batch_size=64, num_workers=0)
    labels = torch.cat([batch.fine for batch in data.train_dataloader()])
    assert labels.tolist() == sorted(labels.tolist())


def test_name_of_a_memory_that_is_not_there_is_answered_with_the_names():
    method = Method()
    method.queue = fgssl.Memory(4, 2)
    with pytest.raises(UserError, match="by the name 'quue', but its memories are: queue"):
        enqueue(method, {"quue": (torch.zeros(1, 2), torch.zeros(1), torch.zeros(1))})


@pytest.mark.parametrize("part", ["step(batch)", "embed(images)", "prefill(batch)", "teacher_momentum(step, total)"])
def test_part_of_the_interface_that_is_not_written_is_named(part):
    class Empty(Method):
        pass

    name = part.partition("(")[0]
    with pytest.raises(UserError, match="Empty needs a method") as error:
        getattr(Empty(), name)(*range(part.count(",") + 1))
    assert part in str(error.value)
