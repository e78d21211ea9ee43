"""LightningCLI of fgssl: parses options, builds method, data and trainer, and runs fit, validate, test or predict."""

import logging
import re
import shlex
import signal
import subprocess
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse._parameter_resolvers import get_signature_parameters
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

from fgssl.callbacks.best_on_test import BestOnTest  # noqa: F401  (makes the callbacks' short names known)
from fgssl.callbacks.box_knn import BoxKNN  # noqa: F401
from fgssl.callbacks.collapse import Collapse  # noqa: F401
from fgssl.callbacks.last_checkpoint import LastCheckpoint
from fgssl.callbacks.monitor import Monitor
from fgssl.callbacks.neighbours import Neighbours  # noqa: F401
from fgssl.callbacks.online import OnlineKNN, OnlineProbe  # noqa: F401
from fgssl.callbacks.progress import ProgressBar
from fgssl.callbacks.record import Record
from fgssl.callbacks.retrieval import Retrieval
from fgssl.callbacks.stopping import Stopped, Stopping
from fgssl.checkpoint import (
    AtomicCheckpointIO,
    check_fits,
    check_global_batch,
    check_method,
    checkpoint_file,
    read_checkpoint,
)
from fgssl.cli.defaults import set_normalisation
from fgssl.cli.mistakes import mistakes_unwrapped, options_named
from fgssl.cli.nulls import refuse_null
from fgssl.cli.parser import ExperimentParser
from fgssl.cli.quiet import LOGGERS, quieten
from fgssl.cli.saved import check_epochs, check_rows, differences, explain
from fgssl.data.datamodule import DataModule
from fgssl.data.normalisation import normalisation
from fgssl.errors import UserError, at_least, did_you_mean
from fgssl.loggers import NAMES, MetricsLogger, MLflow, TensorBoard, Wandb, wandb_logger
from fgssl.methods.base import Method
from fgssl.nn.backbones import check_size, from_checkpoint
from fgssl.nn.compiled import compile_networks, to_channels_last
from fgssl.nn.sync_batch_norm import SyncBatchNorm
from fgssl.report.metric_names import lower_is_better
from fgssl.report.published import rows_named
from fgssl.report.runs import label
from fgssl.report.summary import print_summary
from fgssl.run import Run, default_name, folder_of_checkpoint, refuse_overwriting, shown, unnamed_folder


