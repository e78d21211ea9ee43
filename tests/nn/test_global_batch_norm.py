"""GlobalBatchNorm1d and the MLPs with it; on two real processes they are run by tests/methods/test_rivals.py."""

import pytest
import torch
from torch import nn

from fgssl.nn.batch_norm import GlobalBatchNorm1d
from fgssl.nn.heads import batch_norm_mlp
from tests.devices.stand_in import stand_in
from tests.devices.two_processes import two_processes

B, C = 6, 5


def rows(dtype: torch.dtype) -> torch.Tensor:
    """Rows whose mean is large beside their deviation."""
    return (30 + torch.randn(B, C, generator=torch.Generator().manual_seed(0))).to(dtype)


def seen(layer: nn.BatchNorm1d, x_BC: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output of a training step, gradient of a loss of it, and running statistics."""
    x_BC = x_BC.detach().requires_grad_()
    y_BC = layer(x_BC)
    weights_BC = torch.arange(float(B * C)).view(B, C).sin().to(y_BC.device)
    (y_BC.float() * weights_BC).sum().backward()
    found = {"y": y_BC.detach(), "dx": x_BC.grad, "mean": layer.running_mean, "variance": layer.running_var}
    return {name: value.cpu().float() for name, value in found.items()}


def on_two(dtype: torch.dtype, affine: bool) -> dict[str, torch.Tensor]:
    """The first of two processes on a device; the second has the same rows."""
    with stand_in() as there, two_processes():
        return seen(GlobalBatchNorm1d(C, affine=affine).to(there), rows(dtype).to(there))


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "affine"), [(torch.float32, True), (torch.float32, False), (torch.bfloat16, True)])
def test_two_processes_with_the_same_rows_have_the_statistics_of_both(dtype, affine, elsewhere):
    ours = elsewhere(on_two, dtype, affine)
    theirs = seen(nn.BatchNorm1d(C, affine=affine).double(), rows(dtype).double())
    theirs["variance"] = 0.9 + 0.1 * rows(dtype).double().var(dim=0, correction=0).float() * 2 * B / (2 * B - 1)
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 5e-2}
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, **close, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("mode", [True, False])
def test_one_process_has_torchs_batch_norm(mode):
    ours, theirs = GlobalBatchNorm1d(C).train(mode), nn.BatchNorm1d(C).train(mode)
    assert torch.equal(ours(rows(torch.float32)), theirs(rows(torch.float32)))
    assert ours.running_var.equal(theirs.running_var)


@pytest.mark.parametrize(
    ("last", "kinds", "trained"),
    [
        ("linear", [], 2 * 7),
        ("bias", [], 2 * 7 + 2),
        ("norm", [GlobalBatchNorm1d], 2 * 7),
        ("scale", [GlobalBatchNorm1d], 2 * 7 + 2),  # its shift is not trained
    ],
)
def test_mlp_has_the_layers_of_its_last_option(last, kinds, trained):
    mlp = batch_norm_mlp([C, 4, 7, 2], last)
    hidden = [nn.Linear, GlobalBatchNorm1d, nn.ReLU]
    assert [type(layer) for layer in mlp] == [*hidden, *hidden, nn.Linear, *kinds]
    count = sum(weight.numel() for weight in mlp.parameters() if weight.requires_grad)
    assert count == 5 * 4 + 2 * 4 + 4 * 7 + 2 * 7 + trained
    assert mlp(rows(torch.float32)).shape == (B, 2)


def test_mlp_without_hidden_layer_is_one_linear_layer():
    assert [type(layer) for layer in batch_norm_mlp([C, 2])] == [nn.Linear]
