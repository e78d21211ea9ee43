"""Confusion of classes by nearest neighbours, against brute force."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fgssl.report import confusion
from fgssl.report.confusion import Pair, draw_confusion, nearest, whole_percent, worst_pairs
from tests.report.test_figures import embeddings_of, index_of


def brute_force(embeddings) -> np.ndarray:
    unit = F.normalize(embeddings.embedding.double())
    return (unit @ unit.T).fill_diagonal_(-2).argmax(dim=1).numpy()


def test_nearest_neighbours_are_rows_of_the_data_set():
    fine = np.arange(40) % 6
    embeddings = embeddings_of(fine)
    shifted = embeddings._replace(index=embeddings.index + 100)  # test rows begin at 100
    found = nearest(shifted, None)
    assert (found.rows - 100).tolist() == list(range(40))
    assert (found.neighbours - 100).tolist() == brute_force(embeddings).tolist()
    assert found.of == 40


def test_neighbours_in_a_gallery_are_rows_of_the_gallery():
    queries, gallery = embeddings_of(np.arange(10) % 3), embeddings_of(np.arange(20) % 3, seed=1)
    gallery = gallery._replace(index=gallery.index + 50)
    found = nearest(queries, gallery)
    cosine = F.normalize(queries.embedding.double()) @ F.normalize(gallery.embedding.double()).T
    assert (found.neighbours - 50).tolist() == cosine.argmax(dim=1).tolist()


def test_rows_of_whole_percent_sum_to_100():
    counts = np.random.default_rng(0).integers(0, 30, (50, 7))
    counts[3] = 0
    percent = whole_percent(counts)
    assert percent.sum(axis=1).tolist() == [100] * 3 + [0] + [100] * 46
    exact = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    assert (np.abs(percent - exact) < 1).all()
    assert whole_percent(np.array([[1, 1, 1]])).tolist() == [[34, 33, 33]]


def test_worst_pairs_are_those_with_the_largest_share_and_tiny_classes_come_last():
    counts = np.array([[80, 20, 0, 0], [4, 4, 2, 0], [0, 0, 9, 1], [3, 0, 0, 0]])
    ours, theirs = (np.repeat(labels, counts.ravel()) for labels in (np.arange(16) // 4, np.arange(16) % 4))
    pairs = worst_pairs(ours, theirs)
    assert pairs == [
        Pair(1, 0, images=10, same=4, confused=4),
        Pair(0, 1, images=100, same=80, confused=20),
        Pair(1, 2, images=10, same=4, confused=2),
        Pair(2, 3, images=10, same=9, confused=1),
        Pair(3, 0, images=3, same=0, confused=3),
    ]
    assert [pair.other for pair in pairs] == [2, 0, 4, 0, 0]
    assert worst_pairs(ours, theirs, most=1) == pairs[:1]


def test_up_to_20_classes_are_a_matrix_of_shares(tmp_path, monkeypatch):
    fine = np.arange(40) % 6
    embeddings = embeddings_of(fine)
    coarse = fine // 2
    expected = np.zeros((3, 3))
    np.add.at(expected, (coarse, coarse[brute_force(embeddings)]), 1)
    drawn = {}
    draw = confusion._matrix
    monkeypatch.setattr(confusion, "_matrix", lambda percent, *rest: drawn.update(p=percent) or draw(percent, *rest))
    index = index_of(fine, coarse)
    path = draw_confusion(nearest(embeddings, None), coarse, index.coarse_names, "coarse class", tmp_path / "c.png")
    assert np.abs(drawn["p"] - 100 * expected / expected.sum(axis=1, keepdims=True)).max() < 1
    assert path.stat().st_size > 5000


def test_more_classes_are_the_20_worst_pairs_and_their_bars_reach_100(tmp_path, monkeypatch):
    fine = np.repeat(np.arange(30), 8)
    embeddings = embeddings_of(fine)
    embeddings = embeddings._replace(embedding=embeddings.embedding + torch.randn(240, 6))
    bars = []
    from matplotlib.axes import Axes

    draw = Axes.barh
    monkeypatch.setattr(Axes, "barh", lambda *a, **k: bars.append(a[2] + k["left"]) or draw(*a, **k))
    path = draw_confusion(nearest(embeddings, None), fine, index_of(fine).fine_names, "class", tmp_path / "c.png")
    assert bars[-1].tolist() == [100] * 20
    assert path.stat().st_size > 5000


@pytest.mark.filterwarnings("error")
def test_many_classes_without_a_confused_pair_draw_without_a_warning(tmp_path, monkeypatch):
    titles, draw = [], confusion._bars
    monkeypatch.setattr(confusion, "_bars", lambda *a: titles.append(a[-1]) or draw(*a))
    labels = np.arange(30)
    found = confusion.Nearest(rows=np.arange(30), neighbours=np.arange(30), of=30)
    assert draw_confusion(found, labels, tuple("abcdefghijklmnopqrstuvwxyz0123"), "class", tmp_path / "c.png").exists()
    assert titles[0].endswith("always the same")


def test_images_without_label_do_not_count(tmp_path, monkeypatch):
    labels = np.array([0, 0, 1, -1])
    found = confusion.Nearest(rows=np.arange(4), neighbours=np.array([1, 2, 3, 0]), of=4)
    drawn = {}
    draw = confusion._matrix
    monkeypatch.setattr(confusion, "_matrix", lambda percent, *rest: drawn.update(p=percent) or draw(percent, *rest))
    draw_confusion(found, labels, ("a", "b"), "class", tmp_path / "c.png")
    assert drawn["p"].tolist() == [[50, 50], [0, 0]]
