"""Every option of ``fgssl fit`` that is not Lightning's own has a line in a table of what it changes.

The tables are those of the classes (``test_no_dead_option.py`` of the methods, ``test_no_dead_*_option.py`` of tasks,
data and callbacks) and, for what belongs to the application, ``FLAGS`` below.
"""

import argparse
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from fgssl import loggers
from fgssl.callbacks.retrieval import Retrieval
from fgssl.cli.completion import BareApplication
from fgssl.cli.main import main
from fgssl.data.datamodule import DataModule
from fgssl.data.protocols import Protocol
from fgssl.evaluation.reranking import Rerank
from fgssl.loggers import Wandb, wandb_logger
from fgssl.methods.registry import known_methods
from fgssl.run import Run
from tests.callbacks import test_no_dead_callback_option as of_callbacks
from tests.cli.test_cli import DIGITS, SMALL, results, weights
from tests.data import test_no_dead_data_option as of_data
from tests.methods import test_no_dead_option as of_methods
from tests.options import Changes, Elsewhere, Row, cases, changed, check_named_test, elsewheres, options_of
from tests.tasks import test_no_dead_task_option as of_tasks

pytestmark = pytest.mark.slow

# ---- every option is in a table -------------------------------------------------------------------------------------

RESUMED = Elsewhere("trust/test_interruption.py", "test_resume_starts_a_run_that_is_not_there_and_needs_its_name")
COMPILED = Elsewhere(
    "nn/test_compiled.py", "test_options_act_and_a_compiled_run_trains_resumes_and_exports_as_a_plain_one"
)
LOGGER = Elsewhere(
    "test_other_loggers.py", "test_tensorboard_has_the_metrics_and_pictures_and_hides_what_a_resumed_run_repeats"
)
REFUSED = Elsewhere("cli/test_no_dead_flag.py", "test_options_of_the_trainer_that_fgssl_sets_are_refused")
CHECKED = {"checkpoint.every_n_train_steps": 1}
RESULTS = {"weights", "metrics"}

FLAGS: Row = {
    "seed_everything": Changes(1, {*RESULTS, "configuration"}),
    "run.root": Changes("others", {"place", "configuration"}),
    "run.experiment": Changes("question", {"place", "configuration"}),
    "run.name": Changes("second", {"place", "configuration"}),
    "run.paper": Changes("maskcon, Table 2", {"configuration"}),  # read by fgssl compare: tests/report/test_compare.py
    "run.resume": RESUMED,
    "checkpoint.every_n_epochs": Changes(2, {"checkpoints", "configuration"}),
    "checkpoint.every_n_train_steps": Changes(1, {"checkpoints", "configuration"}),
    "checkpoint.monitor": Changes("val/map", {"best by", "configuration"}),
    "logger": LOGGER,
    "quiet": Elsewhere("callbacks/test_progress.py", "test_quiet_prints_the_results_and_nothing_before_them"),
    "trainer.compile": COMPILED,
    "trainer.channels_last": COMPILED,
    "trainer.enable_checkpointing": REFUSED,
    "trainer.logger": REFUSED,
    "ckpt_path": Elsewhere("cli/test_saved_runs.py", "test_fit_with_a_run_alone_resumes_it_with_its_own_options"),
}
# section -> the class whose options stand below it
CLASSES = {"data": DataModule, "data.protocol": Protocol, "retrieval": Retrieval, "retrieval.rerank": Rerank}
TABLES = of_data.ROWS_OF | of_callbacks.ROWS
LIGHTNINGS = {f"trainer.{name}" for name in inspect.signature(Trainer).parameters} | {"weights_only"}
OF_THE_PARSER = {"help", "config", "print_config"}


def leaves() -> set[str]:
    """Options of ``fgssl fit`` that are no section of others."""
    parser: argparse.ArgumentParser = BareApplication.parser_of("fit")._subcommands_action.choices["fit"]
    names = {action.dest for action in parser._actions if not action.dest.endswith(".help")}
    return {name for name in names if not any(other.startswith(f"{name}.") for other in names)}


def test_every_option_of_fit_is_in_a_table():
    in_classes = {f"{section}.{option}" for section, kind in CLASSES.items() for option in TABLES[kind]}
    known = in_classes | set(FLAGS) | LIGHTNINGS | OF_THE_PARSER | {"model"}
    assert leaves() - known == set()
    assert set(FLAGS) - leaves() == set()


@pytest.mark.parametrize("section", CLASSES)
def test_options_below_a_section_are_those_of_its_class(section):
    below = {name.removeprefix(f"{section}.") for name in leaves() if name.startswith(f"{section}.")}
    options = options_of(CLASSES[section])
    assert {name for name in below if "." not in name} <= options
    assert {name.partition(".")[0] for name in below} == options


