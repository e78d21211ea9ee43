"""Pictures: the numbers that they show, by brute force; that they are drawn where labels are many, few or absent."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import threadpoolctl
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.manifold import TSNE

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


@pytest.mark.parametrize(("points", "limit"), [(40, 1), (figures.FEW, None)])
def test_few_points_are_laid_out_on_one_thread(points, limit, monkeypatch):
    """On a busy machine several threads wait for each other: 16 points took 7 s with two and 0.2 s with one."""
    limits, fit = [], TSNE.fit_transform
    monkeypatch.setattr(threadpoolctl, "threadpool_limits", lambda n: limits.append(n) or contextlib.nullcontext())
    monkeypatch.setattr(TSNE, "fit_transform", lambda self, x: x[:, :2] if len(x) == figures.FEW else fit(self, x))
    features = np.random.default_rng(0).normal(size=(points, 8))
    assert figures.layout(features, "tsne", 0).shape == (points, 2)
    assert limits == [limit]


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
    chosen = figures.chosen_rows(1000, seed=0)
    assert len(set(chosen.tolist())) == 50
    assert np.array_equal(chosen, figures.chosen_rows(1000, seed=0))
    assert figures.chosen_rows(30, seed=0).tolist() == list(range(30))


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
    ("name", "shown", "in_lines"),
    [
        ("001.Black_footed_Albatross", "Black footed Albatross", "Black footed\nAlbatross"),
        ("Acura RL Sedan 2012", "Acura RL Sedan 2012", "Acura RL Sedan 2012"),
        ("0.83", "0.83", "0.83"),
        ("001.Some_sparrow_with_a_long_name\n0.83", None, "Some sparrow with a\nlong name\n0.83"),
        (
            "Mercedes-Benz Sprinter Van 2012 with another roof and doors",
            "Mercedes-Benz Sprinter Van 20…",
            "Mercedes-Benz\nSprinter Van 2012…",
        ),
        ("", "", ""),
    ],
)
def test_class_names_stay_within_their_picture(name, shown, in_lines):
    assert shown is None or figures.short(name) == shown
    assert figures.wrapped(name) == in_lines


def photographs(fine: np.ndarray, side: int = 160) -> Index:
    """Noisy images, which take as many bytes as photographs and more."""
    pixels = np.random.default_rng(0).integers(0, 256, (len(fine), side, side + 40, 3), np.uint8)
    return replace(index_of(fine), pixels=pixels)


@pytest.mark.parametrize("count", [8, 14])
def test_retrieval_grid_takes_less_than_500_kb(tmp_path, count):
    fine = np.arange(60) % 5
    path = figures.retrieval_grid(embeddings_of(fine), None, photographs(fine), tmp_path / "r.jpg", count=count)
    assert path.stat().st_size < 500_000
    assert Image.open(path).format == "JPEG"


def test_retrieval_grid_states_title_and_similarity_of_each_neighbour(tmp_path, monkeypatch):
    fine = np.arange(12) % 3
    embeddings = embeddings_of(fine)
    seen = {}
    monkeypatch.setattr(figures, "picture_rows", lambda lines, title, path: seen.update(lines=lines, title=title))
    figures.retrieval_grid(embeddings, None, index_of(fine), tmp_path / "r.jpg", title="a/run: Recall@1 59.70 %")
    assert seen["title"].startswith("a/run: Recall@1 59.70 %\nquery, then its nearest")
    unit = F.normalize(embeddings.embedding.double())
    cosine = (unit @ unit.T).fill_diagonal_(-2)
    chosen = np.sort(np.random.default_rng(0).permutation(12)[:8])
    for query, line in zip(chosen, seen["lines"], strict=True):
        assert line[0][1] == index_of(fine).fine_names[fine[query]]
        expected = [f"{value:.2f}" for value in cosine[query].sort(descending=True).values[:8].tolist()]
        assert [name.split("\n")[1] for _, name, _ in line[1:]] == expected


def test_retrieval_grid_shows_the_whole_of_a_small_gallery(tmp_path, monkeypatch):
    fine = np.arange(12) % 3
    whole, seen = embeddings_of(fine), []
    monkeypatch.setattr(figures, "picture_rows", lambda lines, *_: seen.extend(len(line) - 1 for line in lines))
    for count in (1, 4):
        gallery = Embeddings(*(column[:count] for column in whole))
        figures.retrieval_grid(whole, gallery, index_of(fine), tmp_path / "r.jpg", count=1)
    assert seen == [1, 4]


def test_lines_of_a_title_are_wrapped_to_the_picture_each_by_itself(tmp_path, monkeypatch):
    titles = []
    from matplotlib.figure import Figure

    draw = Figure.suptitle
    monkeypatch.setattr(Figure, "suptitle", lambda self, text, **k: titles.append(text) or draw(self, text, **k))
    line = [(np.zeros((4, 4, 3), np.uint8), "name", "black")] * 2
    figures.picture_rows(
        [line], "a_run: Recall@1 59.70 %\nquery, then its nearest neighbours by similarity", tmp_path / "p.png"
    )
    assert titles == ["a_run: Recall@1 59.70 %\nquery, then its nearest neighbours\nby similarity"]


def test_similarity_histogram_covers_the_range_of_the_data(tmp_path):
    """Features of one narrow cone: all similarities are above 0.9."""
    fine = np.arange(30) % 4
    close = embeddings_of(fine)
    close = close._replace(embedding=close.embedding * 0.1 + torch.tensor([4.0] * 6))
    unit = F.normalize(close.embedding)
    pairs = (unit @ unit.T)[~torch.eye(30, dtype=bool)]
    (_, edges), _ = figures.similarity_histogram(close, None, tmp_path / "s.png").values()
    assert edges[0] == pytest.approx(pairs.min().item(), abs=1e-6)
    assert edges[-1] == pytest.approx(pairs.max().item(), abs=1e-6)
    assert edges[0] > 0.9
