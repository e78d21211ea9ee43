"""Trainer, DataModule and method by hand, as in a notebook: the numbers of the command."""

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from fgssl import Backbone, DataModule, MaskCon, Method, Optim, Protocol, Retrieval, UserError
from fgssl.data.datasets import Digits
from fgssl.data.views import PairViews
from tests.cli.test_cli import fit, results, weights
from tests.methods.runs import assert_same_state

pytestmark = pytest.mark.slow

QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}


def digits(**options) -> DataModule:
    own = {"protocol": Protocol(label_fraction=0.05), "views": PairViews("digits", 32), "batch_size": 16}
    own |= {"num_workers": 0, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    return DataModule(Digits(), **(own | options))


def maskcon(**options) -> MaskCon:
    return MaskCon(
        backbone=Backbone("resnet18", options={"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}),
        tau=0.05, dim=64, hidden=128, memory=32, momentum=0.9, num_coarse=3, train_classes=list(range(10)),
        optim=Optim(name="adamw", lr=2e-3, warmup=1), **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory):
    """Trainer, method and data after two epochs with Lightning's own settings, checkpoint included."""
    seed_everything(0)
    data, method = digits(), maskcon()
    quiet = QUIET | {"enable_checkpointing": True, "default_root_dir": tmp_path_factory.mktemp("by_hand")}
    trainer = Trainer(max_epochs=2, log_every_n_steps=1, **quiet)
    trainer.fit(method, datamodule=data)
    return trainer, method, data


def test_fit_by_hand_gives_the_weights_of_the_command(run, by_hand):
    _, method, _ = by_hand
    assert_same_state(method.state_dict(), weights(run))


def test_test_by_hand_gives_the_metrics_of_the_command(run, by_hand):
    trainer, method, data = by_hand
    (metrics,) = trainer.test(method, datamodule=data, verbose=False)
    theirs = {name: value for name, value in results(run)["metrics"].items() if name.startswith("test/")}
    assert metrics["test/map"] == theirs["test/map"]
    own = {name for name in metrics if not name.endswith(("@50", "@100"))}  # the experiment asks for fewer
    assert {name: metrics[name] for name in own} == {name: theirs[name] for name in own}


def test_retrieval_that_is_given_is_used_alone(by_hand):
    _, method, data = by_hand
    (metrics,) = Trainer(callbacks=[Retrieval(ks=[3])], **QUIET).test(method, datamodule=data, verbose=False)
    assert "test/recall@3" in metrics
    assert "test/recall@1" not in metrics


def test_validation_by_hand_gives_metrics_after_lightnings_sanity_check():
    data = digits(protocol=Protocol(val_fraction=0.1, label_fraction=0.05))
    trainer = Trainer(max_epochs=1, enable_checkpointing=False, **QUIET)
    trainer.fit(maskcon(), datamodule=data)
    assert 0 < trainer.callback_metrics["val/recall@1"] <= 1


@pytest.mark.parametrize("source", ["command", "by hand"])
@pytest.mark.parametrize("cls", [MaskCon, Method])
def test_load_from_checkpoint_gives_the_method_and_its_arguments(source, cls, run, by_hand):
    trainer, method, _ = by_hand
    path = run if source == "command" else trainer.checkpoint_callback.best_model_path
    loaded = cls.load_from_checkpoint(path)
    assert type(loaded) is MaskCon
    assert (loaded.tau, loaded.optim.name, loaded.hparams["num_coarse"]) == (0.05, "adamw", 3)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.eval()(images), method.eval()(images))
    assert torch.equal(loaded(images), loaded.embed(images))


def test_load_from_checkpoint_of_another_method_is_refused(run):
    from fgssl import MLS

    with pytest.raises(UserError, match="is a checkpoint of MaskCon, but model is MLS"):
        MLS.load_from_checkpoint(run)
    with pytest.raises(UserError, match="momentum is 2"):
        MaskCon.load_from_checkpoint(run, momentum=2.0)


def test_a_loaded_method_is_trained_on(by_hand):
    trainer, _, data = by_hand
    again = MaskCon.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
    before = again.query.backbone.conv1.weight.clone()
    Trainer(max_epochs=1, enable_checkpointing=False, **QUIET).fit(again, datamodule=data)
    assert not torch.equal(before, again.query.backbone.conv1.weight)


def test_print_of_a_data_module_says_what_is_in_it():
    data = digits()
    assert "digits (official split): not read yet" in str(data)
    assert data.num_coarse == 3
    assert len(data.parts.train) == 69
    assert "69 training, 0 validation, 450 test images; batches of 16, 2 views of 32 px" in repr(data)


def test_loaders_without_their_data_module_are_refused(by_hand):
    _, method, data = by_hand
    with pytest.raises(UserError, match="Pass the data module"):
        Trainer(**QUIET).test(method, data.test_dataloader(), verbose=False)


def test_data_module_takes_the_normalisation_of_the_methods_weights(tmp_path):
    """timm's weights of test_resnet are normalised by 0.5; a mean that is given stands."""
    from fgssl import Frozen

    file = tmp_path / "start.pth"
    torch.save(Backbone("test_resnet").build().state_dict(), file)
    network = Frozen(Backbone("test_resnet", weights=str(file)))
    for given, expected in ((None, (0.5, 0.5, 0.5)), ((0.1, 0.2, 0.3), (0.1, 0.2, 0.3))):
        data = digits(mean=given, std=None, eval_size=32)
        Trainer(limit_test_batches=1, **QUIET).test(network, datamodule=data, verbose=False)
        assert tuple(data.mean) == expected
        assert tuple(data.std) == (0.5, 0.5, 0.5)


def test_a_checkpoint_without_arguments_takes_them_from_its_configuration(run, tmp_path):
    """As version 0.2.0 wrote it: class counts then come from the data set."""
    import fgssl

    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    for key in ("hyper_parameters", "class_path", "preprocessing"):
        del content[key]
    (tmp_path / "checkpoints").mkdir()
    torch.save(content, tmp_path / "checkpoints" / "last.ckpt")
    images = torch.randn(2, 3, 32, 32)
    loaded, expected = fgssl.load(tmp_path, device="cpu"), fgssl.load(run, device="cpu")
    assert torch.equal(loaded(images), expected(images))
    assert loaded.preprocessing == expected.preprocessing
