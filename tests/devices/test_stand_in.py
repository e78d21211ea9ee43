"""The stand-in device keeps CUDA's rules. In the tests' lines ``x``, ``m``, ``big`` are on the CPU, the rest is not."""

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from tests.devices.stand_in import recorded_waits, stand_in
from tests.devices.two_processes import two_processes

pytestmark = pytest.mark.slow


def execute(line: str, processes: int = 1) -> tuple[str, list[str]]:
    """Message of the error that a line of Python raises, or nothing, and the waits for the device."""
    with stand_in() as there:
        x, m = torch.arange(4.0), torch.nn.Linear(4, 2)
        y, rows = x.to(there), torch.tensor([2, 1], device=there)
        names = {"x": x, "m": m, "y": y, "rows": rows, "mask": y > 1, "there": there, "torch": torch, "F": F}
        names |= {"big": torch.zeros(20_000), "dist": dist}
        with recorded_waits() as waits:
            try:
                if processes == 2:
                    with two_processes():
                        eval(line, names)
                else:
                    eval(line, names)
            except (RuntimeError, TypeError, ValueError) as fault:
                return str(fault), []
    return "", [kind for kind, _ in waits]


@pytest.mark.parametrize(
    "line",
    [
        "x + y", "x + y[0]", "x.add_(y[0])", "x.copy_(y) + y", "torch.stack([x[0], y[0]])", "torch.cat([x, y])",
        "m(y)", "m.to(there)(x)", "x[rows]", "x.gather(0, rows)", "y.gather(0, rows.cpu())", "torch.where(x > 0, y, y)",
        "y.index_put_((rows,), x[:2])", "torch.searchsorted(y, x)", "F.cross_entropy(y[None], torch.tensor([1]))",
    ],
)  # fmt: skip
def test_two_devices_in_one_operation_are_refused(line, elsewhere):
    said, _ = elsewhere(execute, line)
    assert "Expected all tensors to be on the same device" in said


@pytest.mark.parametrize(
    "line",
    [
        "y + x[0]", "x[0] * y", "torch.where(mask, x[0], y)", "y.masked_fill(mask, x[0])", "y.lerp(y, x[0])",
        "y[rows]", "y.index_put_((rows,), x[0])", "y.__setitem__(mask, 3.0)", "y.__setitem__(0, 3.0)",
        "torch.full((), True, device=there)", "torch.randperm(4, device=there)", "torch.arange(4, device=there)",
        "y.sort()", "y.topk(2)", "y.cumsum(0)", "F.one_hot(rows, 4)", "torch.searchsorted(y, y)",
        "x.to(there, non_blocking=True)", "y.to('cpu', non_blocking=True)",
        "x.pin_memory().to(there, non_blocking=True)",
        "big.pin_memory()[1:].to(there, non_blocking=True)", "x.pin_memory().copy_(y, non_blocking=True)",
    ],
)  # fmt: skip
def test_what_cuda_does_without_waiting_is_no_wait(line, elsewhere):
    said, waits = elsewhere(execute, line)
    assert said == ""
    assert not waits


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("y[0].item()", "item"), ("float(y[0])", "item"), ("bool(mask[0])", "item"), ("y.tolist()", "tolist"),
        ("y.cpu()", "copy to the CPU"), ("x.copy_(y, non_blocking=True)", "copy to the CPU, not pinned"),
        ("x.to(there)", "copy to the device"), ("torch.tensor(0.5, device=there)", "copy to the device"),
        ("y.copy_(x)", "copy to the device"), ("big.to(there, non_blocking=True)", "copy to the device, not pinned"),
        ("y[mask]", "mask as index"), ("y[torch.tensor([1])]", "index on the CPU"), ("mask.nonzero()", "nonzero"),
        ("y.masked_fill(mask, y[0])", "masked_fill by a tensor"), ("y.unique()", "_unique2"),
        ("torch.multinomial(y, 1)", "multinomial"), ("torch.bincount(rows)", "bincount"), ("y.equal(y)", "equal"),
        ("torch.linalg.solve(torch.eye(2, device=there), y.view(2, 2))", "_linalg_check_errors"),
    ],
)  # fmt: skip
def test_the_host_waits(line, kind, elsewhere):
    assert elsewhere(execute, line) == ("", [kind])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dist.all_reduce(x)", "No backend type associated with device type cpu"),
        ("dist.all_gather_into_tensor(torch.zeros(8), y)", "No backend type associated with device type cpu"),
        ("dist.all_reduce(y.view(2, 2).t())", "must be contiguous"),
        ("dist.all_reduce(y.to(torch.int16))", "NCCL does not know torch.int16"),
    ],
)
def test_collectives_refuse_what_nccl_refuses(line, message, elsewhere):
    assert message in elsewhere(execute, line, 2)[0]


def gathered_and_summed():
    with stand_in() as there, two_processes():
        rows = torch.arange(3, device=there)
        both = rows.new_empty(6)
        dist.all_gather_into_tensor(both, rows)
        work = dist.all_reduce(rows, async_op=True)
        work.wait()
        return both.tolist(), rows.tolist()


def test_the_other_process_has_the_same_tensors(elsewhere):
    assert elsewhere(gathered_and_summed) == ([0, 1, 2, 0, 1, 2], [0, 2, 4])


def drawn():
    with stand_in() as there:
        torch.manual_seed(1)
        cpu, device = torch.rand(2), torch.rand(4, device=there)
        torch.manual_seed(1)
        torch.rand(100)  # draws on the CPU leave the device's numbers as they are
        again = torch.rand(4, device=there)
    return cpu.tolist(), device.tolist(), again.tolist()


def test_random_numbers_of_the_device_have_a_generator_of_their_own(elsewhere):
    cpu, device, again = elsewhere(drawn)
    assert device == again
    assert cpu == device[:2]
