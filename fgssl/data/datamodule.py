"""Data module of the methods: batches of views of a data set, by a protocol."""

import os
import re
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fgssl.data.augment import Channels, augment, normalise
from fgssl.data.batch import Batch, empty_images
from fgssl.data.cache import SIDE, Cache, open_cache
from fgssl.data.datasets.base import DataSet
from fgssl.data.images import open_image, open_row
from fgssl.data.index import Index
from fgssl.data.normalisation import Trained, normalisation
from fgssl.data.preprocessing import Preprocessing
from fgssl.data.protocols import NO_ROWS, Parts, Protocol
from fgssl.data.samplers import ClassBalanced, EvalShard, Shuffled, TrainSampler
from fgssl.data.views import ContrastiveCrop, EvalView, PairViews, Views, views_of_row
from fgssl.data.workers import workers_of_process
from fgssl.distributed import is_distributed, mean_over_ranks, wait_for_all_ranks
from fgssl.errors import UserError, at_least

SLOTS = 2**15  # the row that each worker process reads is kept at its process number modulo SLOTS


class Images(Dataset):
    """Data set whose items are whole batches: positions and draws in, a uint8 Batch out.

    Args:
        index: images and labels of the data set.
        rows: [n] int64 rows of ``index``; a position is an index into them.
        views: views of each image.
        seed: seed of the random views.
        on_error: ``error`` or ``skip``, see DataModule.
        unreadable: [N] bool, shared between processes; marks the rows that were skipped.
        reading: [SLOTS] int64, shared between processes; the row that each worker process is reading.
        cache: decoded images to read instead of the files; None: read the files.
        objects: [N, 4] float64, shared between processes; box of the object in each image, for ContrastiveCrop. None:
            the views need none.
    """

    def __init__(
        self,
        index: Index,
        rows: np.ndarray,
        views: Views,
        seed: int,
        on_error: Literal["error", "skip"],
        unreadable: Tensor,
        reading: Tensor,
        cache: Cache | None = None,
        objects: Tensor | None = None,
    ):
        self.index, self.rows, self.views, self.seed, self.objects = index, rows, views, seed, objects
        self.on_error, self.unreadable, self.reading, self.cache = on_error, unreadable, reading, cache

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, pairs: np.ndarray) -> Batch | UserError:
        """Read a batch of [B, 2] (position, draw) pairs.

        Returns:
            A uint8 Batch, or the UserError that stopped it: an exception raised in a worker process would be wrapped in
            its traceback.
        """
        positions, draws = pairs.T
        numbers = self.views.numbers(self.seed, draws)
        batch = [empty_images((len(pairs), 3, c.size, c.size), np.uint8) for c in self.views.crops]
        rows = np.empty_like(positions)
        for i, position in enumerate(positions):
            try:
                rows[i], views = self._read(position, numbers[i])
            except UserError as error:
                return error
            for view_B3HW, view in zip(batch, views, strict=True):
                view_B3HW[i] = view
        coarse = np.full(len(rows), -1) if self.index.coarse is None else self.index.coarse[rows]
        labels = (torch.from_numpy(column) for column in (self.index.fine[rows], coarse, rows, draws.copy()))
        return Batch(batch, *labels)

    def _read(self, position: int, numbers: np.ndarray) -> tuple[int, list[Tensor]]:
        """The row at ``position`` and its views; the next readable row where it is unreadable and may be skipped."""
        for step in range(len(self.rows)):
            row = int(self.rows[(position + step) % len(self.rows)])
            self.reading[os.getpid() % SLOTS] = row
            try:
                return row, self._views(row, numbers)
            except UserError:
                if self.on_error == "error":
                    raise
                self.unreadable[row] = True
        raise UserError(f"{self.index.name}: none of the {len(self.rows)} images can be read.")

    def _views(self, row: int, numbers: np.ndarray) -> list[Tensor]:
        image_3HW, views = self._decoded(row), views_of_row(self.views, self.objects, row)
        if image_3HW is None:
            with open_row(self.index, row) as file:
                return views.read(file, numbers)
        boxes = views.boxes((image_3HW.shape[2], image_3HW.shape[1]), numbers)
        return views.cut(image_3HW, boxes, numbers)

    def _decoded(self, row: int) -> Tensor | None:
        """[3, H, W] uint8 from memory or the cache; None where the file has to be read."""
        if self.index.pixels is not None:
            return torch.from_numpy(self.index.pixels[row]).permute(2, 0, 1)
        return self.cache.image(row) if self.cache is not None else None


