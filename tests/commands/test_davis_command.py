"""``fgssl davis`` from a checkpoint of ours and of a public network, on a made copy of DAVIS."""

import csv
import json
from pathlib import Path

import pytest

from fgssl.cli.main import main
from fgssl.commands.davis import _parser, build, mean_and_std
from fgssl.report.runs import read_run
from tests.evaluation.test_davis import make_davis
from tests.methods.runs import arguments, assert_same_state

pytestmark = pytest.mark.slow

SMALL = ("--partial", "--short_side", "32", "--radius", "2")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_davis(tmp_path_factory.mktemp("davis"), still=(0, 0), moving=(1, -1))


def metrics(runs: Path, name: str) -> dict:
    results = json.loads((runs / "davis" / name / "results.json").read_text())
    assert results["status"] == "finished"
    assert results["data"]["test"]["images"] == 2
    return results["metrics"]


def test_davis_of_teacher_and_student_of_a_checkpoint(root, tmp_path, capsys):
    assert main([*arguments("flsl", tmp_path, "run"), "--trainer.max_steps", "2"]) == 0
    checkpoint = ("--ckpt_path", str(tmp_path / "flsl" / "run"), "--run.root", str(tmp_path))
    assert main(["davis", *checkpoint, "--root", str(root), *SMALL]) == 0
    assert main(["davis", *checkpoint, "--root", str(root), *SMALL, "--network", "student"]) == 0
    for name in ("run", "run_student"):
        assert 0 < metrics(tmp_path, name)["test/jf_mean"] <= 1
    assert "jf_mean" in capsys.readouterr().out
    assert read_run(tmp_path / "davis" / "run").settings["davis.radius"] == 2
    assert main(["davis", *checkpoint, "--root", str(root), *SMALL]) == 2  # nothing is overwritten
    assert "already contains a result" in capsys.readouterr().err
    public = ["--model", "timm/test_resnet", "--pretrained", "false", "--run.root", str(tmp_path)]
    assert main(["davis", *public, "--root", str(root), *SMALL]) == 0
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "davis"), "--format", "csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert {row["metric"] for row in rows} == {"jf_mean"}
    assert {row["method"] for row in rows} == {"FLSL", "FLSL (student)", "timm/test_resnet (random weights)"}


def test_davis_of_a_public_network(root, tmp_path):
    flags = ["davis", "--model", "timm/test_resnet", "--pretrained", "false", "--run.root", str(tmp_path)]
    assert main([*flags, "--root", str(root), *SMALL, "--save", str(tmp_path / "masks")]) == 0
    assert 0 <= metrics(tmp_path, "test_resnet_random")["test/j_mean"] <= 1
    assert len(list((tmp_path / "masks").rglob("*.png"))) == 12


def test_an_untrained_network_is_that_of_seed_0():
    args = _parser().parse_args(["--model", "timm/test_resnet", "--pretrained", "false"])
    config = {
        "model": {"class_path": "Frozen", "init_args": {"backbone": {"name": "test_resnet", "pretrained": False}}}
    }
    assert_same_state(build(config, args).state_dict(), build(config, args).state_dict())


def test_runs_of_a_public_network_share_a_row_whatever_their_names_and_places(root, tmp_path):
    for name in ("one", "two"):
        flags = ["davis", "--model", "timm/test_resnet", "--pretrained", "false", "--root", str(root), *SMALL]
        named = ["--run.name", name, "--save", str(tmp_path / "masks" / name), "--run.root", str(tmp_path)]
        assert main([*flags, *named]) == 0
    one, two = (read_run(tmp_path / "davis" / name).settings for name in ("one", "two"))
    assert one == two
    assert one["davis.radius"] == 2


def test_null_is_the_normalisation_of_the_starting_weights():
    backbone = {"name": "test_resnet", "pretrained": True}  # timm's weights of it take mean and deviation 0.5
    config = {"data": {"mean": None}, "model": {"class_path": "MaskCon", "init_args": {"backbone": backbone}}}
    assert mean_and_std(config) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    config["data"] = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    assert mean_and_std(config) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


def test_davis_refuses_missing_network_and_missing_data(root, tmp_path, capsys):
    assert main(["davis", "--root", str(root)]) == 2
    assert "--ckpt_path RUN or --model timm/NAME" in capsys.readouterr().err
    assert main(["davis", "--model", "timm/resnet18", "--root", str(tmp_path)]) == 2
    assert "val.txt not found" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--run.root", "--save"])
def test_davis_refuses_a_place_that_cannot_be_written_before_it_evaluates(option, root, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fgssl.commands.davis.evaluate", lambda *_: pytest.fail("evaluated"))
    (tmp_path / "file").write_text("")
    flags = ["davis", "--model", "timm/test_resnet", "--pretrained", "false", "--root", str(root), *SMALL]
    assert main([*flags, "--run.root", str(tmp_path), option, str(tmp_path / "file" / "folder")]) == 2
    assert f"{option}: nothing can be written to {tmp_path / 'file' / 'folder'}" in capsys.readouterr().err
