"""Which images make up which batch: every epoch, rank, process count and resume."""

import numpy as np
import pytest

from fgssl.data.draws import uniform
from fgssl.data.samplers import ClassBalanced, EvalShard, Shuffled
from fgssl.errors import UserError

LABELS = np.repeat(np.arange(10), 6)  # 60 images of 10 classes
KINDS = {
    "shuffled": lambda batch_size, **options: Shuffled(60, batch_size, **options),
    "balanced": lambda batch_size, **options: ClassBalanced(LABELS, batch_size, **options),
    "replacement": lambda batch_size, **options: ClassBalanced(LABELS, batch_size, replacement=True, **options),
}


def batches(sampler) -> np.ndarray:
    return np.stack(list(sampler))  # [batches, B, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_together_see_the_batches_of_one_process(kind):
    one = batches(KINDS[kind](12, seed=1))
    ranks = [batches(KINDS[kind](12, seed=1, rank=rank, world=3)) for rank in range(3)]
    assert all(rank.shape == (5, 4, 2) for rank in ranks)
    assert np.array_equal(one, np.concatenate(ranks, axis=1))


@pytest.mark.parametrize("kind", KINDS)
def test_starting_at_a_batch_gives_what_would_have_come(kind):
    whole = batches(KINDS[kind](8, epoch=2))
    late = KINDS[kind](8, epoch=2, start_batch=5)
    assert np.array_equal(batches(late), whole[5:])
    assert len(late) == len(whole)  # Lightning counts its progress by the length
    late.set_epoch(2)
    assert np.array_equal(batches(late), whole[5:])
    late.set_epoch(3)
    assert np.array_equal(batches(late), batches(KINDS[kind](8, epoch=3)))


