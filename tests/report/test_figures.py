"""Pictures: the numbers that they show, by brute force; that they are drawn where labels are many, few or absent."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fgssl.data.index import Index
from fgssl.evaluation.embedding import Embeddings
from fgssl.report import figures
from fgssl.report.plots import heat_map


def index_of(fine: np.ndarray, coarse: np.ndarray | None = None) -> Index:
    names = tuple(f"{label:03d}.Some_rather_long_class_name_{label}" for label in range(fine.max() + 1))
    return Index(
        name="made",
        paths=np.array([f"image {row}" for row in range(len(fine))]),
        fine=fine,
        fine_names=names,
        split=np.full(len(fine), "test"),
        coarse=coarse,
        coarse_names=() if coarse is None else tuple(f"group {group}" for group in range(coarse.max() + 1)),
        pixels=np.zeros((len(fine), 4, 4, 3), np.uint8),
    )


def embeddings_of(fine: np.ndarray, seed: int = 0) -> Embeddings:
    """Features around their class's centre, rows in order."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(fine.max() + 1, 6))
    features = torch.from_numpy(centres[fine] + 0.7 * rng.normal(size=(len(fine), 6))).float()
    return Embeddings(features, torch.from_numpy(fine), torch.arange(len(fine)))


def test_similarity_counts_every_pair_once_a_side(tmp_path):
    fine = np.arange(30) % 4
    embeddings = embeddings_of(fine)
    counts = figures.similarity_histogram(embeddings, None, tmp_path / "s.png")
    unit = F.normalize(embeddings.embedding)
    expected = {"same_class": [], "other_class": []}
    for i in range(30):
        for j in range(30):
            if i != j:
                expected["same_class" if fine[i] == fine[j] else "other_class"].append(float(unit[i] @ unit[j]))
    for name, (count, edges) in counts.items():
        assert count.tolist() == np.histogram(expected[name], edges)[0].tolist(), name
        assert count.sum() == len(expected[name])
    assert (tmp_path / "s.png").stat().st_size > 5000


def test_confusion_is_the_share_of_nearest_neighbours(tmp_path, monkeypatch):
    fine = np.arange(40) % 6
    coarse = fine // 2
    embeddings = embeddings_of(fine)
    unit = F.normalize(embeddings.embedding.double())
    nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(dim=1).numpy()
    expected = np.zeros((3, 3))
    np.add.at(expected, (coarse, coarse[nearest]), 1)
    shown = {}
    from matplotlib.axes import Axes

    monkeypatch.setattr(Axes, "imshow", lambda self, values, **_: shown.update(values=values))
    assert figures.coarse_confusion(embeddings, None, index_of(fine, coarse), tmp_path / "c.png")
    assert np.allclose(shown["values"], 100 * expected / expected.sum(axis=1, keepdims=True))
    assert figures.coarse_confusion(embeddings, None, index_of(fine), tmp_path / "none.png") is None


def test_confusion_of_many_groups_shows_the_largest(tmp_path):
    coarse = np.repeat(np.arange(30), np.arange(2, 32))
    path = figures.coarse_confusion(embeddings_of(coarse), None, index_of(coarse, coarse), tmp_path / "c.png")
    assert path.stat().st_size > 5000


@pytest.mark.parametrize(("classes", "with_coarse"), [(4, True), (40, False)])
def test_tsne_keeps_classes_together(tmp_path, classes, with_coarse):
    fine = np.arange(120) % classes
    features = torch.eye(classes).repeat_interleave(1, 0)[fine] + 0.05 * torch.randn(120, classes)
    embeddings = Embeddings(features, torch.from_numpy(fine), torch.arange(120))
    points = figures.layout(F.normalize(features).numpy(), "tsne", 0)
    assert points.shape == (120, 2)
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (fine[distance.argmin(axis=1)] == fine).mean() > 0.9
    index = index_of(fine, fine // 2 if with_coarse else None)
    assert figures.embedding_map(embeddings, index, tmp_path / "t.png").stat().st_size > 5000


@pytest.mark.skipif(not figures.has_umap(), reason="the optional extra 'umap' (umap-learn) is not installed")
def test_umap_keeps_classes_together():
    fine = np.arange(60) % 3
    features = F.normalize(torch.eye(3)[fine] + 0.05 * torch.randn(60, 3, generator=torch.Generator().manual_seed(0)))
    points = figures.layout(features.numpy(), "umap", 0)
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (fine[distance.argmin(axis=1)] == fine).mean() > 0.9


def test_large_sets_are_sampled_the_same_way_each_time(monkeypatch):
    monkeypatch.setattr(figures, "SAMPLE", 50)
    chosen = figures._chosen(1000, seed=0)
    assert len(set(chosen.tolist())) == 50
    assert np.array_equal(chosen, figures._chosen(1000, seed=0))
    assert figures._chosen(30, seed=0).tolist() == list(range(30))


@pytest.mark.parametrize(("count", "drawn"), [(3000, 70), (50, 50), (0, 70)])
def test_embedding_map_draws_at_most_count_images_or_all(count, drawn, tmp_path, monkeypatch):
    seen = {}

    def layout(features_NF, way, seed):
        seen["features"] = features_NF
        return features_NF[:, :2]

    monkeypatch.setattr(figures, "layout", layout)
    monkeypatch.setattr(figures, "SAMPLE", 10)
    fine = np.arange(70) % 4
    figures.embedding_map(embeddings_of(fine), index_of(fine), tmp_path / "t.png", count=count)
    assert len(seen["features"]) == drawn


def test_the_heat_map_frames_the_best_and_leaves_gaps_open(tmp_path):
    values = np.array([[0.1, np.nan], [0.3, 0.2]])
    for metric, best in (("recall@1", (0, 1)), ("spectral_decay", (0, 0))):
        figure = heat_map(values, ("w", "tau"), ([1, 2], [3, 4]), metric, "title")
        axis = figure.axes[0]
        (frame,) = axis.patches
        assert (round(frame.get_x() + 0.48), round(frame.get_y() + 0.48)) == best
        assert [text.get_text() for text in axis.texts].count("-") == 1
        figure.savefig(tmp_path / f"{metric}.png")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("001.Black_footed_Albatross", "Black footed Alba…"),
        ("Acura RL Sedan 2012", "Acura RL Sedan 20…"),
        ("0.83", "0.83"),
        ("001.Sparrow\n0.83", "Sparrow\n0.83"),
    ],
)
def test_class_names_stay_within_their_picture(name, shown):
    assert figures._short(name) == shown
