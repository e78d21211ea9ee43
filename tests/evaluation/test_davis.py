"""DAVIS: golden numbers of the propagation, made videos whose answer is known, and faults of the files."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from fgssl.errors import UserError
from fgssl.evaluation import davis

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "davis.json").read_text())
HEIGHT, WIDTH, SIDE = 32, 64, 8
COLOURS = np.array([[128, 20, 20], [20, 200, 20], [20, 20, 200]], np.uint8)  # background, object 1, object 2


class Colours(nn.Module):
    """Mean colour of each 2 x 2 patch as its feature."""

    feature_info = ({"reduction": 2},)

    def forward_features(self, images):
        return F.avg_pool2d(images, 2)


def fractions(images):
    return images.float() / 255


def make_video(root: Path, name: str, steps: tuple[int, int], frames: int = 6) -> None:
    """Two squares on a plain background that move by ``steps`` columns per frame."""
    for folder in ("JPEGImages", "Annotations"):
        (root / folder / "480p" / name).mkdir(parents=True)
    for frame in range(frames):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[0:SIDE, 8 + steps[0] * frame :][:, :SIDE] = 1
        mask[16 : 16 + SIDE, 32 + steps[1] * frame :][:, :SIDE] = 2
        picture = Image.fromarray(COLOURS[mask])
        picture.save(root / "JPEGImages" / "480p" / name / f"{frame:05}.jpg", quality=100, subsampling=0)
        annotation = Image.fromarray(mask)
        annotation.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
        annotation.save(root / "Annotations" / "480p" / name / f"{frame:05}.png")


def make_davis(root: Path, **videos: tuple[int, int]) -> Path:
    for name, steps in videos.items():
        make_video(root, name, steps)
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("\n".join(videos) + "\n")
    return root


def options(root: Path, **given) -> davis.Davis:
    return davis.Davis(str(root), **({"partial": True, "short_side": 32} | given))


def test_propagate_is_golden():
    target_NF, sources_SNF = (torch.tensor(GOLDEN[key], dtype=torch.float64) for key in ("feat_target", "feat_sources"))
    labels_SKHW = torch.tensor(GOLDEN["segs"], dtype=torch.float64)
    sources = list(zip(sources_SNF.unflatten(1, (3, 3)), labels_SKHW.permute(0, 2, 3, 1), strict=True))
    rule = {"topk": GOLDEN["topk"], "radius": GOLDEN["radius"], "temperature": GOLDEN["T"]}
    found_HWK = davis.propagate(target_NF.unflatten(0, (3, 3)), sources, **rule)
    expected_KHW = torch.tensor(GOLDEN["seg_target"], dtype=torch.float64)
    torch.testing.assert_close(found_HWK.permute(2, 0, 1), expected_KHW, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("topk", "radius"), [(5, 2), (5, 0), (200, 1), (3, 12)])
def test_propagate_equals_the_masked_full_matrix(topk, radius):
    """Radius 0 and topk 200 leave fewer patches than may vote."""
    torch.manual_seed(0)
    sources, height, width = 3, 7, 9
    target_HWF = F.normalize(torch.randn(height, width, 4, dtype=torch.float64), dim=-1)
    sources_SHWF = F.normalize(torch.randn(sources, height, width, 4, dtype=torch.float64), dim=-1)
    labels_SHWK = torch.rand(sources, height, width, 2, dtype=torch.float64)

    place = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    near = (place[:, None] - place).abs().amax(dim=-1) <= radius
    vote = (target_HWF.flatten(0, 1) @ sources_SHWF.flatten(0, 2).T / 0.2).exp() * near.repeat(1, sources)
    least = vote.topk(min(topk, vote.shape[1]), dim=1).values[:, -1:]
    vote = vote * (vote >= least)
    expected = (vote / vote.sum(dim=1, keepdim=True)) @ labels_SHWK.flatten(0, 2)

    pairs = list(zip(sources_SHWF, labels_SHWK, strict=True))
    found = davis.propagate(target_HWF, pairs, topk=topk, radius=radius, temperature=0.2)
    torch.testing.assert_close(found, expected.unflatten(0, (height, width)))


def test_upsample_scales_each_label_to_0_1():
    weak, everywhere = torch.tensor([[0.1, 0.3]]), torch.ones(1, 2)
    found = davis.upsample(torch.stack([weak, everywhere], dim=-1), (2, 4))
    assert found[..., 0].tolist()[0] == pytest.approx([0, 0.25, 0.75, 1])
    assert (found[..., 1] == 1).all()


def test_static_objects_score_1(tmp_path):
    root = make_davis(tmp_path, still=(0, 0))
    args = options(root)
    davis.check(args)
    perfect = {"j_mean": 1, "f_mean": 1, "jf_mean": 1, "j_recall": 1, "f_recall": 1}
    assert davis.evaluate(Colours(), args, fractions) == perfect


def test_moving_objects_are_followed_and_saved(tmp_path):
    root = make_davis(tmp_path / "DAVIS", right=(3, 0), apart=(4, -3))
    args = options(root, save=str(tmp_path / "masks"))
    davis.check(args)
    figures = davis.evaluate(Colours(), args, fractions)
    assert figures["j_mean"] > 0.9
    assert figures["f_mean"] > 0.9
    assert figures["j_recall"] == 1
    saved = sorted((tmp_path / "masks").rglob("*.png"))
    truth = sorted((root / "Annotations").rglob("*.png"))
    assert [path.name for path in saved] == [path.name for path in truth]
    for path, true in zip(saved, truth, strict=True):
        with Image.open(path) as found, Image.open(true) as expected:
            assert found.mode == "P"
            assert found.getpalette()[:9] == expected.getpalette()[:9]
            assert (np.array(found) == np.array(expected)).mean() > 0.97
    with pytest.raises(UserError, match="not an empty folder"):
        davis.check(args)


def test_objects_out_of_the_radius_are_lost(tmp_path):
    """With the first frame as the only source and a radius of one patch, squares that move by 2 patches are lost."""
    root = make_davis(tmp_path, fast=(4, -4))
    near = options(root, radius=2)
    lost = options(root, frames=0, radius=1)
    follow = (davis.evaluate(Colours(), args, fractions)["j_mean"] for args in (near, lost))
    assert next(follow) == 1
    assert next(follow) < 0.5


def test_first_frame_remains_a_source(tmp_path):
    """Objects that are hidden in one frame are found again from the first frame, not from the previous one."""
    root = make_davis(tmp_path, hidden=(0, 0))
    Image.new("RGB", (WIDTH, HEIGHT), tuple(COLOURS[0].tolist())).save(root / "JPEGImages/480p/hidden/00002.jpg")
    video = davis.video_of(str(root), "hidden")
    found = list(davis.follow(Colours(), video, options(root, frames=1), fractions))
    assert (found[3] == found[0]).all()


def test_the_first_frame_and_as_many_earlier_ones_as_asked_for_vote(tmp_path, monkeypatch):
    root, votes, propagate = make_davis(tmp_path, still=(0, 0)), [], davis.propagate

    def counted(target, sources, **rule):
        votes.append(len(sources))
        return propagate(target, sources, **rule)

    monkeypatch.setattr(davis, "propagate", counted)
    number = len(list(davis.follow(Colours(), davis.video_of(str(root), "still"), options(root, frames=2), fractions)))
    assert votes == [1, 2, *[3] * (number - 3)]
    assert number > 4


def test_first_and_last_frame_are_not_scored(tmp_path):
    root = make_davis(tmp_path, still=(0, 0))
    blank(root / "Annotations/480p/still/00005.png")
    assert davis.evaluate(Colours(), options(root), fractions)["jf_mean"] == 1
    blank(root / "Annotations/480p/still/00004.png")
    assert davis.evaluate(Colours(), options(root), fractions)["jf_mean"] == 3 / 4


def blank(path: Path) -> None:
    Image.new("L", (WIDTH, HEIGHT)).save(path)


VIT = {"patch_size": 8, "img_size": 32, "depth": 1, "embed_dim": 12, "num_heads": 2}


def test_davis_with_a_vision_transformer(tmp_path):
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True, **VIT).eval()
    figures = davis.evaluate(network, options(make_davis(tmp_path, still=(0, 0))), fractions)
    assert all(0 <= value <= 1 for value in figures.values())
    assert figures["j_mean"] > 0.5  # nothing moves, and equal images have equal patches


def test_network_of_one_image_size_is_refused(tmp_path):
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, **VIT).eval()
    with pytest.raises(UserError, match="VisionTransformer does not accept images of 32 x 64 px"):
        davis.evaluate(network, options(make_davis(tmp_path, still=(0, 0))), fractions)


def test_nan_features_are_refused(tmp_path):
    args = options(make_davis(tmp_path, still=(0, 0)))
    with pytest.raises(UserError, match="00000.jpg contain NaN or Inf"):
        davis.evaluate(Colours(), args, lambda images: images * torch.nan)


@pytest.fixture
def root(tmp_path) -> Path:
    return make_davis(tmp_path, one=(0, 0))


def test_other_number_of_sequences_than_30_is_refused(root):
    args = options(root, partial=False)
    with pytest.raises(UserError, match="val.txt names 1 sequences instead of 30.*--partial"):
        davis.check(args)


def spoil_list(root):
    (root / "ImageSets/2017/val.txt").unlink()


def spoil_encoding(root):
    (root / "ImageSets/2017/val.txt").write_bytes(b"\xffone")


def spoil_names(root):
    (root / "ImageSets/2017/val.txt").write_text("\n")


def spoil_frames(root):
    for path in (root / "JPEGImages/480p/one").iterdir():
        path.unlink()


def spoil_first(root):
    (root / "Annotations/480p/one/00000.png").unlink()


def spoil_size(root):
    Image.fromarray(np.ones((10, 10), np.uint8)).save(root / "Annotations/480p/one/00003.png")


def spoil_colours(root):
    Image.fromarray(np.ones((HEIGHT, WIDTH, 3), np.uint8)).save(root / "Annotations/480p/one/00004.png")


def spoil_objects(root):
    Image.fromarray(np.full((HEIGHT, WIDTH), 255, np.uint8)).save(root / "Annotations/480p/one/00000.png")


def spoil_bytes(root):
    (root / "JPEGImages/480p/one/00002.jpg").write_bytes(b"no image")


def spoil_chunk(root):
    path = root / "Annotations/480p/one/00002.png"
    content = bytearray(path.read_bytes())
    content[11] = 2  # the length of the header: PIL raises a ValueError
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_list, "val.txt not found.*ImageSets/2017"),
        (spoil_encoding, "val.txt is no text in UTF-8"),
        (spoil_names, "val.txt names no sequence"),
        (spoil_frames, "JPEGImages/480p/one holds 0 frames"),
        (spoil_first, "annotation not found: .*one/00000.png"),
        (spoil_size, r"one/00003.png is \(10, 10\) px, but .*one/00000.jpg is \(64, 32\)"),
        (spoil_colours, "one/00004.png is an image of mode RGB"),
        (spoil_objects, "one/00000.png contains no object"),
        (spoil_bytes, "one/00002.jpg cannot be read"),
        (spoil_chunk, "one/00002.png cannot be read: Truncated IHDR chunk"),
    ],
)
def test_faulty_file_is_named_before_the_network_runs(root, spoil, said):
    spoil(root)
    with pytest.raises(UserError, match=said):
        davis.check(options(root))


def test_a_folder_that_cannot_be_looked_into_is_named():
    """As one without permission; every name of it is too long for the file system."""
    with pytest.raises(UserError, match="val.txt cannot be read .File name too long"):
        davis.check(options(Path("x" * 300)))


@pytest.mark.parametrize("given", [{"topk": 0}, {"radius": -1}, {"frames": -1}, {"temperature": 0}, {"short_side": 0}])
def test_options_out_of_bounds_are_refused_by_name(given):
    with pytest.raises(UserError, match=f"--{next(iter(given))}"):
        davis.Davis("DAVIS", **given)


@pytest.mark.parametrize(
    ("frame", "patch", "expected"),
    [
        ((480, 854), 16, (480, 832)),  # DAVIS: 854 is rounded down to 13 * 64
        ((480, 854), 8, (480, 832)),
        ((480, 910), 16, (480, 896)),
        ((720, 1280), 16, (480, 832)),
        ((854, 480), 16, (832, 480)),
        ((480, 854), 32, (480, 832)),
        ((480, 854), 14, (476, 826)),  # whole patches
    ],
)
def test_frame_size_is_that_of_dinos_code(frame, patch, expected):
    assert davis.frame_size(*frame, 480, patch) == expected


def test_frames_are_resized_bilinearly_without_smoothing(tmp_path):
    """OpenCV's bilinear interpolation without antialiasing: each of 64 columns is between two of 128."""
    columns = np.tile(np.array([0, 100, 40, 200], np.uint8), 64)
    Image.fromarray(np.repeat(np.tile(columns, (64, 1))[:, :, None], 3, axis=2)).save(tmp_path / "frame.png")
    pixels = []
    keep = lambda images: pixels.append(images) or images.float() + 1  # noqa: E731
    features_HWF, size = davis._features(Colours(), tmp_path / "frame.png", 32, keep)
    assert size == (32, 128)
    assert features_HWF.shape == (16, 64, 3)
    assert pixels[0][0, 0, 5, :4].tolist() == [50, 120, 50, 120]


def test_mask_of_a_frame_has_the_size_of_its_file(tmp_path):
    """A frame of 40 x 90 px is labelled at 64 x 128 px."""
    make_video(tmp_path, "odd", (0, 0))
    for path in [*tmp_path.rglob("*.jpg"), *tmp_path.rglob("*.png")]:
        with Image.open(path) as image:
            image.resize((90, 40), Image.Resampling.NEAREST).save(path, quality=100)
    video = davis.video_of(str(tmp_path), "odd")
    for found_hw in davis.follow(Colours(), video, options(tmp_path, short_side=64), fractions):
        assert found_hw.shape == (40, 90)
        assert set(np.unique(found_hw)) == {0, 1, 2}