class Loader:
    """DataLoader whose items are whole batches; raises the UserError that a worker process returns.

    No subclass of DataLoader: with several processes, and to predict, Lightning replaces the sampler of those.

    Attributes:
        waited: seconds that ``next`` has taken since the loader was made, over all passes.
    """

    def __init__(self, dataset: Images, sampler: Sampler, **options: Any):
        self.dataset = dataset
        self.sampler, self.batch_sampler = sampler, None  # Lightning reads both, and sets the sampler's epoch
        self.loader = DataLoader(dataset, sampler=sampler, batch_size=None, worker_init_fn=_outlive_signals, **options)
        self.waited = 0.0

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def _iterator(self):
        """The DataLoader's iterator, through which Lightning ends the worker processes after a fit or a test."""
        return self.loader._iterator

    @_iterator.setter
    def _iterator(self, iterator) -> None:
        self.loader._iterator = iterator

    def __iter__(self):
        batches = iter(self.loader)  # here, so that the worker processes start before the first batch is asked for
        return self._pass(batches)

    def _pass(self, batches: Iterator[Batch | UserError]) -> Iterator[Batch]:
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - began
            if batch is None:
                return
            yield _raised(batch)


def _raised(batch: Batch | UserError) -> Batch:
    if isinstance(batch, UserError):
        raise batch
    return batch


