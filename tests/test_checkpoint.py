"""Writing and reading a checkpoint, and what is said where it does not fit."""

from pathlib import Path

import pytest
import torch

from fgssl.checkpoint import AtomicCheckpointIO, check_fits, read_backbone, read_checkpoint
from fgssl.errors import UserError


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux lists the mapped files there")
def test_tensors_stay_in_the_file_until_they_are_used(tmp_path):
    torch.save({"weight": torch.ones(3)}, tmp_path / "last.ckpt")
    content = read_checkpoint(str(tmp_path / "last.ckpt"))
    assert content["weight"].tolist() == [1, 1, 1]
    assert str(tmp_path / "last.ckpt") in Path("/proc/self/maps").read_text()  # files that are mapped into memory


@pytest.mark.parametrize(("count", "more"), [(3, "."), (4, "; and 1 more."), (5, "; and 2 more.")])
def test_three_weights_that_do_not_fit_are_named(count, more):
    weights = {f"weight{number}": torch.ones(1) for number in range(count)}
    with pytest.raises(UserError) as caught:
        check_fits(weights, torch.nn.Identity(), "run.ckpt")
    named = [name for name in weights if name in str(caught.value)]
    assert named == ["weight0", "weight1", "weight2"]
    assert f"{more} Set the model's arguments" in str(caught.value)


@pytest.mark.parametrize(("networks", "has"), [({"student": "query."}, "student"), ({}, "none")])
def test_a_checkpoint_without_the_network_that_is_asked_for_says_what_it_has(networks, has, tmp_path):
    torch.save({"method": "MaskCon", "backbones": networks, "state_dict": {}}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=rf"MaskCon, has no teacher backbone \(it has: {has}\)"):
        read_backbone(str(tmp_path / "last.ckpt"), "teacher")


def test_a_checkpoint_makes_its_folders(tmp_path):
    for _ in range(2):
        AtomicCheckpointIO().save_checkpoint({"step": 1}, tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert read_checkpoint(str(tmp_path / "run" / "checkpoints" / "last.ckpt")) == {"step": 1}


def test_a_checkpoint_whose_folder_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="last.ckpt could not be written"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "file" / "last.ckpt")


def test_the_reason_is_the_first_line_of_torchs_message(tmp_path, monkeypatch):
    said = "what is wrong"

    def refuse(*_, **__):
        raise RuntimeError(f"{said}\nwhere in torch")

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(UserError, match=r"loaded safely \(what is wrong\)"):
        read_checkpoint(str(tmp_path / "last.ckpt"))
    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(UserError, match=r"could not be written \(what is wrong\)"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "last.ckpt")
    said = 300 * "x"
    with pytest.raises(UserError, match=rf"loaded safely \({200 * 'x'}\)"):
        read_checkpoint(str(tmp_path / "last.ckpt"))
