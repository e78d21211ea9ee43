"""The check of a training step (is the loss finite, has a process to stop) is read behind the backward pass."""

import math

import pytest
import torch

from fgssl.cli.main import main
from fgssl.distributed import AnyRank
from fgssl.methods.base import Method
from tests.methods.runs import arguments, losses, results

pytestmark = pytest.mark.slow


def test_the_check_is_read_after_the_backward_pass(tmp_path, monkeypatch):
    order = []
    read, backward = AnyRank.read, torch.Tensor.backward

    def noted_read(check):
        order.append("read")
        return read(check)

    def noted_backward(*arguments, **options):
        order.append("backward")
        return backward(*arguments, **options)

    monkeypatch.setattr(AnyRank, "read", noted_read)
    monkeypatch.setattr(torch.Tensor, "backward", noted_backward)
    short = ("--trainer.max_steps", "3", "--data.num_workers", "0")
    assert main(arguments("finetune", tmp_path, "run", *short)) == 0
    assert order[:6] == ["backward", "read"] * 3


@pytest.mark.parametrize("spoilt", [2, 3])
def test_a_skipped_batch_leaves_the_gradients_of_those_accumulated_with_it(spoilt, tmp_path, monkeypatch):
    """Batches 2 and 3 make a step, and one is spoilt: the weights move by the gradient of the other."""
    norms = []
    before_step = Method.on_before_optimizer_step

    def noted(method, optimizer):
        before_step(method, optimizer)
        norms.append(max(float(weight.grad.norm()) for weight in method.parameters() if weight.grad is not None))

    monkeypatch.setattr(Method, "on_before_optimizer_step", noted)
    spoil = f"{{class_path: tests.trust.callbacks.SpoilInput, init_args: {{batches: [{spoilt}]}}}}"
    flags = ("--trainer.accumulate_grad_batches", "2", "--model.max_skips", "1", "--trainer.callbacks", spoil)
    assert main(arguments("finetune", tmp_path, "run", *flags, "--data.num_workers", "0")) == 0
    assert all(math.isfinite(float(loss)) for _, loss in losses(tmp_path / "finetune" / "run"))
    assert results(tmp_path / "finetune" / "run")["steps"] == 8
    assert len(norms) == 8
    assert all(0 < norm < math.inf for norm in norms), norms


def test_the_progress_bar_and_the_line_of_an_epoch_show_the_last_loss(tmp_path, capsys):
    flags = ("--trainer.enable_progress_bar", "true", "--trainer.max_epochs", "1", "--data.num_workers", "0")
    assert main(arguments("finetune", tmp_path, "run", *flags)) == 0
    last = float(losses(tmp_path / "finetune" / "run")[-1][1])
    assert f"loss {last:.4g}" in capsys.readouterr().out
