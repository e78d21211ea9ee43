"""Batches as a method gets them: parts, workers, ranks, resume, bad images."""

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from fgssl.data.batch import Batch
from fgssl.data.datamodule import DataModule
from fgssl.data.datasets.cub import CUB
from fgssl.data.datasets.digits import Digits
from fgssl.data.datasets.folder import Folder
from fgssl.data.protocols import Protocol
from fgssl.data.views import MultiCrop, PairViews, SingleView
from fgssl.errors import UserError
from tests.trees import make_cub, write_image, write_lines

pytestmark = pytest.mark.filterwarnings("ignore:cub under")


def digits(**options) -> DataModule:
    """134 training images in eight batches of 16; recipe ``cars`` since its augmentation is the richest."""
    protocol = Protocol(label_fraction=0.1, val_fraction=options.pop("val_fraction", 0.0))
    options = {"views": PairViews("cars", 16), "batch_size": 16, "num_workers": 0, "seed": 3} | options
    return DataModule(Digits(), protocol, **options)


@pytest.fixture
def cub(tmp_path):
    """12 training and 12 test photographs of four species."""
    root = make_cub(tmp_path / "cub")

    def make(**options) -> DataModule:
        options = {"views": PairViews("cars", 16), "batch_size": 4, "num_workers": 0} | options
        return DataModule(CUB(str(root), partial=True), **options)

    return make


def finished(data: DataModule, loader) -> list[Batch]:
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(x, y)
        for a, b in zip(one, other, strict=True)
        for x, y in zip((*a.views, *a[1:]), (*b.views, *b[1:]), strict=True)
    )


# ---- what a batch holds ------------------------------------------------------------------------------------------


def test_a_training_batch(cub):
    data = cub(views=MultiCrop(size=24, local_size=8, local_crops=3))
    loader = data.train_dataloader()
    assert len(loader) == 3
    batch = next(iter(loader))
    assert [tuple(view.shape) for view in batch.views] == [(4, 3, 24, 24)] * 2 + [(4, 3, 8, 8)] * 3
    assert all(view.dtype == torch.uint8 for view in batch.views)
    index = data.parts.index
    assert np.array_equal(batch.fine, index.fine[batch.index])
    assert np.array_equal(batch.coarse, index.coarse[batch.index])
    assert set(batch.index.tolist()) <= set(data.parts.train.tolist())

    result = data.on_after_batch_transfer(batch, 0)
    assert all(view.dtype == torch.float32 for view in result.views)
    assert 0.3 < result.views[0].std() < 2
    again = data.on_after_batch_transfer(result, 0)
    assert again is result