class Application(LightningCLI):
    """LightningCLI that runs one configuration in its run folder.

    Args:
        args: command-line arguments.
        experiment: name of the folder above the run folder, unless ``run.experiment`` is set.
        method: class of the model section; None: no model is named.
    """

    def __init__(self, args: list[str], experiment: str, method: type[Method] | None = None):
        self.command, self.experiment, self.method = args[0], experiment, method
        self.made: list[Path] = []  # folders that were made for a run without a name
        try:
            super().__init__(
                Method,
                method.data_module if method else DataModule,
                subclass_mode_model=True,
                save_config_callback=None,  # Record keeps the configuration
                seed_everything_default=0,
                trainer_defaults={
                    "use_distributed_sampler": False,
                    "num_sanity_val_steps": 0,
                    "enable_model_summary": False,  # Monitor says the size; Lightning's table counts no FLOPs for us
                },
                parser_class=ExperimentParser,
                auto_configure_optimizers=False,
                args=args,
            )
        finally:
            self._remove_unused_folder()

    # ---- options ------------------------------------------------------------------------------------------------

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The command that is run alone: the parsers of all four would take half of the time of a start."""
        return {self.command: super().subcommands()[self.command]}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--seed_everything", type=int, default=0, help="Seed of initial weights, data order and augmentation."
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(Retrieval, "retrieval")
        parser.add_class_arguments(Run, "run")
        parser.add_argument(
            "--checkpoint.every_n_epochs", type=int, default=1, help="Epochs between writes of last.ckpt."
        )
        parser.add_argument(
            "--checkpoint.every_n_train_steps",
            type=int | None,
            default=None,
            help="Optimiser steps per write of last.ckpt; null: by epochs.",
        )
        parser.add_argument(
            "--checkpoint.monitor",
            type=str,
            default="val/recall@1",
            help="Validation metric whose largest value, of a loss or spectral decay the smallest, selects best.ckpt. "
            "Needs data.protocol.val_fraction.",
        )
        parser.add_argument(
            "--logger",
            type=str | Wandb,
            default="csv",
            help="csv: metrics.csv only. In addition to it: wandb (Weights & Biases; or a mapping of its options), "
            "tensorboard, or mlflow.",
        )
        parser.add_argument("--quiet", action="store_true", help="Print warnings, errors and the results only.")
        parser.add_argument(
            "--trainer.compile",
            type=bool | dict[str, Any],
            default=False,
            help="Compile the backbones with torch.compile: true, or a mapping of its arguments such as {mode: "
            "max-autotune-no-cudagraphs}. The first step of each image size takes minutes.",
        )
        parser.add_argument(
            "--trainer.channels_last",
            type=bool,
            default=False,
            help="Store the weights of convolutions channels-last, which is faster for convolutions in half precision.",
        )
        options = get_signature_parameters(self.datamodule_class or DataModule, None)
        if "views" in {parameter.name for parameter in options}:
            # The method's views are filled in. Of a default here, other views would take the size and the recipe.
            parser.set_defaults({"data.views": None})
        parser.link_arguments("seed_everything", "data.seed")
        # Class counts of the data set, known without reading it: --print_config needs no data on disk.
        for option in ("num_coarse", "num_fine", "train_classes"):
            count = partial(self._class_count, option)
            parser.link_arguments("data", f"model.init_args.{option}", count, apply_on="instantiate")

    def _class_count(self, option: str, data: DataModule) -> Any:
        """Class count of the data; in an evaluation that of the checkpoint, whose network may see any other data."""
        kept = (self.checkpoint or {}).get("hyper_parameters")
        if self.config.subcommand != "fit" and kept:
            return kept.get(option)  # None: the method has no such argument
        return getattr(data, option)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = super().init_parser(**kwargs)
        parser.method, parser.suggests = self.method, True  # type: ignore[attr-defined]
        return parser

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.usage = f"fgssl {subcommand} --config FILE [--ckpt_path RUN] [--section.option VALUE ...]"
        if subcommand in ("validate", "test"):
            parser.set_defaults(verbose=False)  # print_summary shows the metrics
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)
        options = self.options
        refuse_null(options, self._parser(self.config.subcommand))
        at_least(0, seed_everything=options.seed_everything)
        at_least(1, **{"trainer.accumulate_grad_batches": options.trainer.accumulate_grad_batches})
        if options.trainer.logger is not None:
            raise UserError(
                "trainer.logger is set by fgssl. Use --logger wandb, --logger tensorboard or --logger mlflow."
            )
        if options.trainer.overfit_batches:
            raise UserError(
                "trainer.overfit_batches is not supported. --data.protocol.label_fraction trains on few images, "
                "the same in each epoch."
            )
        if self.config.subcommand == "fit" and options.trainer.enable_checkpointing is False:
            raise UserError(
                "trainer.enable_checkpointing is false, but fit always writes last.ckpt. "
                "--checkpoint.every_n_epochs N writes it less often."
            )

    def _parse_ckpt_path(self) -> None:
        """Keep the user's hyper-parameters; Lightning would override them by those of the checkpoint."""

    # ---- build --------------------------------------------------------------------------------------------------

    def instantiate_classes(self) -> None:
        source = from_checkpoint() if self.checkpoint is not None else nullcontext()
        with options_named(self.options), mistakes_unwrapped(), source:
            super().instantiate_classes()

    @property
    def options(self) -> Any:
        """The parsed options of the chosen command."""
        return self.config[self.config.subcommand]

    def before_instantiate_classes(self) -> None:
        options = self.options
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING if options.quiet else logging.INFO)
        if self.config.subcommand == "fit" and options.run.paper:
            rows_named(options.run.paper)  # refuses a table that there is not, which would be missed after the training
        self.checkpoint = None
        if self.config.subcommand == "fit" and options.run.resume and not options.get("ckpt_path"):
            options.ckpt_path = self._last_checkpoint()
        if options.get("ckpt_path") is not None:
            options.ckpt_path = str(checkpoint_file(options.ckpt_path))
            self.checkpoint = read_checkpoint(options.ckpt_path)
            method = options.model.class_path.rsplit(".", 1)[-1]
            check_method(self.checkpoint, method, options.ckpt_path)
        with options_named(options):
            self._resolve_normalisation()
        if self.checkpoint is not None:
            self._compare_with_checkpoint(self.checkpoint.get("config") or {})
        self.folder = self._choose_folder()

    def _compare_with_checkpoint(self, theirs: dict[str, Any]) -> None:
        """Print the options that differ from those of the checkpoint; refuse to resume on other training images."""
        command, path = self.config.subcommand, self.options.ckpt_path
        differing = differences(theirs, yaml.safe_load(self._plain_config()), command)
        if command == "fit":
            check_rows(differing, path)
        for line in explain(differing):
            rank_zero_info(line)

    def _plain_config(self) -> str:
        """The resolved options of the command as YAML text."""
        return self._parser(self.subcommand).dump(self.options, skip_none=False)

    def _resolve_normalisation(self) -> None:
        """Replace null in ``data.mean`` and ``data.std`` by the values of the checkpoint or of the starting weights."""
        data, kept = self.options.data, ((self.checkpoint or {}).get("config") or {}).get("data") or {}
        if kept.get("mean") and kept.get("std"):
            data.mean, data.std = normalisation(data.mean, data.std, (kept["mean"], kept["std"]))
        elif self.config.subcommand == "fit" or data.mean is None or data.std is None:
            differs = set_normalisation(data, self.options.model.as_dict())
            if differs and self.config.subcommand == "fit":
                rank_zero_warn(differs)

    def _last_checkpoint(self) -> str | None:
        """Last checkpoint of the run that ``run.resume`` names, or None if it has none yet."""
        run = self.options.run
        if not run.name:
            raise UserError("--run.resume needs --run.name, the name of the run to resume.")
        last = Path(run.root) / (run.experiment or self.experiment) / run.name / "checkpoints" / "last.ckpt"
        return str(last) if last.is_file() else None

    def _choose_folder(self) -> Path:
        options, command = self.options, self.config.subcommand
        resumed = folder_of_checkpoint(options.get("ckpt_path")) if command == "fit" else None
        if resumed:
            if options.run.name not in (None, resumed.name):
                rank_zero_warn(f"--run.name {options.run.name} is not used: a resumed run stays in {shown(resumed)}.")
            options.run.name = resumed.name
            return resumed
        parent = Path(options.run.root) / (options.run.experiment or self.experiment)
        if options.run.name:
            refuse_overwriting(parent / options.run.name, command)
            return parent / options.run.name
        is_first = getattr(rank_zero_only, "rank", 0) == 0
        folder, self.made = unnamed_folder(parent, default_name(options.seed_everything, command), is_first)
        return folder

    def _remove_unused_folder(self) -> None:
        """Remove the folder that was made for a run without a name, if a mistake ended the command before it wrote."""
        for folder in self.made:
            with suppress(OSError):  # it is not empty: it is in use
                folder.rmdir()

    def after_instantiate_classes(self) -> None:
        if self.config.subcommand == "validate" and not self.datamodule.has_validation:
            raise UserError(
                "there are no validation rows to evaluate. Set --data.protocol.val_fraction as in the training, or "
                "evaluate the test rows with fgssl test."
            )
        self._check_sizes()
        if self.checkpoint is not None:
            check_fits(self.checkpoint["state_dict"], self.model, self.options.ckpt_path)
            if self.config.subcommand == "fit":
                self._check_position(self.checkpoint)
        trainer = self.options.trainer
        if trainer.channels_last:
            to_channels_last(self.model)
        if trainer.compile is not False:
            compile_networks(self.model, **({} if trainer.compile is True else trainer.compile))

    def _check_sizes(self) -> None:
        """Refuse views that the backbones do not take."""
        if self.model.default_views is None:  # detection and segmentation
            return
        data = self.datamodule
        crops = [*data.eval_view.crops, *(data.views.crops if self.config.subcommand == "fit" else ())]
        for network in self.model.backbones().values():
            for size in sorted({crop.size for crop in crops}):
                check_size(network, size)

    def _check_position(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume where the schedule or the position in an epoch would be wrong; nothing is written yet."""
        check_global_batch(checkpoint, self.datamodule, self.trainer.accumulate_grad_batches)
        position = checkpoint.get(type(self.datamodule).__qualname__)
        if position is not None:
            said = check_epochs(position["epoch"], self.options.trainer.max_epochs, self.options.ckpt_path)
            if said:
                rank_zero_info(said)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        options = self.options
        config = {**self._get(self.config_init, "trainer"), **kwargs}
        del config["compile"], config["channels_last"]  # ours, not the Trainer's
        config["logger"] = self._loggers()
        own = [AtomicCheckpointIO(), *([SyncBatchNorm()] if config.get("sync_batchnorm") else [])]
        config["plugins"] = [*(config.get("plugins") or []), *own]
        config["enable_model_summary"] = bool(config.get("enable_model_summary"))  # null in runs of version 0.2.0
        config["enable_checkpointing"] = self.config.subcommand == "fit"
        asked = config.get("callbacks") or []
        config["callbacks"] = [*(asked if isinstance(asked, list) else [asked]), *self._callbacks()]
        if options.quiet:
            config["enable_progress_bar"] = False
        if config.get("enable_progress_bar") is not False:
            config["callbacks"].append(ProgressBar(self.monitor.throughput))
        if options.trainer.max_epochs is None and options.trainer.max_steps == -1 and self.config.subcommand == "fit":
            raise UserError("trainer.max_epochs is not set. Give --trainer.max_epochs N.")
        return Trainer(**config)

    def _callbacks(self) -> list:
        options = self.options
        facts = {
            "experiment": self.folder.parent.name,
            "run": self.folder.name,
            "method": options.model.class_path.rsplit(".", 1)[-1],
            "variant": getattr(self.model, "variant", None),
            "dataset": self.datamodule.dataset.name,
            "seed": options.seed_everything,
            "ckpt_path": options.get("ckpt_path"),
            "gallery": options.retrieval.gallery,
            "reranking": self._get(self.config_init, "retrieval").rerank.name,
        }
        options.run.experiment = self.folder.parent.name  # null becomes the name of the configuration file
        self.record = Record(self.folder, self._plain_config(), facts)
        self.retrieval = self._get(self.config_init, "retrieval")
        self.retrieval.folder = self.folder
        self.monitor = Monitor()
        callbacks = [Stopping(), *([self.retrieval] if self.model.embeds else []), self.record, self.monitor]
        return callbacks + (self._checkpoints() if self.config.subcommand == "fit" else [])

    def _checkpoints(self) -> list[ModelCheckpoint]:
        options, where = self.options.checkpoint, self.folder / "checkpoints"
        last = LastCheckpoint(where, options.every_n_epochs, options.every_n_train_steps)
        if not self.datamodule.has_validation:
            return [last]
        self._say_when_validated()
        index, val = self.datamodule.parts.index, self.datamodule.parts.val
        if self.model.embeds and index.targets is None and not (index.fine[val] >= 0).any():
            rank_zero_info("No best.ckpt is chosen: no validation image has a label, so nothing is measured on them.")
            return [last]
        self._check_monitor()
        mode = "min" if lower_is_better(options.monitor) else "max"
        best = ModelCheckpoint(where, filename="best", monitor=options.monitor, mode=mode, enable_version_counter=False)
        return [best, last]  # last.ckpt holds what best.ckpt was chosen by

    def _say_when_validated(self) -> None:
        """Warn where the validation metrics of the finished run are not those of its last epoch."""
        every, epochs = (self.options.trainer[name] for name in ("check_val_every_n_epoch", "max_epochs"))
        if every and (epochs or 0) > 0 and epochs % every:
            last = f"after epoch {epochs - epochs % every}" if epochs > every else "never"
            rank_zero_warn(
                f"trainer.check_val_every_n_epoch is {every} and trainer.max_epochs {epochs}: validated last {last}, "
                "while the test is of the last epoch. A divisor of max_epochs validates the last epoch too."
            )

    def _check_monitor(self) -> None:
        """Refuse to choose best.ckpt by a Recall@K that is not measured; Lightning would after the first epoch."""
        monitor, ks = self.options.checkpoint.monitor, self.retrieval.ks
        recall = re.fullmatch(r"val/recall@(\d+)", monitor)
        if recall and self.model.embeds and int(recall[1]) not in ks:
            raise UserError(
                f"checkpoint.monitor is {monitor}, and retrieval.ks is {ks}. Add {recall[1]} to --retrieval.ks, or set "
                "--checkpoint.monitor to a metric that is measured, such as val/map."
            )

    def _loggers(self) -> list[Logger]:
        options = self.options
        method = label(options.model.class_path.rsplit(".", 1)[-1], getattr(self.model, "variant", None))
        dataset = self.datamodule.dataset.name
        own: list[Logger] = [MetricsLogger(self.folder)]
        if options.logger == "csv":
            return own
        if options.logger == "tensorboard":
            resumed = self.checkpoint if self.config.subcommand == "fit" else None
            return [*own, TensorBoard(self.folder, resumed["global_step"] if resumed else None)]
        if options.logger == "mlflow":
            return [*own, MLflow(self.folder, {"method": method, "dataset": dataset})]
        if isinstance(options.logger, str) and options.logger != "wandb":
            hint = did_you_mean(options.logger, NAMES)
            raise UserError(f"logger: '{options.logger}' is none of {', '.join(NAMES)}.{hint}")
        chosen = Wandb() if options.logger == "wandb" else self._get(self.config_init, "logger")
        return [*own, wandb_logger(chosen, self.folder, method, dataset, self.config.subcommand)]

    # ---- run ----------------------------------------------------------------------------------------------------

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except RuntimeError as fault:
            raise self.datamodule.explain(fault) or fault from fault
        except (SystemExit, KeyboardInterrupt) as stop:
            self._explain_stop(stop)
            raise
        finally:
            self._end_other_processes()

    @rank_zero_only
    def _explain_stop(self, stop: BaseException) -> None:
        """Print what stopped the command and how to go on."""
        number = stopping_signal(stop)
        if number is None:
            return
        by = "Ctrl-C" if number == signal.SIGINT else number.name
        kept = (self.folder / "checkpoints" / "last.ckpt").is_file()
        if self.config.subcommand == "fit" and kept:
            folder = shlex.quote(shown(self.folder))
            print(f"Stopped by {by}. To go on: fgssl fit --ckpt_path {folder}", flush=True)
        else:
            trained = "; no checkpoint was written yet" if self.config.subcommand == "fit" else ""
            print(f"Stopped by {by}{trained}.", flush=True)

    def _end_other_processes(self) -> None:
        """Wait for the local ranks that this process started, so that their messages are complete; kill after 10 s."""
        for process in getattr(self.trainer.strategy.launcher, "procs", []):
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()

    def after_fit(self) -> None:
        """Evaluate the last weights on the test rows."""
        if self.trainer.interrupted:
            return
        self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
        self.after_test()

    @rank_zero_only
    def after_test(self) -> None:
        print_summary(self.record.results, shown(self.folder))

    after_validate = after_test


def stopping_signal(stop: BaseException) -> signal.Signals | None:
    """The signal that ended a command: SIGTERM, SIGINT (Ctrl-C), or None for an exit of another cause."""
    if isinstance(stop, Stopped):
        return stop.signal
    if isinstance(stop, SIGTERMException):
        return signal.SIGTERM
    causes = (stop, stop.__context__)  # Lightning raises SystemExit for a KeyboardInterrupt
    return signal.SIGINT if any(isinstance(cause, KeyboardInterrupt) for cause in causes) else None


def run(
    args: list[str],
    experiment: str,
    kind: type[Application] = Application,
    method: type[Method] | None = None,
) -> int:
    """Run fit, validate, test or predict; returns the exit status.

    Args:
        args: command and its options.
        experiment: as of ``Application``.
        kind: subclass of ``Application`` to run.
        method: as of ``Application``.

    Raises:
        UserError: a mistake of the user, or an error of torch or Lightning whose cause is known.
    """
    quieten()
    torch.set_float32_matmul_precision("high")
    try:
        application = kind(args, experiment, method)
    except (SystemExit, KeyboardInterrupt) as stop:
        number = stopping_signal(stop)
        if number is None:
            raise
        if number == signal.SIGINT:  # Lightning leaves it ignored
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return 128 + number if getattr(rank_zero_only, "rank", 0) == 0 else 0
    except MisconfigurationException as fault:
        raise UserError(str(fault)) from fault
    except torch.OutOfMemoryError as fault:
        raise UserError(
            f"out of GPU memory ({str(fault).splitlines()[0]}). Lower data.batch_size (trainer."
            "accumulate_grad_batches keeps the effective batch), data.views.size or model.memory, or take "
            "--trainer.precision bf16-mixed."
        ) from fault
    except ValueError as fault:
        if "more than 1 value per channel" in str(fault):
            raise UserError(
                "BatchNorm cannot be trained on one image of a process where its map has one position. Raise "
                "data.batch_size, of which each process takes its share; or set trainer.sync_batchnorm on several GPUs."
            ) from fault
        if "val_check_interval" in str(fault):
            raise UserError(str(fault).strip()) from fault
        if "SyncBatchNorm" not in str(fault):
            raise
        raise UserError("trainer.sync_batchnorm needs GPUs. Set it to false on a CPU.") from fault
    except RuntimeError as fault:
        if "Early stopping" in str(fault):  # by a metric that there is not
            raise UserError(str(fault)) from fault
        if not _LOST_PROCESS.search(str(fault)):
            raise
        rank = getattr(rank_zero_only, "rank", 0)
        raise UserError(
            f"process {rank} lost its connection to the others: one of them stopped, or did not answer within the "
            f"strategy's timeout. The message of that process names the cause. ({str(fault).splitlines()[0][:200]})"
        ) from fault
    return 1 if application.trainer.interrupted else 0


_LOST_PROCESS = re.compile("Connection (closed|reset)|Broken pipe|[Tt]imed out|[Ww]atchdog|NCCL|gloo")
