"""Several GPUs over NCCL."""

import pytest

from tests.ddp.test_processes import assert_a_death_ends_the_run, assert_processes_train_the_same
from tests.gpu.on_gpu import ON_TWO_GPUS
from tests.methods.runs import RUNS

pytestmark = list(ON_TWO_GPUS)

GPU = ("--trainer.accelerator", "gpu")


@pytest.mark.parametrize("method", RUNS)
def test_two_gpus_train_the_weights_teacher_and_memory_of_one(method, tmp_path):
    assert_processes_train_the_same(method, 2, tmp_path, *GPU)


@pytest.mark.parametrize("rank", [0, 1])
def test_killed_rank_ends_the_run_on_the_other_gpu(rank, tmp_path):
    """NCCL notices a dead process by the timeout alone."""
    strategy = "{class_path: DDPStrategy, init_args: {timeout: '0:01:00'}}"
    assert_a_death_ends_the_run(rank, tmp_path, *GPU, "--trainer.strategy", strategy)