def test_an_evaluation_batch_is_plain(cub):
    data = cub(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    batch = next(iter(data.test_dataloader()))
    assert batch.index.tolist() == data.parts.test[:4].tolist()
    assert (batch.draw == -1).all()
    raw = batch.views[0].clone()
    assert torch.allclose(data.on_after_batch_transfer(batch, 0).views[0], raw / 127.5 - 1, atol=1e-6)
    assert same(list(data.test_dataloader()), list(data.predict_dataloader()))


def test_counts_are_known_without_the_disk():
    data = DataModule(CUB("nowhere"))
    assert data.num_fine == 200
    with pytest.raises(UserError, match="not found"):
        data.setup("fit")


def test_images_without_a_label_are_of_no_training_class():
    data = digits()
    index = data.parts.index
    fine = np.where(np.isin(index.fine, [0, 3]), -1, index.fine)
    data._parts = replace(data.parts, index=replace(index, fine=fine))
    assert data.train_classes == [1, 2, 4, 5, 6, 7, 8, 9]


def test_evaluation_view_follows_its_three_options(cub):
    view = digits(eval_size=24, eval_resize=28, eval_resample="bicubic").eval_view
    assert (view.size, view.resize, view.resample) == (24, 28, "bicubic")
    assert digits().eval_view.resample == "bilinear"
    bilinear, bicubic = (
        next(iter(cub(eval_resample=mode).test_dataloader())).views[0] for mode in ("bilinear", "bicubic")
    )
    assert not torch.equal(bilinear, bicubic)


def test_evaluation_size():
    assert digits().eval_view.crops[0].size == 16
    assert digits(eval_size=24, eval_resize=28).eval_view.boxes((100, 50), np.ones((1, 24))) == [(28, 4, 71, 47)]


def test_description_counts_rows(cub):
    described = cub().describe()
    assert (described["train"]["images"], described["test"]["images"], described["unreadable"]) == (12, 12, 0)


def test_balanced_batches():
    batch = next(iter(digits(images_per_class=2).train_dataloader()))
    assert (np.unique(batch.fine, return_counts=True)[1] == 2).all()


# ---- the same batches, however they are made ---------------------------------------------------------------------


def test_workers_change_nothing(cub):
    alone, data = cub(), cub(num_workers=2)
    assert same(finished(alone, alone.train_dataloader()), finished(data, data.train_dataloader()))


def test_ranks_change_nothing(monkeypatch):
    one = digits()
    whole = finished(one, one.train_dataloader())
    parts = []
    for rank in range(2):
        data = digits()
        monkeypatch.setattr(data, "_rank_and_world", lambda rank=rank: (rank, 2))
        parts.append(finished(data, data.train_dataloader()))
    for batch, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(batch.index, torch.cat([first.index, second.index]))
        for view, *shares in zip(batch.views, first.views, second.views, strict=True):
            assert torch.allclose(view, torch.cat(shares), atol=1e-5)


def test_the_filling_pass_is_another_one():
    data = digits()
    filling, first = data.train_loader(epoch=-1), data.train_loader(epoch=0)
    draws = [torch.cat([batch.draw for batch in loader]) for loader in (filling, first)]
    assert not set(draws[0].tolist()) & set(draws[1].tolist())
    assert same(list(data.train_loader(epoch=-1)), list(filling))


def test_the_cache_gives_the_same_batches_for_small_images(cub, tmp_path):
    files, cached = cub(), cub(cache=str(tmp_path / "cache"))
    cached.setup("fit")
    assert same(list(files.train_dataloader()), list(cached.train_dataloader()))
    with pytest.raises(UserError, match="cache_side is 8, smaller than a view of 16"):
        cub(cache=str(tmp_path / "cache"), cache_side=8).setup("fit")


# ---- resume --------------------------------------------------------------------------------------------------------


class Recorder(LightningModule):
    """A tiny network that notes what it is shown."""

    def __init__(self, asks_early: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3 * 16 * 16, 2)
        self.seen: list[tuple] = []
        self.asks_early = asks_early

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, batch_idx, batch.index.tolist(), batch.draw.tolist()))
        return sum(self.layer(view.flatten(1)).square().mean() for view in batch.views)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert (batch.draw == -1).all()

    test_step = predict_step = validation_step

    def configure_optimizers(self):
        if self.asks_early:  # makes Lightning start the loaders before it has restored its progress
            assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(data: DataModule, module: Recorder, resume: Path | None = None, **options) -> Recorder:
    options = {"max_epochs": 3, "enable_checkpointing": "callbacks" in options, "num_sanity_val_steps": 0} | options
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(**quiet, **options)
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    for loop in (trainer.fit_loop, trainer.fit_loop.epoch_loop.val_loop):
        if loop._combined_loader is not None:  # where nothing was left to train, Lightning leaves workers behind
            loop._combined_loader.reset()
    return module


CHECKPOINTS = {
    "step": {"every_n_train_steps": 1},
    "epoch": {"save_on_train_epoch_end": True},
    "validation": {"save_on_train_epoch_end": False},
}


