"""Teacher and queue under the real Trainer: accumulation, wrap-around, filling, resume."""

import warnings

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from fgssl.methods.base import Method, StepResult
from fgssl.methods.maskcon import MaskCon
from fgssl.nn.memory import Memory
from fgssl.nn.teacher import Pair, teacher_of
from fgssl.optim import Optim
from tests.tiny import BACKBONE, blob_loader, tiny_trainer


class Toy(Method):
    """A linear student without normalisation layers, so that two half batches are exactly one whole."""

    def __init__(self, memory: int = 20, momentum: float = 0.9):
        super().__init__(Optim(lr=0.01, warmup=0, momentum=0.0))
        torch.manual_seed(0)
        self.student = nn.Linear(3, 2, dtype=torch.float64)
        self.teacher = teacher_of(self.student)
        self.memory = Memory(memory, 2).double()
        self.momentum = momentum
        self.seen: list[torch.Tensor] = []  # what the memory held at each step

    def teachers(self):
        return [Pair(self.student, self.teacher)]

    def teacher_momentum(self, step, total):
        return self.momentum

    def keys(self, batch):
        with torch.no_grad():
            keys = self.teacher(batch.views[1].mean((2, 3)).double())
        return {"memory": (keys, batch.coarse, batch.index)}

    def prefill(self, batch):
        return self.keys(batch)

    def step(self, batch):
        self.seen.append(self.memory.index.clone())
        out = self.student(batch.views[0].mean((2, 3)).double())
        loss = (out @ self.memory.keys.T).pow(2).mean() + out.pow(2).mean()
        return StepResult(loss, enqueue=self.keys(batch))


class Watch(Callback):
    """Keeps the teacher's weights after every batch."""

    def __init__(self):
        self.teacher, self.student = [], []

    def on_train_batch_end(self, trainer, method, *_):
        self.teacher.append(method.teacher.weight.detach().clone())
        self.student.append(method.student.weight.detach().clone())


def train(method: Method, batch_size: int = 8, **options):
    watch = Watch()
    tiny_trainer(callbacks=[watch], **options).fit(method, blob_loader(batch_size=batch_size))
    return watch


def test_memory_is_filled_before_the_first_step_with_real_keys():
    toy = Toy()
    train(toy, max_steps=1, max_epochs=-1)
    assert toy.seen[0].tolist() == list(range(20))
    assert toy.memory.keys.abs().sum() > 0


def test_the_batch_is_not_in_the_memory_for_its_own_loss_and_enters_after_it():
    toy = Toy()
    train(toy)
    assert toy.seen[1].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, *range(8, 20)]
    assert toy.seen[3].tolist() == [20, 21, 22, 23, *range(4, 20)]  # the third batch wrapped: 16 + 8 = 20 + 4


def test_teacher_follows_each_optimiser_step():
    toy = Toy()
    start = toy.teacher.weight.detach().clone()
    watch = train(toy)
    expected = start
    for teacher, student in zip(watch.teacher, watch.student, strict=True):
        torch.testing.assert_close(teacher, expected, rtol=1e-12, atol=0)  # Watch looks before the teacher moves
        expected = 0.9 * expected + 0.1 * student
    torch.testing.assert_close(toy.teacher.weight.detach(), expected, rtol=1e-12, atol=0)


def test_accumulated_batches_equal_the_one_they_stand_for():
    whole, halves = Toy(), Toy()
    watch_whole = train(whole, batch_size=8)
    watch_halves = train(halves, batch_size=4, accumulate_grad_batches=2)
    torch.testing.assert_close(halves.student.weight, whole.student.weight, rtol=1e-12, atol=0)
    torch.testing.assert_close(halves.teacher.weight, whole.teacher.weight, rtol=1e-12, atol=0)
    torch.testing.assert_close(halves.memory.keys, whole.memory.keys, rtol=1e-12, atol=0)
    assert torch.equal(halves.memory.index, whole.memory.index)
    assert halves.memory.pointer == whole.memory.pointer
    assert torch.equal(watch_halves.teacher[0], Toy().teacher.weight)  # the first half moved nothing
    assert len(watch_halves.teacher) == 2 * len(watch_whole.teacher)


def test_memory_warns_only_above_two_epochs_of_images():
    with pytest.warns(UserWarning, match="memory is 100, more than twice the 32 images of an epoch"):
        train(Toy(memory=100))
    with warnings.catch_warnings():  # Stanford Cars: 8,192 keys, 8,064 images an epoch
        warnings.filterwarnings("error", message="model.memory")
        train(Toy(memory=40))


def make_maskcon() -> MaskCon:
    torch.manual_seed(0)
    optim = Optim(lr=0.05, warmup=1)
    return MaskCon(BACKBONE, dim=6, hidden=8, memory=20, num_coarse=2, optim=optim)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_resumed_run_ends_with_the_same_weights_teacher_memory_and_schedule(accumulated, tmp_path):
    options = {"max_epochs": 4, "accumulate_grad_batches": accumulated}
    whole = make_maskcon()
    trainer = tiny_trainer(**options)
    trainer.fit(whole, blob_loader())

    keep = ModelCheckpoint(tmp_path, filename="half")
    half = tiny_trainer(**options, callbacks=[_StopAfter(2), keep], enable_checkpointing=True)
    half.fit(make_maskcon(), blob_loader())
    assert 2 * half.global_step == trainer.global_step

    resumed = make_maskcon()
    again = tiny_trainer(**options)
    again.fit(resumed, blob_loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    ours, theirs = resumed.state_dict(), whole.state_dict()
    for name, value in theirs.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(ours[name], value), name
        else:
            assert ours[name] == value, name
    assert again.global_step == trainer.global_step


class _StopAfter(Callback):
    def __init__(self, epochs: int):
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, method):
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def test_what_the_user_says_at_resume_wins_over_the_checkpoints_optimiser(tmp_path):
    keep = ModelCheckpoint(tmp_path, filename="last")
    tiny_trainer(max_epochs=2, callbacks=[keep], enable_checkpointing=True).fit(make_maskcon(), blob_loader())
    resumed = make_maskcon()
    resumed.optim = Optim(lr=0.5, weight_decay=0.0, warmup=0)
    seen = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, method, *_):
            seen.append(dict(method.optimizers().param_groups[0]))

    trainer = tiny_trainer(max_epochs=4, callbacks=[Look()])
    trainer.fit(resumed, blob_loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert seen[0]["weight_decay"] == 0
    assert seen[0]["lr"] == pytest.approx(0.5 * 0.5)  # half-way of the cosine
    assert seen[1]["lr"] < seen[0]["lr"]