def test_options_of_run_are_flags():
    assert {f"run.{option}" for option in options_of(Run)} == {name for name in FLAGS if name.startswith("run.")}


def test_every_method_of_the_model_section_is_in_a_table():
    ours = {kind for kind in known_methods().values() if kind.__module__.startswith("fgssl.")}  # not those of tests
    assert ours <= set(of_methods.ROWS) | set(of_tasks.ROWS)


# ---- the options of the application ---------------------------------------------------------------------------------

BASE = {
    "run.root": "runs", "run.name": "first", "trainer.max_epochs": 2, "data.protocol.val_fraction": 0.3,
    "trainer.limit_train_batches": 2, "trainer.limit_test_batches": 1, "data.views.size": 16,
    "data.eval_batch_size": 32,
}  # fmt: skip


def fit(*flags: str) -> int:
    return main(["fit", "--config", DIGITS, *SMALL, *flags])


@pytest.fixture
def written(monkeypatch) -> list[tuple[str, int, str | None]]:
    """File, step and metric of each checkpoint that is written."""
    found: list[tuple[str, int, str | None]] = []
    write = ModelCheckpoint._save_checkpoint

    def noting(self, trainer, filepath: str) -> None:
        found.append((Path(filepath).name, trainer.global_step, self.monitor))
        write(self, trainer, filepath)

    monkeypatch.setattr(ModelCheckpoint, "_save_checkpoint", noting)
    return found


def of_fit(written: list, **flags: Any) -> dict[str, Any]:
    """The place and configuration of a run, its weights and metrics, and when checkpoints were written."""
    before = {path.parent for path in Path.cwd().rglob("results.json")}
    written.clear()
    assert fit(*(word for name, value in (BASE | flags).items() for word in (f"--{name}", str(value)))) == 0
    (run,) = {path.parent for path in Path.cwd().rglob("results.json")} - before
    metrics = {name: value for name, value in results(run)["metrics"].items() if not name.startswith("throughput")}
    return {
        "place": run,
        "configuration": yaml.safe_load((run / "config.yaml").read_text()),
        "weights": {name: value for name, value in weights(run).items() if isinstance(value, torch.Tensor)},
        "metrics": metrics,
        "checkpoints": [(file, step) for file, step, _ in written if file == "last.ckpt"],
        "best by": {monitor for file, _, monitor in written if file == "best.ckpt"},
    }


@pytest.mark.parametrize(("kind", "option", "line"), cases({Run: FLAGS}))
def test_another_value_of_a_flag_changes_what_its_help_says(kind, option, line, written, tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path / "base")
    if not SEEN:
        SEEN.append(of_fit(written) | {"place": Path("runs/maskcon_digits/first")})
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    seen = of_fit(written, **{option: line.value})
    seen["place"] = seen["place"].relative_to(Path.cwd())
    assert changed(seen, SEEN[0]) == line.parts


SEEN: list[dict[str, Any]] = []  # the base


@pytest.mark.parametrize(("option", "line"), elsewheres({Run: FLAGS}))
def test_the_test_named_elsewhere_is_of_the_option(option, line):
    check_named_test(option.rpartition(".")[2], line)


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("trainer.enable_checkpointing", "false", "--checkpoint.every_n_epochs"),
        ("trainer.logger", "false", "--logger"),
    ],
)
def test_options_of_the_trainer_that_fgssl_sets_are_refused(flag, value, said, tmp_path, capsys):
    assert fit("--run.root", str(tmp_path), f"--{flag}", value) == 2
    message = capsys.readouterr().err
    assert flag in message
    assert said in message
    assert not list(tmp_path.iterdir())


# ---- W&B ------------------------------------------------------------------------------------------------------------

WANDB: dict[type, Row] = {
    Wandb: {
        "project": Changes("birds", {"project"}),
        "entity": Changes("team", {"entity"}),
        "offline": Changes(True, {"offline", "mode"}),
    }
}


@pytest.mark.parametrize(("kind", "option", "line"), cases(WANDB))
def test_another_value_of_wandb_reaches_its_logger(kind, option, line, tmp_path, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger", dict)
    monkeypatch.setattr(loggers, "_wandb", lambda: type("wandb", (), {"finish": staticmethod(lambda: None)}))
    monkeypatch.setattr(loggers, "has_wandb_account", lambda: True)
    base, ours = (
        wandb_logger(Wandb(**options), tmp_path / "runs" / "run", "MaskCon", "cub", "fit")
        for options in ({}, {option: line.value})
    )
    assert changed(ours, base) == line.parts


def test_every_option_of_wandb_has_a_line():
    assert options_of(Wandb) == set(WANDB[Wandb])