@pytest.mark.parametrize(
    ("when", "accumulate", "asks_early", "workers"),
    [("step", 1, False, 0), ("step", 2, True, 0), ("epoch", 1, False, 0), ("validation", 2, False, 0)]
    + [("step", 2, False, 2), ("validation", 1, True, 2)],
)
def test_a_resumed_run_sees_what_would_have_come(tmp_path, when, accumulate, asks_early, workers):
    options = {"accumulate_grad_batches": accumulate}
    keep = ModelCheckpoint(tmp_path, save_top_k=-1, **CHECKPOINTS[when])
    whole = fit(digits(val_fraction=0.2), Recorder(asks_early), callbacks=[keep], **options)
    per_epoch = len(whole.seen) // 3
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) >= 3
    for path in checkpoints[:: 4 if when == "step" else 1]:
        saved = torch.load(path, weights_only=True)["DataModule"]
        done = saved["epoch"] * per_epoch + saved["batch"]
        resumed = fit(digits(val_fraction=0.2, num_workers=workers), Recorder(asks_early), resume=path, **options)
        assert resumed.seen == whole.seen[done:]
        assert torch.equal(resumed.layer.weight, whole.layer.weight)


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    class Interrupt(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if len(module.seen) == 11:
                raise RuntimeError("power cut")

    whole = fit(digits(), Recorder())
    broken = Recorder()
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=3)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(digits(), broken, callbacks=[keep, Interrupt()])
    resumed = fit(digits(num_workers=2), Recorder(), resume=keep.best_model_path)
    assert broken.seen == whole.seen[:11]
    assert resumed.seen == whole.seen[9:]
    assert torch.equal(resumed.layer.weight, whole.layer.weight)


def test_persistent_workers_get_the_next_epochs_order():
    assert fit(digits(num_workers=2), Recorder()).seen == fit(digits(), Recorder()).seen


@pytest.mark.parametrize("images", [0, 1])
def test_a_data_set_without_test_images_is_said(images, monkeypatch):
    said, data = [], digits()
    monkeypatch.setattr("fgssl.data.datamodule.rank_zero_info", said.append)
    data._parts = replace(data.parts, test=data.parts.test[:images])
    data.test_dataloader()
    assert said == ["No test metrics: digits has no test images."] * (1 - images)


def test_images_in_memory_need_no_cache(tmp_path):
    next(iter(digits(cache=str(tmp_path / "cache")).train_loader(epoch=0)))
    assert not (tmp_path / "cache").exists()


# ---- bad input -----------------------------------------------------------------------------------------------------


def truncate(path: str) -> None:
    Path(path).write_bytes(Path(path).read_bytes()[:300])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_image_is_named_even_from_a_worker(cub, workers):
    data = cub(num_workers=workers)
    path = data.parts.index.paths[data.parts.train[5]]
    truncate(path)
    loader = data.train_dataloader()
    with pytest.raises(UserError) as caught:
        list(loader)
    assert str(caught.value).startswith(f"unreadable image: {path}")
    assert "Traceback" not in str(caught.value)
    if workers:
        loader._iterator._shutdown_workers()  # the garbage collector would wait five seconds for each


def test_a_test_image_that_is_not_there_is_named_before_training(cub):
    data = cub()
    path = Path(data.parts.index.paths[data.parts.test[5]])
    path.write_bytes(b"")
    with pytest.raises(UserError, match=f"unreadable image: {path}"):
        data.setup("fit")
    path.unlink()
    with pytest.raises(UserError, match=f"image not found: {path}"):
        data.setup("fit")
    data.setup("predict")
    data.trainer = Trainer(limit_test_batches=0, logger=False, accelerator="cpu")
    data.setup("fit")  # which reads no test image
    skipping = cub(on_error="skip")
    skipping.setup("fit")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_skipped_image_is_replaced_by_the_next_row_and_reported(cub, workers):
    data = cub(num_workers=workers, on_error="skip")
    bad, following = data.parts.train[5:7]
    path = data.parts.index.paths[bad]
    truncate(path)
    batches = list(data.train_dataloader())
    rows = torch.cat([batch.index for batch in batches]).tolist()
    assert sorted(rows) == sorted([*set(data.parts.train) - {bad}, following])
    assert np.array_equal(torch.cat([batch.fine for batch in batches]), data.parts.index.fine[rows])
    assert data.skipped() == [path]
    assert data.describe()["unreadable"] == 1
    with pytest.warns(UserWarning, match=f"1 unreadable images were replaced by the next row: {path}"):
        fit(cub(num_workers=workers, on_error="skip"), Recorder(), max_epochs=1)


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_skipped_images_are_reported_after_an_evaluation_and_are_no_test_images(cub, command):
    data = cub(on_error="skip", protocol=Protocol(val_fraction=0.5))
    bad = (data.parts.val if command == "validate" else data.parts.test)[[0, 3]]
    paths, complete = data.parts.index.paths[bad], data.describe()
    for path in paths:
        truncate(path)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(enable_checkpointing=False, **quiet)
    with pytest.warns(UserWarning, match=f"2 unreadable images were replaced by the next row: {paths[0]}, {paths[1]}$"):
        getattr(trainer, command)(Recorder(), datamodule=data)
    described = data.describe()
    assert described["unreadable"] == 2
    assert described["train"] == complete["train"]
    assert described["test"]["images"] == (12 if command == "validate" else 10)
    assert (described["test"] == complete["test"]) == (command == "validate")


