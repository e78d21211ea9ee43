"""ContrastiveCrop: boxes of crops against the Beta distribution, views of a data set whose objects are known."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta

from fgssl.data.batch import Batch
from fgssl.data.datamodule import DataModule
from fgssl.data.datasets.cub import CUB
from fgssl.data.views import ATTEMPTS, NUMBERS, ContrastiveCrop, PairViews, box_around, random_box
from fgssl.errors import UserError
from tests.trees import make_cub

pytestmark = pytest.mark.filterwarnings("ignore:cub under")

OBJECT = (0.4, 0.2, 0.6, 0.9)
SCALE = (0.2, 1.0)


def numbers(u_x: float, u_y: float, u_area: float = 0.5, u_ratio: float = 0.5) -> np.ndarray:
    """Random numbers of one view, of which the first attempt counts."""
    return np.array([u_area, u_ratio] * ATTEMPTS + [u_x, u_y, 0.5, 0.5])


@pytest.mark.parametrize(
    ("u", "box"), [(0.0, (45, 0, 116, 71)), (0.5, (65, 14, 136, 85)), (1 - 1e-12, (84, 28, 155, 99))]
)
def test_position_is_between_those_that_the_objects_box_allows(u, box):
    """A crop of 71 x 71 px in 200 x 100 px: x of 80 - 35 to 120 - 35; y of 20 - 35, so 0, to 90 - 35, so 29."""
    assert box_around(200, 100, (0.25, 0.25), numbers(u, u), OBJECT, alpha=1.0) == box


@pytest.mark.parametrize("alpha", [0.1, 0.6, 1.0, 3.0])
def test_positions_have_the_beta_distribution_and_sizes_those_of_other_crops(alpha):
    """An image of 40,000 px, so that whole pixels matter little, and a box in the middle: no crop leaves the image.

    The distance of Kolmogorov and Smirnov away from the ends, where whole pixels do matter for a small alpha.
    """
    size, inside = (40_000, 30_000), (0.5, 0.45, 0.55, 0.6)
    rows = PairViews("moco", 8).numbers(0, np.arange(2000))[:, 0]
    ours = np.array([box_around(*size, (0.05, 0.2), row, inside, alpha) for row in rows])
    plain = np.array([random_box(*size, (0.05, 0.2), row) for row in rows])
    assert np.array_equal(ours[:, 2:] - ours[:, :2], plain[:, 2:] - plain[:, :2])
    places_100 = np.linspace(0.02, 0.98, 100)
    middle = (ours[:, :2] + ours[:, 2:]) / 2 / size
    for axis in (0, 1):
        low, high = inside[axis], inside[axis + 2]
        along = (middle[:, axis] - low) / (high - low)
        share_100 = (along[:, None] <= places_100).mean(axis=0)
        distance = np.abs(share_100 - beta(alpha, alpha).cdf(places_100)).max()
        assert distance < 0.044, axis  # 0.1 % of equal distributions differ by more
    assert abs(np.corrcoef(middle.T)[0, 1]) < 0.08


@pytest.mark.parametrize("size", [(200, 200), (500, 180), (150, 400)])
def test_box_of_the_whole_image_with_alpha_1_gives_the_crops_of_other_views(size):
    """Up to a pixel: the released code never takes the last position."""
    for row in np.random.default_rng(0).random((200, NUMBERS)):
        ours = np.array(box_around(*size, SCALE, row, (0.0, 0.0, 1.0, 1.0), alpha=1.0))
        plain = np.array(random_box(*size, SCALE, row))
        assert (plain - ours).min() >= 0
        assert (plain - ours).max() <= 1


def test_crops_of_any_object_lie_in_the_image():
    generator = np.random.default_rng(0)
    for row in generator.random((300, NUMBERS)):
        width, height = generator.integers(1, 60, 2).tolist()
        (x0, x1), (y0, y1) = np.sort(generator.random((2, 2)), axis=1)
        left, top, right, bottom = box_around(width, height, SCALE, row, (x0, y0, x1, y1), alpha=0.1)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


def test_image_without_room_for_a_crop_has_the_central_one():
    assert box_around(500, 20, (0.9, 1.0), numbers(0.1, 0.1), OBJECT, 0.6) == random_box(
        500, 20, (0.9, 1.0), numbers(0.1, 0.1)
    )


def test_boxes_are_due_after_the_warm_up_and_at_intervals():
    assert [epoch for epoch in range(100) if ContrastiveCrop().due(epoch)] == [20, 40, 60, 80]
    assert [epoch for epoch in range(9) if ContrastiveCrop(warmup=1, every=3).due(epoch)] == [1, 4, 7]


@pytest.mark.parametrize("wrong", [{"alpha": 0.0}, {"threshold": 1.0}, {"threshold": -0.1}, {"warmup": 0}])
def test_impossible_settings_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(UserError, match=name):
        ContrastiveCrop(**wrong)
    assert ContrastiveCrop(threshold=0.0).threshold == 0  # each position with a positive value


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_known_object_moves_the_crops_of_its_image_alone(cached, workers, tmp_path):
    """In the loader processes too, which run since before the box was known."""
    root = str(make_cub(tmp_path / "cub"))
    options = {"batch_size": 4, "num_workers": workers, "seed": 3}
    if cached:
        options |= {"cache": str(tmp_path / "cache"), "cache_side": 40}

    def prepared(views: PairViews) -> DataModule:
        data = DataModule(CUB(root, partial=True), views=views, **options)
        data.setup("fit")
        return data

    data = prepared(ContrastiveCrop("moco", 16))
    loader = data.train_dataloader()
    plain: list[Batch] = list(prepared(PairViews("moco", 16)).train_dataloader())
    for ours, theirs in zip(loader, plain, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(ours.views, theirs.views, strict=True))
    row = int(data.parts.train[5])
    data.objects[row] = torch.tensor([0.0, 0.0, 0.02, 0.02])  # the upper left corner
    differing = set()
    for ours, theirs in zip(loader, plain, strict=True):
        different = (ours.views[0] != theirs.views[0]).flatten(1).any(dim=1)
        differing |= set(ours.index[different].tolist())
    assert differing == {row}


def test_boxes_are_in_the_checkpoint_and_other_views_have_none(tmp_path):
    data = DataModule(CUB(str(make_cub(tmp_path)), partial=True), views=ContrastiveCrop(size=16), batch_size=4)
    data.setup("fit")
    kept = torch.rand(len(data.parts.index), 4, dtype=torch.float64)
    data.load_state_dict({"epoch": 2, "batch": 1, "objects": kept})
    assert data.next_batch == (2, 1)
    assert torch.equal(data.objects, kept)
    data.setup("test")
    data.load_state_dict({"epoch": 2, "batch": 1, "objects": kept[:3]})  # of another data set
    assert data.objects is None


def test_views_of_one_image_leave_those_of_the_data_set_as_they_are():
    views = ContrastiveCrop(size=16)
    row = views.numbers(0, np.array([7]))[0]
    around = views.around(OBJECT).boxes((200, 100), row)
    assert around != views.boxes((200, 100), row) == PairViews("moco", 16).boxes((200, 100), row)
    assert views.around((math.nan,) * 4).boxes((200, 100), row) == views.boxes((200, 100), row)