def _outlive_signals(worker: int) -> None:
    """Let SIGTERM end a worker process only when its parent sends it, and let Ctrl-C not end it.

    A cluster sends SIGTERM to all processes of a job, a terminal sends SIGINT, and the workers are needed until the
    checkpoint is written.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class DataModule(LightningDataModule):
    """Batches of views of a data set, by a protocol.

    Training batches hold random views, cropped by the loader and augmented and normalised on the device. Validation,
    test and prediction batches hold one plain view. Prediction uses the test rows, or all rows where there are none.

    Args:
        dataset: data set and its place on the disk.
        protocol: training, validation and test rows, and their labels.
        views: views of a training image; the command line takes those of the method (``default_views``) by default.
        eval_size: side of the evaluation view, px; null: side of the first training view.
        eval_resize: length to which the shorter side is resized before the central crop of ``eval_size``, px (256 for
            224 px is usual); null: resize the whole image to ``eval_size`` x ``eval_size`` (MaskCon).
        eval_resample: interpolation of the evaluation view: ``bilinear`` (torchvision's default, MaskCon, OBD-SD) or
            ``bicubic`` (EsViT, CMD, FLSL).
        batch_size: images in a training batch over all processes; each process takes an equal share. An optimiser step
            sees ``batch_size`` x ``trainer.accumulate_grad_batches`` images.
        eval_batch_size: images in an evaluation batch of one process; null: a process's share of ``batch_size``.
        images_per_class: images of each class in a class-balanced batch (OBD-SD: 2); null: shuffle the images.
        replacement: draw the classes of a class-balanced batch and their images with replacement (OBD-SD's released
            code); false: without.
        num_workers: loader processes of each training process; 0 reads in the training process itself. ``auto``: the
            cores that the job may use on this machine, divided by its training processes.
        prefetch: batches that each loader process reads ahead.
        cache: folder of a cache of decoded images, 0.2 MB per image, which is built at the first use and read in
            training; null: read the files. Evaluation always reads the files.
        cache_side: shorter side of the cached images, px.
        on_error: ``error`` stops the run at an unreadable image and names its path; ``skip`` takes the next row instead
            and reports it at the end of the epoch, or of a test. Results of fewer test images stand in other tables.
        mean: channel means for normalisation, 0 to 1; null: those that the backbone's starting weights were trained
            with, ImageNet's where it has none.
        std: channel standard deviations for normalisation; null: as of ``mean``.
        seed: seed of the order and of the random views; the run's ``seed_everything``.

    Raises:
        UserError: the data set is missing or does not match, or a batch does not fit it.
    """

    def __init__(
        self,
        dataset: DataSet,
        protocol: Protocol = Protocol(),
        views: Views = PairViews(),
        eval_size: int | None = None,
        eval_resize: int | None = None,
        eval_resample: Literal["bilinear", "bicubic"] = "bilinear",
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        images_per_class: int | None = None,
        replacement: bool = False,
        num_workers: int | Literal["auto"] = 4,
        prefetch: int = 2,
        cache: str | None = None,
        cache_side: int = SIDE,
        on_error: Literal["error", "skip"] = "error",
        mean: Channels | None = None,
        std: Channels | None = None,
        seed: int = 0,
    ):
        super().__init__()
        eval_size = views.crops[0].size if eval_size is None else eval_size
        at_least(1, batch_size=batch_size, prefetch=prefetch)
        at_least(2, eval_size=eval_size)
        optional = {"eval_batch_size": eval_batch_size, "images_per_class": images_per_class}
        at_least(1, **{name: value for name, value in optional.items() if value is not None})
        if num_workers != "auto":
            at_least(0, num_workers=num_workers)
        self.dataset, self.protocol, self.views = dataset, protocol, views
        self.eval_view = EvalView(eval_size, eval_resize, eval_resample)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.images_per_class, self.replacement = images_per_class, replacement
        self.num_workers, self.prefetch, self.on_error = num_workers, prefetch, on_error
        self.cache, self.cache_side = cache, cache_side
        self.given_normalisation = mean, std
        self.mean, self.std = normalisation(mean, std, trained=None)
        self.seed = seed
        self._parts: Parts | None = None
        self._cache: Cache | None = None
        self._position = (0, 0)  # epoch and batch to begin with
        self.objects: Tensor | None = None  # [N, 4] boxes of a fit with ContrastiveCrop, NaN: not known yet

    # ---- what there is ------------------------------------------------------------------------------------------

    @property
    def num_fine(self) -> int:
        """Number of fine classes; read from the disk only where the data set does not know it."""
        return self.protocol.num_fine(self.dataset)

    @property
    def num_coarse(self) -> int:
        """Number of coarse classes, 0 for none."""
        return self.dataset.num_coarse

    @property
    def preprocessing(self) -> Preprocessing:
        """How evaluation turns an image into the network's input."""
        view = self.eval_view
        return Preprocessing(view.size, view.resize, view.resample, self.mean, self.std)

    def use_normalisation(self, trained: Trained | None) -> None:
        """Take the mean and deviation of a method's weights where neither was given to the constructor."""
        self.mean, self.std = normalisation(*self.given_normalisation, trained)

    def __str__(self) -> str:
        rows = "not read yet"
        if self._parts is not None:
            parts = {"training": self._parts.train, "validation": self._parts.val, "test": self._parts.test}
            rows = ", ".join(f"{len(rows):,} {name}" for name, rows in parts.items()) + " images"
        return (
            f"{type(self).__name__} of {self.dataset.name} ({self.protocol.split} split): {rows}; batches of "
            f"{self.batch_size}, {len(self.views.crops)} views of {self.views.crops[0].size} px; evaluation at "
            f"{self.eval_view.size} px"
        )

    __repr__ = __str__

    @property
    def parts(self) -> Parts:
        """Rows and labels of the parts, read from the disk once; equal on all ranks."""
        if self._parts is None:
            self._parts = self.protocol.apply(self.dataset.index())
            self._unreadable = torch.zeros(len(self._parts.index), dtype=torch.bool).share_memory_()
            self._reading = torch.full((SLOTS,), -1).share_memory_()
        return self._parts

    @property
    def train_classes(self) -> list[int]:
        """Fine labels of the training rows, ascending; fewer than ``num_fine`` where test classes differ."""
        labels = np.unique(self.parts.index.fine[self.parts.train])
        return labels[labels >= 0].tolist()  # -1 is no class

    @property
    def has_validation(self) -> bool:
        """Whether there are validation rows."""
        return len(self.parts.val) > 0

    def describe(self) -> dict[str, Any]:
        """Plain values for ``results.json``: data set, protocol, counts, row hashes and number of skipped images.

        Skipped images are no test images, so that ``fgssl compare`` sets such results apart. All ranks must call it.
        """
        self._share_skipped()
        test = self.parts.test[~self._unreadable.numpy()[self.parts.test]]
        return {**replace(self.parts, test=test).describe(), "unreadable": len(self.skipped())}

    def skipped(self) -> list[str]:
        """Paths of the unreadable images that were replaced so far."""
        return self.parts.index.paths[self._unreadable.numpy()].tolist()

    def _share_skipped(self) -> None:
        """Mark the images that any rank has skipped."""
        if self.on_error == "skip" and self.trainer is not None and is_distributed():
            wait_for_all_ranks()  # rank 0 may have drawn pictures for longer than the timeout of collectives
            here = self._unreadable.to(self.trainer.strategy.root_device, torch.float32)
            self._unreadable |= mean_over_ranks(here).cpu() > 0

    def explain(self, fault: RuntimeError) -> UserError | None:
        """Error message for a loader process that died: the file that it was reading and the usual cause."""
        found = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(fault))
        if found is None:
            return None
        rows = [int(self._reading[int(pid) % SLOTS]) for pid in found[1].split(",")]
        paths = ", ".join(self.parts.index.paths[row] for row in rows if row >= 0) or "nothing yet"
        return UserError(
            f"a data-loader process died while it was reading {paths} ({fault}). The usual cause is too little memory: "
            "lower data.num_workers or data.prefetch. If it happens at the same file again, check that file."
        )

    # ---- loaders ------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        self._position, self.objects = (0, 0), None
        # Lightning cannot know that the samplers start at the batch where a checkpoint was written (``state_dict``),
        # and warns where there is no validation or no test.
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable")
        warnings.filterwarnings("ignore", message="Total length of `(list|Loader)` across ranks is zero")
        if stage == "fit":
            self._sampler()  # a batch that does not fit is said before anything starts
            self._check_headers()
            self._open_cache()
            if isinstance(self.views, ContrastiveCrop):
                boxes = torch.full((len(self.parts.index), 4), torch.nan, dtype=torch.float64)
                self.objects = boxes.share_memory_()
        wait_for_all_ranks()  # the disk of one machine may be slower by more than the timeout of collectives

    def _check_headers(self) -> None:
        """Open the files that a fit evaluates at its end; training meets its own in the first epoch."""
        index = self.parts.index
        if self.on_error == "skip" or index.pixels is not None or index.images is not None:
            return
        tests = self.trainer is None or self.trainer.limit_test_batches != 0
        rows = np.concatenate([self.parts.val, self.parts.test if tests else NO_ROWS])
        with ThreadPool(16) as pool:  # the time is the disk's
            pool.map(self._check_header, rows.tolist())

    def _check_header(self, row: int) -> None:
        """Read the header of an image file.

        Raises:
            UserError: it is missing or unreadable.
        """
        with open_image(self.parts.index.paths[row]):
            pass

    def teardown(self, stage: str) -> None:
        if stage != "fit" and self.on_error == "skip":  # a fit has said it after each epoch
            self._share_skipped()
            rank_zero_only(self._say_skipped)()

    def train_dataloader(self) -> Loader:
        """Training loader, starting at the position of a restored checkpoint."""
        epoch, start_batch = self._position
        return self.train_loader(epoch, start_batch)

    def train_loader(self, epoch: int, start_batch: int = 0) -> Loader:
        """A new training loader; epoch -1 has an order and random views that differ from all epochs of training."""
        sampler = self._sampler(epoch=epoch, start_batch=start_batch)
        return self._loader(self.parts.train, self.views, sampler, self._open_cache(), lasting=epoch >= 0)

    def val_dataloader(self) -> Loader | list:
        return self._eval_loader(self.parts.val) if self.has_validation else []

    def test_dataloader(self) -> Loader:
        if len(self.parts.test) == 0:
            rank_zero_info(f"No test metrics: {self.dataset.name} has no test images.")
        return self._eval_loader(self.parts.test)

    def predict_dataloader(self) -> Loader:
        """The test rows; all rows of data without a test part, such as a folder of new images."""
        rows = self.parts.test if len(self.parts.test) else np.arange(len(self.parts.index))
        return self._eval_loader(rows)

    def gallery_loader(self, rows: np.ndarray | None = None) -> Loader:
        """Plain views of the training rows, or of ``rows``: the gallery for queries of another part."""
        return self._eval_loader(self._rows_to_train() if rows is None else rows)

    def whole_loader(self) -> Loader:
        """The training rows, each image resized whole to the side of the first training view (ContrastiveCrop)."""
        return self._eval_loader(self.parts.train, EvalView(self.views.crops[0].size), lasting=False)

    @property
    def next_batch(self) -> tuple[int, int]:
        """Epoch and batch that training begins with: (0, 0), or those of a restored checkpoint."""
        return self._position

    def _sampler(self, **start: int) -> TrainSampler:
        rank, world = self._rank_and_world()
        self._rows_to_train()  # that there are some
        return self.train_sampler(seed=self.seed, rank=rank, world=world, **start)

    def train_sampler(self, **options: Any) -> TrainSampler:
        """Sampler of the training batches. A subclass overrides it to order them in its own way.

        Args:
            options: ``seed``, ``epoch``, ``start_batch``, ``rank`` and ``world``, for the constructor of the sampler.
        """
        if self.images_per_class is None:
            return Shuffled(len(self.parts.train), self.batch_size, **options)
        labels = self.parts.index.fine[self.parts.train]
        balance: Any = {"images_per_class": self.images_per_class, "replacement": self.replacement}
        return ClassBalanced(labels, self.batch_size, **balance, **options)

    def _rows_to_train(self) -> np.ndarray:
        """The training rows.

        Raises:
            UserError: there are none, which an evaluation of the test rows does not mind.
        """
        if len(self.parts.train) == 0:
            raise UserError(f"{self.parts.index.name}: protocol '{self.protocol.split}' leaves no training image.")
        return self.parts.train

    def _eval_loader(self, rows: np.ndarray, view: EvalView | None = None, lasting: bool = True) -> Loader:
        rank, world = self._rank_and_world()
        batch_size = self.eval_batch_size or -(-self.batch_size // world)
        sampler = EvalShard(len(rows), batch_size, rank=rank, world=world)
        return self._loader(rows, view or self.eval_view, sampler, cache=None, lasting=lasting)

    def _loader(self, rows: np.ndarray, views: Views, sampler: Sampler, cache: Cache | None, lasting: bool) -> Loader:
        images = self._images(
            rows, views, self.seed, self.on_error, self._unreadable, self._reading, cache, self.objects
        )
        processes = self.trainer.num_devices if self.trainer is not None else 1
        workers = workers_of_process(processes) if self.num_workers == "auto" else self.num_workers
        options = {"persistent_workers": lasting, "prefetch_factor": self.prefetch} if workers else {}
        return Loader(images, sampler, num_workers=workers, pin_memory=self._pins(), **options)

    def _pins(self) -> bool:
        """Whether batches go to a device that copies pinned memory without waiting."""
        return self.trainer is not None and self.trainer.strategy.root_device.type not in ("cpu", "mps")

    def _images(self, rows: np.ndarray, views: Views, *shared: Any) -> Images:
        """Data set of a loader; ``shared`` are the arguments of ``Images`` from ``seed`` on."""
        return Images(self.parts.index, rows, views, *shared)

    def _open_cache(self) -> Cache | None:
        """The cache, built at the first call; None where there is none."""
        index = self.parts.index
        if self.cache is None or index.pixels is not None or index.images is not None:
            return None
        largest = max(crop.size for crop in self.views.crops)
        if largest > self.cache_side:
            raise UserError(f"data.cache_side is {self.cache_side}, smaller than a view of {largest} px. Raise it.")
        if self._cache is None:
            self._cache = open_cache(self.parts.index, self.cache, self.cache_side)
        return self._cache

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    # ---- position in the run ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Next epoch and batch, for a checkpoint, and the boxes of ContrastiveCrop."""
        epoch, batch = self._next()
        objects = {} if self.objects is None else {"objects": self.objects}
        return {"epoch": epoch, "batch": batch, **objects}

    def _next(self) -> tuple[int, int]:
        """Next epoch and batch.

        Not taken from the restored trainer: a method that asks for the number of steps while it builds its optimiser
        makes Lightning start the loaders before its progress is restored.
        """
        trainer: Any = self.trainer
        epochs = trainer.fit_loop.epoch_progress.current
        epoch, batch = epochs.processed, trainer.fit_loop.epoch_loop.batch_progress.current.processed
        if epochs.ready == epoch:  # between two epochs: the batch count is still the last one's
            return epoch, 0
        if batch >= trainer.num_training_batches:  # the last batch is done, what follows an epoch is not
            return epoch + 1, 0
        return epoch, batch

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._position = (state["epoch"], state["batch"])
        if self.objects is not None and "objects" in state:
            self.objects.copy_(state["objects"])

    # ---- on the device ------------------------------------------------------------------------------------------

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch to the device; ``draw`` stays on the CPU, which computes the augmentation parameters."""
        moved = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return moved._replace(draw=batch.draw)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment training batches and normalise, in the model's precision. Float batches are returned unchanged."""
        if batch.views[0].is_floating_point():
            return batch
        self._report_skipped()
        views = self._finish(batch)
        dtype = self.trainer.lightning_module.dtype if self.trainer is not None else torch.float32
        return batch._replace(views=[view.to(dtype) for view in views])  # 64-true and bf16-true ask for their own

    def _finish(self, batch: Batch) -> list[Tensor]:
        """Augmented, normalised views of a training batch; normalised ones of an evaluation batch."""
        if batch.draw[0] < 0:
            return [normalise(view.float().div_(255), self.mean, self.std) for view in batch.views]
        photometrics = [crop.photometric for crop in self.views.crops]
        streams = range(1, 2 * len(photometrics), 2)  # the even ones are those of Views.numbers
        constants: Any = {"seed": self.seed, "mean": self.mean, "std": self.std}
        return augment(batch.views, photometrics, draws=batch.draw.cpu().numpy(), streams=streams, **constants)

    def _report_skipped(self) -> None:
        """Warn at the end of an epoch of a fit of the images that could not be read."""
        if self.trainer is not None and self.trainer.state.fn == "fit" and self.trainer.is_last_batch:
            self._say_skipped()

    def _say_skipped(self) -> None:
        paths = self.skipped()
        if paths:
            shown = ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")
            warnings.warn(f"{len(paths)} unreadable images were replaced by the next row: {shown}", stacklevel=2)