def test_epochs_and_seeds_have_their_own_order_and_serial_numbers():
    orders = [batches(Shuffled(60, 10, seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (-1, 0, 1)]
    assert len({tuple(order[..., 0].ravel()) for order in orders}) == 6
    draws = np.concatenate([order[..., 1].ravel() for order in orders[:3]])
    assert np.array_equal(draws, np.arange(180))


def test_shuffled_shows_each_image_once_and_drops_what_fills_no_batch():
    assert sorted(batches(Shuffled(60, 10))[..., 0].ravel()) == list(range(60))
    assert batches(Shuffled(60, 16)).shape == (3, 16, 2)


def test_balanced_batches_hold_distinct_classes_and_images():
    sampler = ClassBalanced(LABELS, 12, images_per_class=3)
    for batch in batches(sampler)[..., 0]:
        labels, counts = np.unique(LABELS[batch], return_counts=True)
        assert len(labels) == 4
        assert (counts == 3).all()
        assert len(set(batch)) == 12
    assert len(sampler) == 60 // 12


def test_with_replacement_an_image_may_be_its_own_pair():
    labels = np.arange(8)  # one image a class
    pairs = batches(ClassBalanced(labels, 8, replacement=True))[0, :, 0].reshape(-1, 2)
    assert (pairs[:, 0] == pairs[:, 1]).all()
    many = batches(ClassBalanced(np.repeat(np.arange(50), 20), 100, replacement=True))[..., 0]
    assert any(len(np.unique(batch[::2] // 20)) < 50 for batch in many)  # classes repeat in a batch


def test_every_class_and_image_is_drawn_equally_often():
    sampler = ClassBalanced(LABELS, 20, images_per_class=2)
    counts = np.zeros(60)
    for epoch in range(200):
        sampler.set_epoch(epoch)
        counts += np.bincount(batches(sampler)[..., 0].ravel(), minlength=60)
    assert abs(counts / counts.mean() - 1).max() < 0.2  # 200 draws of each are expected: 3 sigma


def test_a_lonely_image_is_repeated_where_a_pair_is_asked_for():
    labels = np.array([0, 1, 1, 1])
    assert batches(ClassBalanced(labels, 4))[0, :, 0].tolist().count(0) == 2


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("images", [1, 10, 12])
def test_evaluation_covers_all_rows_with_equal_batches(images, world):
    shards = [list(EvalShard(images, 3, rank=rank, world=world)) for rank in range(world)]
    sizes = [[len(batch) for batch in shard] for shard in shards]
    assert all(size == sizes[0] for size in sizes)
    assert len(sizes[0]) == len(EvalShard(images, 3, world=world))
    rows = np.concatenate([batch for shard in shards for batch in shard])
    assert set(rows[:, 0]) == set(range(images))
    assert (rows[:, 1] == -1).all()
    if world == 1:
        assert rows[:, 0].tolist() == list(range(images))


def test_a_batch_that_does_not_fit_is_said():
    with pytest.raises(UserError, match="60 training images"):
        Shuffled(60, 61)
    with pytest.raises(UserError, match=r"data.batch_size is 64.*60 training images. Lower it to 60 or less"):
        Shuffled(60, 64, world=4)
    with pytest.raises(UserError, match=r"data.batch_size \(11\) must be a multiple of data.images_per_class \(2\)"):
        ClassBalanced(LABELS, 11)
    with pytest.raises(UserError, match="needs 12 classes; the training images have 10"):
        ClassBalanced(LABELS, 24)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_that_processes_cannot_share_names_the_nearest_that_they_can(kind):
    with pytest.raises(UserError, match=r"data.batch_size is 14 images.* 4 processes cannot .* Set it to 12 or 16"):
        KINDS[kind](14, world=4)
    with pytest.raises(
        UserError, match=r"2 images over all processes, and 4 .* Set it to 4, or change trainer.devices"
    ):
        KINDS[kind](2, world=4)


def test_draws_are_uniform_and_independent():
    numbers = uniform(seed=0, draws=np.arange(20000), stream=0, count=4)
    others = uniform(seed=0, draws=np.arange(20000), stream=1, count=4)
    reseeded = uniform(seed=1, draws=np.arange(20000), stream=0, count=4)
    columns = np.concatenate([numbers, others, reseeded], axis=1)
    assert columns.min() >= 0
    assert columns.max() < 1
    assert abs(columns.mean(0) - 0.5).max() < 0.01
    histogram = np.stack([np.histogram(column, 20, (0, 1))[0] for column in columns.T])
    assert abs(histogram / 1000 - 1).max() < 0.15  # 1000 a bin: 4.5 sigma
    correlation = np.corrcoef(np.concatenate([columns[:-1], columns[1:]], axis=1).T) - np.eye(24)
    assert abs(correlation).max() < 0.035  # between columns, streams, seeds and neighbours: 5 sigma


def test_a_draw_does_not_depend_on_its_batch():
    assert np.array_equal(uniform(3, np.arange(10), 2, 5)[4:6], uniform(3, np.array([4, 5]), 2, 5))


def test_with_replacement_a_batch_is_what_the_released_code_of_obd_sd_draws():
    """56 draws of a class, 2 of its images each, all independent, on CUB's 100 training classes of 50 to 60 images."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(100), np.linspace(50, 60, 100).round().astype(int)))
    sampler = ClassBalanced(labels, 112, images_per_class=2, replacement=True)
    assert len(sampler) == len(labels) // 112
    distinct, positives, own_pair = [], [], []
    for epoch in range(20):
        sampler.set_epoch(epoch)
        for rows in batches(sampler)[..., 0]:
            drawn = labels[rows]
            assert (drawn[0::2] == drawn[1::2]).all()
            distinct.append(len(np.unique(drawn)))
            positives.append((drawn[:, None] == drawn).sum(axis=1).mean() - 1)
            own_pair.append((rows[0::2] == rows[1::2]).mean())
    assert np.mean(distinct) == pytest.approx(100 * (1 - 0.99**56), abs=0.3)  # 43.0; 1000 batches, deviation 2.3 each
    assert np.mean(positives) == pytest.approx(1 + 2 * 55 / 100, abs=0.02)  # 2.1 an anchor; distinct classes give 1
    assert np.mean(own_pair) == pytest.approx(1 / 55, abs=0.002)