@pytest.mark.parametrize("count", [3, 4])
def test_three_unreadable_images_are_named(cub, count):
    data = cub(num_workers=0, on_error="skip")
    paths = data.parts.index.paths[np.sort(data.parts.train)[:count]].tolist()
    for path in paths:
        truncate(path)
    named = re.escape(", ".join(paths[:3]) + ", ..." * (count > 3))
    with pytest.warns(
        UserWarning, match=f"{count} unreadable images were replaced by the next row: {named}$"
    ) as caught:
        fit(data, Recorder(), max_epochs=1)
    assert sum("unreadable images" in str(line.message) for line in caught) == 1


def test_no_readable_image_at_all(cub):
    data = cub(on_error="skip")
    for path in data.parts.index.paths:
        truncate(path)
    with pytest.raises(UserError, match="none of the 12 images can be read"):
        next(iter(data.train_dataloader()))


def test_a_batch_larger_than_the_training_set_is_said_before_training(cub):
    with pytest.raises(UserError, match="batch_size is 13, and there are 12 training images"):
        fit(cub(batch_size=13, views=SingleView(16)), Recorder())


def test_images_of_a_test_part_alone_are_evaluated_and_not_trained(tmp_path):
    for number in range(4):
        write_image(tmp_path / f"{number}.jpg", number)
    cells = (f"{number}.jpg,{number % 2},test" for number in range(4))
    write_lines(tmp_path / "list.csv", ["path,label,part", *cells])
    data = DataModule(Folder(str(tmp_path / "list.csv")), views=PairViews("cars", 16), batch_size=2, num_workers=0)
    for command in ("test", "predict"):
        data.setup(command)
    assert data.train_classes == []
    assert data.describe()["test"]["images"] == 4
    assert sum(len(batch.index) for batch in data.test_dataloader()) == 4
    for refused in (lambda: data.setup("fit"), data.gallery_loader):
        with pytest.raises(UserError, match="folder: protocol 'official' leaves no training image"):
            refused()


def test_a_worker_outlives_a_sigterm_that_its_own_process_did_not_send():
    """A cluster ends a job by sending it to all processes; the workers serve on until the checkpoint is written."""
    loader = digits(batch_size=16, num_workers=1, prefetch=1).train_loader(epoch=0)
    batches = iter(loader)
    next(batches)
    worker = loader._iterator._workers[0]
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    assert len(list(batches)) == len(loader) - 1
    assert worker.is_alive()
    del batches
    worker.terminate()
    worker.join(timeout=1200)
    assert not worker.is_alive()


def test_a_worker_ends_by_itself(monkeypatch):
    loader = digits(batch_size=16, num_workers=1, prefetch=1).train_loader(epoch=0)
    batches = iter(loader)
    next(batches)
    worker, ended_by_the_loader = loader._iterator._workers[0], []
    terminate = worker.terminate
    monkeypatch.setattr(worker, "terminate", lambda: ended_by_the_loader.append(True) or terminate())
    loader._iterator._shutdown_workers()  # waits some seconds for the worker, then ends it
    assert not ended_by_the_loader
