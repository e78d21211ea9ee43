"""Base class of the methods: steps, logging, checkpoints, and the interface for callbacks.

A subclass builds its networks in ``__init__`` and implements ``step`` and ``embed``. With a teacher it also implements
``teachers`` and ``teacher_momentum``; with a memory it fills ``StepResult.enqueue`` and implements ``prefill``.
"""

import importlib
import math
import os
import sys
from typing import Any, Literal, NamedTuple

import torch
from jsonargparse._parameter_resolvers import get_signature_parameters
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from fgssl.callbacks.collapse import Collapse
from fgssl.callbacks.object_boxes import ObjectBoxes
from fgssl.callbacks.queue import QueueUpdate
from fgssl.callbacks.retrieval import Retrieval
from fgssl.callbacks.teacher import TeacherUpdate
from fgssl.checkpoint import check_fits, check_global_batch, check_method, checkpoint_file, read_checkpoint
from fgssl.data.batch import Batch
from fgssl.data.datamodule import DataModule
from fgssl.data.draws import seed_of
from fgssl.data.views import ContrastiveCrop, Crop
from fgssl.distributed import AnyRank
from fgssl.errors import UserError
from fgssl.methods.arguments import NOT_PLAIN, build, plain, trained_normalisation
from fgssl.methods.schedule import Scheduled
from fgssl.nn.backbones import first_backbone, from_checkpoint
from fgssl.nn.feature_map import last_features
from fgssl.nn.memory import Memory
from fgssl.nn.teacher import Pair
from fgssl.optim import Optim

Keys = tuple[Tensor, Tensor, Tensor]  # keys [B, D], labels [B], data-set rows [B]


class StepResult(NamedTuple):
    """Result of a training step.

    Attributes:
        loss: scalar to minimise.
        parts: terms of the loss and other scalars to log, by name.
        enqueue: rows to append to memories after the optimiser step, by the name of the memory.
    """

    loss: Tensor
    parts: dict[str, Tensor] = {}
    enqueue: dict[str, Keys] = {}


