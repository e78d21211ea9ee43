"""The memory bank: order, wrap-around, state."""

import json
from pathlib import Path

import pytest
import torch

from fgssl.nn.memory import Memory

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "maskcon.json").read_text())["queue"]


def push(memory: Memory, first: int, count: int) -> None:
    """Enqueue keys whose every component is their serial number."""
    serial = torch.arange(first, first + count)
    memory.enqueue(serial[:, None].float().expand(-1, memory.keys_KD.shape[1]), serial % 7, serial)


def test_pointer_is_the_golden_one():
    memory, pointers = Memory(GOLDEN["K"], 3), []
    for step in range(GOLDEN["pushes"]):
        push(memory, step * GOLDEN["batch"], GOLDEN["batch"])
        pointers.append(memory.pointer)
    assert pointers == GOLDEN["ptr_after"]


@pytest.mark.parametrize("batch", [1, 3, 4, 7, 10, 25])
def test_the_newest_stay_whatever_the_batch(batch):
    memory, pushed = Memory(10, 2), 0
    for _ in range(9):
        push(memory, pushed, batch)
        pushed += batch
        newest = set(range(max(0, pushed - 10), pushed))
        assert set(memory.index.tolist()) == newest
        assert memory.fill == len(newest)
        assert memory.keys[:, 0].long().tolist() == memory.index.tolist()
        assert memory.labels.tolist() == [i % 7 for i in memory.index.tolist()]


def test_one_large_batch_equals_many_small_ones():
    large, small = Memory(10, 2), Memory(10, 2)
    push(large, 0, 23)
    for first in range(23):
        push(small, first, 1)
    assert torch.equal(large.keys_KD, small.keys_KD)
    assert large.pointer == small.pointer


def test_only_filled_slots_are_shown():
    memory = Memory(10, 2)
    assert memory.keys.shape == (0, 2)
    push(memory, 0, 4)
    assert memory.keys.shape == (4, 2)


def test_checksum_tells_memories_of_other_positions_apart():
    """Ranks whose next keys enter at different slots hold the same keys only until then."""
    memory, other = Memory(10, 2), Memory(10, 2)
    push(memory, 0, 13)
    push(other, 0, 13)
    assert torch.equal(memory.checksum(), other.checksum())
    other.pointer += 1
    assert not torch.equal(memory.checksum(), other.checksum())


def test_state_survives_a_checkpoint(tmp_path):
    memory, loaded = Memory(10, 2), Memory(10, 2)
    push(memory, 0, 13)
    torch.save(memory.state_dict(), tmp_path / "memory.pt")
    loaded.load_state_dict(torch.load(tmp_path / "memory.pt", weights_only=True))
    push(memory, 13, 4)
    push(loaded, 13, 4)
    assert torch.equal(memory.keys_KD, loaded.keys_KD)
    assert (memory.pointer, memory.fill) == (loaded.pointer, loaded.fill)