class Method(Scheduled):
    """Base class of methods and tasks.

    Args:
        optim: optimiser, learning rate and schedule.
        max_skips: largest number of consecutive steps that may be skipped because their loss is not finite; 0: the
            first such step stops the run.

    Attributes:
        data_module: class of the ``data`` section.
        default_views: class and arguments of ``data.views`` where the configuration names no class; None: the data
            module has no views.
        views_needed: smallest and largest number of views per image that ``step`` accepts; None: no upper limit.
        evaluates: network whose features ``embed`` returns.
        embeds: whether ``embed`` is implemented, and so retrieval metrics are computed.
        prototypes: number of prototypes, set in ``__init__`` by methods whose teacher assigns images to prototypes.
            It adds the callback ``Collapse``. None: no prototypes.
        last_loss: loss of the last batch.
        skipped: whether the last batch was skipped, because its loss is not finite.
        stop_requested: set by a callback of this process to stop the run between two steps.
        stop_agreed: whether any process had requested to stop before its last batch.
    """

    data_module: type[DataModule] = DataModule
    default_views: dict[str, Any] | None = {"class_path": "PairViews"}
    views_needed: tuple[int, int | None] = (1, None)
    evaluates: Literal["student", "teacher"] = "student"
    embeds: bool = True
    prototypes: int | None = None
    last_loss: float = math.nan
    skipped: bool = False
    stop_requested: bool = False
    stop_agreed: bool = False
    _check: AnyRank | None = None

    def __init__(self, optim: Optim = Optim(), max_skips: int = 0):
        super().__init__(optim)
        self.save_hyperparameters(logger=False)  # those of the subclass too
        self.preprocessing: dict[str, Any] | None = None  # of the checkpoint that the weights were loaded from
        self.max_skips = max_skips

    # ---- implemented by subclasses ------------------------------------------------------------------------------

    def step(self, batch: Batch) -> StepResult:
        """Training step: loss of a batch."""
        raise self._not_written("step(batch)", "the loss of a batch")

    def embed(self, images: Tensor) -> Tensor:
        """Features [B, F] of images [B, 3, H, W], for evaluation."""
        raise self._not_written("embed(images)", "the features that evaluation uses")

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, F] of preprocessed images [B, 3, H, W], as ``embed``."""
        return self.embed(images)

    def patch_map(self, images: Tensor) -> Tensor:
        """Patch features [B, F, H', W'] of images [B, 3, H, W], from the backbone that ``evaluates`` names."""
        return last_features(self.backbone_of(), images)[1]

    def backbones(self) -> dict[str, nn.Module]:
        """Backbones for fine-tuning, probing, export and pictures.

        The default is the first module with ``forward_features`` (timm's interface) in the student and the teacher of
        the first pair of ``teachers()`` that is updated after each step, or in the method if there is no such pair.
        Override it if this is the wrong module.

        Returns:
            ``student``: the trained backbone. ``teacher``: the backbone that is updated from it after each step, if
            there is one.
        """
        followed = [pair for pair in self.teachers() if pair.every == "step"]
        owners = {"student": followed[0].student, "teacher": followed[0].teacher} if followed else {"student": self}
        found = {whose: first_backbone(owner) for whose, owner in owners.items()}
        return {whose: network for whose, network in found.items() if network is not None}

    def backbone_of(self, whose: Literal["student", "teacher"] | None = None) -> Any:
        """Backbone of the student or the teacher; None: the one that ``evaluates`` names.

        Raises:
            UserError: the method has no such backbone.
        """
        whose = whose or self.evaluates
        found = self.backbones()
        if whose not in found:
            raise UserError(f"{type(self).__name__} has no {whose} backbone (it has: {', '.join(found) or 'none'}).")
        return found[whose]

    def teachers(self) -> list[Pair]:
        """Pairs of a student and the teacher that is updated from it; empty: no teacher."""
        return []

    def teacher_momentum(self, step: int, total: int) -> float:
        """Momentum of the teachers' moving average after optimiser step ``step`` (from 1) of ``total``."""
        raise self._not_written("teacher_momentum(step, total)", "the momentum of the teachers' moving average")

    def follows_length(self) -> list[str]:
        moving = any(pair.every == "step" for pair in self.teachers())
        changes = moving and self.teacher_momentum(1, 2) != self.teacher_momentum(2, 2)
        return super().follows_length() + (["the momentum of the teacher"] if changes else [])

    def prefill(self, batch: Batch) -> dict[str, Keys]:
        """Rows that ``step`` would enqueue, without training. Fills the memories before the first epoch."""
        raise self._not_written("prefill(batch)", "the rows that fill the memory before the first epoch")

    def _not_written(self, signature: str, returns: str) -> UserError:
        """Error for a part of the interface that a subclass needs and has not written."""
        return UserError(f"{type(self).__name__} needs a method {signature} that returns {returns}. See fgssl.Method.")

    def labels_needed(self) -> set[Literal["fine", "coarse"]]:
        """Labels that ``step`` needs of each training image; empty: none, so that images without labels will do."""
        return set()

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def arguments(self) -> dict[str, Any]:
        """Arguments of the constructor as plain values; arguments that are objects of other classes are left out."""
        accepted = self.accepted()
        values = {name: plain(value) for name, value in self.hparams.items() if name in accepted}
        return {name: value for name, value in values.items() if value is not NOT_PLAIN}

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path, map_location=None, **arguments: Any):  # type: ignore[override]
        """Method with the weights of a checkpoint, which reads no data and no starting weights.

        Args:
            checkpoint_path: checkpoint of this class (of any method, if called on ``Method``), or run folder, of which
                the last checkpoint is taken.
            map_location: device to move the method to; None: CPU.
            arguments: arguments of the constructor that override the checkpoint's.

        Raises:
            UserError: there is no such file, it is a checkpoint of another class, or its weights do not fit.
        """
        path = checkpoint_file(str(checkpoint_path), option="checkpoint_path")
        content = read_checkpoint(str(path))
        named = content.get("class_path") or content.get("config", {}).get("model", {}).get("class_path")
        if cls is Method and named:
            cls = class_of_path(named, str(path))
        check_method(content, cls.__name__, str(path))
        with from_checkpoint():
            method = build(cls, cls._arguments_in(content) | arguments)
        check_fits(content["state_dict"], method, str(path))
        method.load_state_dict(content["state_dict"])
        method.on_load_checkpoint(content)
        return method if map_location is None else method.to(map_location)

    @classmethod
    def _arguments_in(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the constructor that a checkpoint was written with."""
        if "hyper_parameters" in content:
            return content["hyper_parameters"]
        config = content["config"]  # up to version 0.2.0: class counts come from the data set
        data = build(cls.data_module, config["data"])
        counts = cls.accepted() & {"num_coarse", "num_fine", "train_classes"}
        return config["model"]["init_args"] | {option: getattr(data, option) for option in counts}

    @classmethod
    def accepted(cls) -> set[str]:
        """Names of the arguments of the constructor, those of the base classes included."""
        return {parameter.name for parameter in get_signature_parameters(cls, None)}

    def normalisation(self) -> Any:
        """Mean and standard deviation of the images that the weights were trained on; None if unknown."""
        if self.preprocessing is not None:
            return self.preprocessing["mean"], self.preprocessing["std"]
        try:
            return trained_normalisation(self.arguments())
        except UserError:  # no file of starting weights: said when they are loaded; a resumed run needs none
            return None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the method's name and arguments, its backbones, preprocessing and global batch to a checkpoint.

        Raises:
            UserError: a weight is not finite.
        """
        named = dict(self.named_parameters())
        finite = torch.stack([torch.isfinite(weight).all() for weight in named.values()]).tolist()
        spoilt = [name for name, fine in zip(named, finite, strict=True) if not fine]
        if spoilt:
            raise UserError(
                f"no checkpoint is written at step {self.global_step}: {spoilt[0]} and {len(spoilt) - 1} other weights "
                "are not finite. The last checkpoint is unaffected. Lower model.optim.lr, or check trainer.precision."
            )
        checkpoint["class_path"] = f"{type(self).__module__}.{type(self).__qualname__}"
        checkpoint["hyper_parameters"] = self.arguments()
        checkpoint["method"], checkpoint["evaluates"] = type(self).__name__, self.evaluates
        names = {id(module): name for name, module in self.named_modules(remove_duplicate=False)}
        checkpoint["backbones"] = {whose: f"{names[id(network)]}." for whose, network in self.backbones().items()}
        trainer = self._trainer
        if trainer is not None and trainer.datamodule is not None:
            if isinstance(trainer.datamodule, DataModule):
                checkpoint["preprocessing"] = trainer.datamodule.preprocessing.to_dict()
            checkpoint["global_batch"] = {
                "batch_size": trainer.datamodule.batch_size,
                "accumulate_grad_batches": trainer.accumulate_grad_batches,
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume with another global batch, which would change the number of steps of the schedule.

        Raises:
            UserError: names the options to resume with.
        """
        self.preprocessing = checkpoint.get("preprocessing")
        trainer = self._trainer
        if trainer is not None and trainer.state.fn == TrainerFn.FITTING and trainer.datamodule is not None:
            check_global_batch(checkpoint, trainer.datamodule, trainer.accumulate_grad_batches)

    # ---- before training ----------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list:
        """Callbacks of the method; a subclass adds its own to ``super().configure_callbacks()``."""
        own: list[Callback] = [TeacherUpdate(), QueueUpdate()]
        given = [] if self._trainer is None else self.trainer.callbacks
        if self._trainer is not None and isinstance(getattr(self.trainer.datamodule, "views", None), ContrastiveCrop):
            own.append(ObjectBoxes())
        if self.prototypes is not None and not any(isinstance(c, Collapse) for c in given):
            own.append(Collapse())
        if self.embeds and not any(isinstance(c, Retrieval) for c in given):
            own.append(Retrieval())
        return own

    def check_views(self, crops: list[Crop]) -> None:
        """Refuse training views that ``step`` cannot use. Called before training.

        Args:
            crops: views of an image, in the order of ``batch.views``.

        Raises:
            UserError: there are too few or too many views.
        """
        fewest, most = self.views_needed
        if len(crops) < fewest or (most is not None and len(crops) > most):
            needed = str(fewest) if fewest == most else f"{fewest} or more" if most is None else f"{fewest} to {most}"
            default = (self.default_views or {}).get("class_path")
            raise UserError(
                f"data.views gives {len(crops)} views of an image, but {type(self).__name__} needs {needed}. Choose "
                f"other views, or omit data.views for the default of the method, {default}."
            )

    def check_precision(self, precision: str) -> None:
        """Refuse weights of 16 bits for a teacher that follows its student by a moving average.

        A change of the teacher's weights below 0.2 % of them (bfloat16; float16: 0.02 %) would be rounded away, so that
        with a momentum of 0.996 it stays as it is.

        Args:
            precision: ``trainer.precision``.

        Raises:
            UserError: names the precisions to take.
        """
        if precision in ("bf16-true", "16-true") and any(pair.every == "step" for pair in self.teachers()):
            raise UserError(
                f"trainer.precision {precision} has weights of 16 bits, in which the moving average of "
                f"{type(self).__name__}'s teacher would be rounded away. Take {precision.replace('true', 'mixed')}, "
                "or 32-true."
            )

    def memories(self) -> dict[str, Memory]:
        """Memories among the modules of the method, by name."""
        return {name: module for name, module in self.named_modules() if isinstance(module, Memory)}

    def setup(self, stage: str) -> None:
        super().setup(stage)
        # DDP would broadcast the buffers of rank 0 before each step; memories are already equal on all ranks.
        self._ddp_params_and_buffers_to_ignore = [
            f"{name}.{buffer}" for name, memory in self.memories().items() for buffer, _ in memory.named_buffers()
        ]
        if stage == "fit":
            self.check_precision(self.trainer.precision)
        datamodule = self.trainer.datamodule
        if isinstance(datamodule, DataModule):
            if None in datamodule.given_normalisation:
                datamodule.use_normalisation(self.normalisation())
            if stage == "fit":
                self._check_labels(datamodule)
        if stage == "fit" and self.default_views is not None and datamodule is not None:
            self.check_views(datamodule.views.crops)

    def _check_labels(self, data: DataModule) -> None:
        """Refuse training images without the labels that the method needs.

        Raises:
            UserError: says how many images have none.
        """
        for kind in sorted(self.labels_needed()):
            labels, train = getattr(data.parts.index, kind), data.parts.train
            missing = len(train) if labels is None else int((labels[train] < 0).sum())
            if missing:
                raise UserError(
                    f"{type(self).__name__} needs a {kind} label of each training image, but {missing:,} of "
                    f"{len(train):,} of {data.dataset.name} have none. Methods that need no labels: CMD, FLSL, MLS, "
                    "and MaskCon with --model.variant selfcon."
                )

    # ---- steps --------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        self._skips, self._has_gradient = 0, False
        self._seed = int(os.environ.get("PL_GLOBAL_SEED", 0))  # seed_everything
        rank_zero_info(self._start_line())
        super().on_train_start()

    def _start_line(self) -> str:
        """Global batch, learning rate and seed, for the log."""
        trainer, optim = self.trainer, self.optim
        accumulated, processes, batch = trainer.accumulate_grad_batches, trainer.world_size, self.global_batch()
        lr = f"{optim.lr:g}"
        if optim.reference_batch:
            lr = f"{optim.lr:g} x {batch} / {optim.reference_batch} = {optim.peak(batch):g}"
        return (
            f"Images per optimiser step: {batch // processes // accumulated} x {processes} processes x {accumulated} "
            f"accumulated = {batch}. Learning rate {lr}. Seed {self._seed}: order and crops do not depend on the "
            "number of processes, dropout does."
        )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout and other random layers by seed, rank, epoch and batch; so no random state is saved."""
        torch.manual_seed(seed_of(self._seed, self.global_rank, self.current_epoch, batch_idx))

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        _check_preprocessed(batch)
        result = self.step(batch)
        loss = result.loss.detach()
        self._check = AnyRank([~torch.isfinite(loss), self.stop_requested], self.device, values=[loss])
        self._checked = (result._replace(loss=loss), batch, batch_idx)
        self.skipped = False
        if self.max_skips and self.trainer.accumulate_grad_batches > 1:
            # The sum of the gradients of earlier batches is there, and a skipped batch must not add to it.
            self._read_check()
            if self.skipped:
                return {"loss": self._no_loss(), "enqueue": {}}
        return {"loss": result.loss, "enqueue": result.enqueue}

    def on_after_backward(self) -> None:
        """Read whether the loss is finite: here, so that the device has the backward pass to work on meanwhile."""
        if self._check is None:  # training_step has read it, and returned a loss of zero
            return
        self._read_check()
        if self.skipped:
            gradients = [weight.grad for weight in self.parameters() if weight.grad is not None]
            torch._foreach_zero_(gradients)

    def _read_check(self) -> None:
        """Learn whether the loss is finite on all ranks; log the step, or skip it."""
        (spoilt, self.stop_agreed), (self.last_loss,) = self._check.read()
        result, batch, batch_idx = self._checked
        self._check = self._checked = None
        if spoilt:
            self.skipped = True
            self._skip(result, batch, batch_idx)
            return
        self._skips, self._has_gradient = 0, True
        size = len(batch.index)
        self.log("train/loss", result.loss, batch_size=size)
        self.log_dict({f"train/{name}": value for name, value in result.parts.items()}, batch_size=size)
        # On the CPU: Lightning would copy a number to the device, and wait for it.
        lr = torch.tensor(self.optimizers().param_groups[0]["lr"], dtype=torch.float64)
        self.log("train/lr", lr, batch_size=size)

    def _skip(self, result: StepResult, batch: Batch, batch_idx: int) -> None:
        """Skip a step whose loss is not finite, on all ranks, or stop the run after ``max_skips`` of them.

        Raises:
            UserError: more than ``max_skips`` consecutive steps had such a loss.
        """
        self._skips += 1
        parts = ", ".join(f"{name} {value.item():.6g}" for name, value in {"loss": result.loss, **result.parts}.items())
        rows = ", ".join(str(row) for row in batch.index[:8].tolist()) + (", ..." if len(batch.index) > 8 else "")
        rank = f", process {self.global_rank}" if self.trainer.world_size > 1 else ""
        epoch = self.current_epoch + 1
        what = (
            f"the loss is not finite at step {self.global_step} (epoch {epoch}, batch {batch_idx}{rank}): "
            f"{parts}. Data-set rows of the batch: {rows}."
        )
        if self._skips <= self.max_skips:
            rank_zero_warn(f"{what} Step skipped ({self._skips} of at most {self.max_skips} consecutive ones).")
            return
        raise UserError(
            f"{what} The weights and the last checkpoint are unaffected. Lower model.optim.lr, or use a "
            "trainer.precision of wider range; --model.max_skips N skips up to N consecutive steps of this kind."
        )

    def _no_loss(self) -> Tensor:
        """Zero, with a zero gradient for each weight: DDP needs a backward pass in every step."""
        return torch.stack([weight.sum() for weight in self.parameters() if weight.requires_grad]).sum() * 0

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if not self._has_gradient:  # all batches of this step were skipped: no weight decay and no momentum either
            optimizer.zero_grad(set_to_none=True)
        self._has_gradient = False
        super().on_before_optimizer_step(optimizer)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        _check_preprocessed(batch)
        return {"embedding": self.embed(batch.views[0]), "fine": batch.fine, "index": batch.index}

    test_step = validation_step
    predict_step = validation_step


def class_of_path(class_path: str, path: str) -> type[Method]:
    """Class of a method that a file names. A file cannot make this package import a module from elsewhere."""
    module, _, name = class_path.rpartition(".")
    if module.startswith("fgssl."):
        importlib.import_module(module)
    found = getattr(sys.modules.get(module), name, None)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"{path} is of the class {class_path}. Import that class first.")
    return found


def _check_preprocessed(batch: Any) -> None:
    if isinstance(batch, Batch) and not batch.views[0].is_floating_point():
        raise UserError(
            "the images are uint8 as the loader gives them. Pass the data module, which augments and normalises them "
            "on the device: trainer.fit(method, datamodule=data), and the same for validate, test and predict."
        )
