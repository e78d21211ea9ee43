"""fgssl.load and fgssl.Index: every source gives the features of the command, and a search its neighbours."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fgssl
from fgssl.cli.main import main
from fgssl.data.preprocessing import to_tensor
from fgssl.evaluation.store import read_embeddings
from fgssl.nn.backbones import Backbone
from fgssl.run import read_json
from tests import trees
from tests.cli.test_cli import fit
from tests.nn.test_weights import dino

pytestmark = pytest.mark.slow

QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
SEEN = ("--data.eval_resize", "40", "--data.eval_resample", "bicubic", "--data.std", "[0.2, 0.3, 0.4]")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("runs"), "run", *SEEN, epochs=1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes of wide photographs, JPEG and PNG, with a train and a test part."""
    root = tmp_path_factory.mktemp("photos")
    for part in ("train", "test"):
        for label, name in enumerate(("cat", "dog", "horse")):
            for number in range(3):
                suffix = "png" if number else "jpg"
                seed = 100 * label + 10 * number + (part == "test")
                trees.write_image(root / part / name / f"{number}.{suffix}", seed, size=(300, 180))
    return root


@pytest.fixture(scope="module")
def embedded(run, photos):
    """Run folder of fgssl embed: the test photographs, which have no coarse labels as the training digits had."""
    flags = ["--data", "folder", "--data.dataset.root", str(photos), "--retrieval.grid", "0", *QUIET]
    assert main(["embed", "--ckpt_path", str(run), *flags]) == 0
    return run.with_name(f"{run.name}_embed_folder")


@pytest.fixture(scope="module")
def expected(embedded):
    """Paths of the test photographs and their embeddings by the command."""
    stored = read_embeddings(embedded)
    assert len(stored.index) == 9
    return stored.paths.tolist(), torch.from_numpy(stored.embedding)


@pytest.mark.parametrize("source", ["run", "checkpoint", "embedded"])
def test_load_embeds_files_as_the_command(source, run, embedded, expected):
    paths, features = expected
    places = {"run": run, "checkpoint": run / "checkpoints" / "last.ckpt", "embedded": embedded}
    model = fgssl.load(places[source], device="cpu")
    assert torch.allclose(model.embed(paths), features, atol=1e-6 * features.abs().max())
    assert model.device == torch.device("cpu")
    assert not model.training


def test_embed_takes_paths_pil_images_arrays_and_tensors(run, expected):
    paths, features = expected
    model = fgssl.load(run, device="cpu")
    image = Image.open(paths[1])
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    preprocessed = torch.stack([model.preprocessing(path) for path in paths[:2]])
    mixed = [paths[0], image, array, tensor, tensor[None].repeat(2, 1, 1, 1), preprocessed]
    found = model.embed(mixed, batch_size=3)
    rows = [0, 1, 1, 1, 1, 1, 0, 1]
    assert torch.allclose(found, features[rows], atol=1e-5 * features.abs().max())
    assert torch.equal(model(preprocessed), model.embed(preprocessed))
    assert model.embed(paths[0]).shape == (1, features.shape[1])
    assert torch.equal(model.embed(paths, num_workers=2), model.embed(paths))


def test_a_read_only_array_is_copied():
    """PyTorch would warn, and share its memory all the same."""
    array = np.zeros((4, 5, 3), np.uint8)
    array.flags.writeable = False
    tensor = to_tensor(array)
    tensor += 1
    assert array.max() == 0


def test_embed_names_an_image_that_cannot_be_read(run, tmp_path):
    model, broken = fgssl.load(run, device="cpu"), tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    for workers in (0, 1):
        with pytest.raises(fgssl.UserError, match=f"^unreadable image: {broken}"):
            model.embed([broken], num_workers=workers)
    trees.write_image(tmp_path / "whole.jpg", 0)
    broken.write_bytes((tmp_path / "whole.jpg").read_bytes()[:-200])
    with pytest.raises(fgssl.UserError, match=f"^unreadable image: {broken} .*truncated"):
        model.embed(Image.open(broken))
    with pytest.raises(fgssl.UserError, match="image not found: absent.jpg"):
        model.embed("absent.jpg")
    with pytest.raises(fgssl.UserError, match="no image to embed"):
        model.embed([])
    with pytest.raises(fgssl.UserError, match=r"not an image: float64 of shape \(2, 2, 3\)"):
        model.embed(np.zeros((2, 2, 3)))


def test_load_takes_the_teacher_of_a_checkpoint(run, expected):
    paths, features = expected
    method = fgssl.Method.load_from_checkpoint(run).eval()
    teacher = fgssl.load(run, network="teacher", device="cpu")
    images = torch.stack([teacher.preprocessing(path) for path in paths[:2]])
    with torch.no_grad():
        assert torch.allclose(teacher.embed(paths[:2]), method.key.backbone(images))
    assert not torch.allclose(teacher.embed(paths[:2]), features[:2])


@pytest.mark.parametrize("formats", [["timm"], ["torch"]])
def test_load_takes_an_export(formats, run, expected, tmp_path):
    paths, features = expected
    assert main(["export", "--ckpt_path", str(run), "--out", str(tmp_path / "out"), "--formats", *formats]) == 0
    model = fgssl.load(tmp_path / "out", device="cpu")
    assert torch.allclose(model.embed(paths), features, atol=1e-5 * features.abs().max())


def test_load_takes_weights_of_a_file_with_the_networks_own_preprocessing(expected, tmp_path):
    paths, _ = expected
    torch.manual_seed(0)
    network, file = Backbone("test_resnet").build().eval(), tmp_path / "weights.pth"
    torch.save(network.state_dict(), file)
    by_name = fgssl.load(f"timm/test_resnet={file}", device="cpu")
    by_file = fgssl.load(file, backbone="test_resnet", device="cpu")
    assert by_name.preprocessing.mean == (0.5, 0.5, 0.5)
    assert torch.equal(by_name.embed(paths), by_file.embed(paths))
    images = torch.stack([by_name.preprocessing(path) for path in paths])
    with torch.no_grad():
        assert torch.allclose(by_name.embed(paths), network(images), atol=1e-6)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent", "absent is neither a file nor a folder"),
        (".", "holds nothing to load. Give a run folder"),
        ("timm/resnet81=weights.pth", "Did you mean 'resnet18'"),
    ],
)
def test_load_says_what_it_takes(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({}, "weights.pth")
    with pytest.raises(fgssl.UserError, match=message):
        fgssl.load(source)
    with pytest.raises(fgssl.UserError, match="Name their network"):
        fgssl.load("weights.pth")


def test_load_refuses_a_backbone_for_what_names_its_own(run):
    for source in (run, run / "checkpoints" / "last.ckpt", "timm/test_resnet"):
        with pytest.raises(fgssl.UserError, match=f"{source} names the network already. Leave out backbone"):
            fgssl.load(source, backbone="resnet50")


@pytest.mark.parametrize(("source", "backbone"), [("timm/test_resnet=dino.pth", None), ("dino.pth", "test_resnet")])
@pytest.mark.parametrize(("whose", "prefix"), [("student", "module.backbone."), ("teacher", "backbone.")])
def test_load_takes_the_network_of_a_weights_file_that_is_asked_for(
    source, backbone, whose, prefix, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    stored = dino(Backbone("test_resnet"))
    torch.save(stored, "dino.pth")
    model = fgssl.load(source, backbone=backbone, network=whose, device="cpu")
    assert torch.equal(model.network.backbone.conv1[0].weight, stored[whose][f"{prefix}conv1.0.weight"])


@pytest.mark.parametrize("file", ["fgssl.json", "embeddings/about.json"])
def test_load_refuses_a_choice_where_there_is_one_network(file, tmp_path):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("{}")
    with pytest.raises(fgssl.UserError, match=f"{tmp_path} has one network.*Leave out network='teacher'"):
        fgssl.load(tmp_path, network="teacher")
    with pytest.raises(fgssl.UserError, match="timm/test_resnet has one network"):
        fgssl.load("timm/test_resnet", network="student")


def test_load_keeps_the_random_state(run):
    before = torch.get_rng_state()
    fgssl.load(run, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


# ---- index ----------------------------------------------------------------------------------------------------------


def test_index_finds_by_hand_computed_neighbours_and_survives_saving(run, photos, expected, tmp_path):
    paths, features = expected
    model = fgssl.load(run, device="cpu")
    index = fgssl.Index.build(model, photos / "test")
    assert "9 images" in repr(index)
    unit = torch.nn.functional.normalize(features.double())
    order = (unit @ unit[4]).argsort(descending=True)
    found = index.search(paths[4], k=3)
    assert [hit.path for hit in found] == [paths[place] for place in order[:3]]
    assert found[0].cosine == pytest.approx(1, abs=1e-6)
    assert found[0].label == "dog"
    (others,) = index.neighbours([found[0].row], k=2)
    assert [hit.path for hit in others] == [paths[place] for place in order[1:3]]

    index.save(tmp_path / "index")
    again = fgssl.Index.load(tmp_path / "index")
    assert again.search(paths[4], k=3) == found
    both = again.search([paths[4], Image.open(paths[4])], k=3)
    assert [[hit.path for hit in one] for one in both] == 2 * [[hit.path for hit in found]]
    with pytest.raises(fgssl.UserError, match="already exists"):
        index.save(tmp_path / "index")


@pytest.mark.parametrize("whose", ["student", "teacher", None])
def test_a_saved_index_embeds_queries_by_the_network_that_built_it(whose, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        trees.write_image(path, number)
    torch.save(dino(Backbone("test_resnet")), tmp_path / "dino.pth")
    model = fgssl.load(tmp_path / "dino.pth", backbone="test_resnet", network=whose, device="cpu")
    index = fgssl.Index.build(model, paths)
    index.save(tmp_path / "index")
    again = fgssl.Index.load(tmp_path / "index")
    assert [hit.cosine for hit in again.search(paths[0], k=3)] == pytest.approx(
        [hit.cosine for hit in index.search(paths[0], k=3)], abs=1e-5
    )
    assert again.model.whose == whose


@pytest.mark.parametrize("kind", ["run", "weights"])
def test_a_saved_index_is_searched_where_it_was_moved_together_with_its_network(kind, run, tmp_path):
    before, now = tmp_path / "a=b", tmp_path / "now"
    before.mkdir()
    trees.write_image(tmp_path / "0.png")
    shutil.copytree(run, before / "run")
    torch.save(Backbone("test_resnet").build().state_dict(), before / "weights.pth")
    source = before / "run" if kind == "run" else f"timm/test_resnet={before / 'weights.pth'}"
    fgssl.Index.build(fgssl.load(source, device="cpu"), [tmp_path / "0.png"]).save(before / "index")
    before.rename(now)
    assert fgssl.Index.load(now / "index").search(tmp_path / "0.png", k=1)[0].cosine == pytest.approx(1, abs=1e-6)
    (now / "index").rename(tmp_path / "index")
    with pytest.raises(fgssl.UserError, match="its network .*a=b.* is not there. Put it back, or give it"):
        fgssl.Index.load(tmp_path / "index").search(tmp_path / "0.png", k=1)
    now.rename(before)  # the index alone was moved
    assert fgssl.Index.load(tmp_path / "index").search(tmp_path / "0.png", k=1)[0].cosine == pytest.approx(1, abs=1e-6)


def test_an_index_that_was_saved_without_its_choice_is_loaded(tmp_path):
    trees.write_image(tmp_path / "0.png")
    torch.save(Backbone("test_resnet").build().state_dict(), tmp_path / "weights.pth")
    model = fgssl.load(tmp_path / "weights.pth", backbone="test_resnet", device="cpu")
    fgssl.Index.build(model, [tmp_path / "0.png"]).save(tmp_path)
    about = tmp_path / "embeddings" / "about.json"
    about.write_text(
        json.dumps({key: value for key, value in read_json(about).items() if key not in ("whose", "folder")})
    )
    assert fgssl.Index.load(tmp_path).search(tmp_path / "0.png", k=1)[0].cosine == pytest.approx(1, abs=1e-6)


def test_a_saved_index_of_a_checkpoints_teacher_is_searched_with_the_teacher(run, expected, tmp_path):
    paths, _ = expected
    index = fgssl.Index.build(fgssl.load(run, network="teacher", device="cpu"), paths)
    index.save(tmp_path)
    assert fgssl.Index.load(tmp_path).search(paths[0], k=1)[0] == (paths[0], pytest.approx(1, abs=1e-6), None, 0)


def train_further(file: Path) -> None:
    """Change the weights of a file a little."""
    content = torch.load(file, weights_only=True)
    for weight in content.get("state_dict", content).values():
        if isinstance(weight, torch.Tensor) and weight.is_floating_point():
            weight += 0.001
    file.unlink()
    torch.save(content, file)


def test_a_saved_index_refuses_a_network_that_was_trained_further(run, tmp_path):
    trees.write_image(tmp_path / "0.png")
    shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "last.ckpt")
    torch.save(Backbone("test_resnet").build().state_dict(), tmp_path / "weights.pth")
    for name, backbone in (("last.ckpt", None), ("weights.pth", "test_resnet")):
        model = fgssl.load(tmp_path / name, backbone=backbone, device="cpu")
        folder = tmp_path / f"index_{backbone}"
        fgssl.Index.build(model, [tmp_path / "0.png"]).save(folder)
        train_further(tmp_path / name)
        with pytest.raises(fgssl.UserError, match=f"{name} has been trained further, or replaced.*Embed them again"):
            fgssl.Index.load(folder).search(tmp_path / "0.png", k=1)
        assert len(fgssl.Index.load(folder, model).search(tmp_path / "0.png", k=1)) == 1


def test_a_saved_index_of_a_network_in_no_file_asks_for_it(tmp_path):
    trees.write_image(tmp_path / "0.png")
    model = fgssl.Model(Backbone("test_resnet").build(), fgssl.Preprocessing(32))
    index = fgssl.Index.build(model, [tmp_path / "0.png"])
    index.save(tmp_path)
    with pytest.raises(fgssl.UserError, match="its network is in no file. Give it: fgssl.Index.load"):
        fgssl.Index.load(tmp_path).search(tmp_path / "0.png", k=1)
    assert fgssl.Index.load(tmp_path, model).search(tmp_path / "0.png", k=1)[0].cosine == pytest.approx(1, abs=1e-6)


def test_index_of_a_list_of_paths_and_of_a_data_set(run, expected):
    paths, features = expected
    model = fgssl.load(run, device="cpu")
    listed = fgssl.Index.build(model, paths[:4])
    assert listed.search(paths[2], k=1)[0] == (paths[2], pytest.approx(1, abs=1e-6), None, 2)
    digits = fgssl.Index.build(model, fgssl.Digits(), batch_size=256)
    assert len(digits) == 1797
    pixels = fgssl.Digits().index().pixels[7]
    assert digits.search(pixels, k=1)[0].label == "7"


def test_index_of_a_run_of_embed_is_searched_with_its_network(embedded, expected):
    paths, _ = expected
    index = fgssl.Index.load(embedded)
    assert index.search(paths[3], k=1)[0].path == paths[3]


def test_a_copied_run_of_embed_is_searched_with_the_checkpoint_beside_it(run, embedded, expected, tmp_path):
    """The runs were moved: their old place is gone."""
    query = expected[0][3]
    shutil.copytree(run.parent, tmp_path / run.parent.name)
    folder = tmp_path / run.parent.name / embedded.name
    about, checkpoint = folder / "embeddings" / "about.json", folder.parent / run.name / "checkpoints" / "last.ckpt"
    for file in (about, folder / "config.yaml"):
        file.write_text(file.read_text().replace(str(run.parents[1]), str(tmp_path / "gone")))
    assert fgssl.Index.load(folder).search(query, k=1)[0].path == query
    train_further(checkpoint)
    with pytest.raises(fgssl.UserError, match=f"the checkpoint {checkpoint} has been trained further"):
        fgssl.Index.load(folder).search(query, k=1)
    kept = read_json(about)
    del kept["network"]["fingerprint"]  # as an earlier version wrote it
    about.write_text(json.dumps(kept))
    assert len(fgssl.Index.load(folder).search(query, k=1)) == 1
    checkpoint.unlink()
    with pytest.raises(fgssl.UserError, match="gone/.*/last.ckpt, which is not there. Copy its run beside"):
        fgssl.Index.load(folder).search(query, k=1)


def test_search_command_takes_a_saved_index(run, photos, expected, tmp_path, capsys):
    paths, _ = expected
    fgssl.Index.build(fgssl.load(run, device="cpu"), photos / "test").save(tmp_path / "index")
    out = tmp_path / "found.png"
    assert main(["search", str(tmp_path / "index"), paths[0], "--row", "5", "-k", "2", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "1.0000" in said
    assert out.stat().st_size > 5000


def test_search_command_works_from_any_folder_and_keeps_earlier_pictures(photos, tmp_path, monkeypatch, capsys):
    shutil.copytree(photos, tmp_path / "images")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    data = ["--data", "folder", "--data.dataset.root", "images", "--data.num_workers", "0", "--retrieval.grid", "0"]
    assert main(["embed", "--model", "timm/test_resnet", "--pretrained", "false", *data, *QUIET]) == 0
    folder = Path("runs", "embed", "test_resnet_random_folder").resolve()
    monkeypatch.chdir("other")
    assert fgssl.Index.load(folder).stored.paths[0] == str(tmp_path / "images" / "test" / "cat" / "0.jpg")
    row = str(fgssl.Index.load(folder).stored.index[0])
    for said in ("picture: neighbours.png\n", "picture: neighbours_2.png (neighbours.png exists)\n"):
        assert main(["search", str(folder), "--row", row, "-k", "2"]) == 0
        assert said in capsys.readouterr().out
    shutil.rmtree(tmp_path / "images")
    assert main(["search", str(folder), "--row", row, "-k", "2"]) == 0
    said = capsys.readouterr().out
    assert "cosine" in said
    assert "no picture: " in said
    assert "--" not in said  # no option of another command
    assert main(["search", str(folder), "--row", row, "-k", "2", "--out", "asked.png"]) == 2


@pytest.mark.parametrize(("k", "rows", "message"), [(10, [0], "k is 10; it must be 1 to 8"), (1, [99], "99 is not")])
def test_index_refuses_what_is_not_in_it(k, rows, message, embedded):
    index = fgssl.Index.load(embedded)
    rows = [int(index.stored.index[0])] if rows == [0] else rows
    with pytest.raises(fgssl.UserError, match=message):
        index.neighbours(rows, k)


def test_an_untrained_network_of_embed_is_built_again(tmp_path, photos, monkeypatch):
    """Its weights are in no file: they follow from the seed. The generators of the GPUs are not touched."""
    data = ["--data", "folder", "--data.dataset.root", str(photos), "--data.num_workers", "0", "--retrieval.grid", "0"]
    network = ["--model", "timm/test_resnet", "--pretrained", "false", "--seed_everything", "3"]
    assert main(["embed", *network, *data, *QUIET, "--run.root", str(tmp_path)]) == 0
    folder = tmp_path / "embed" / "test_resnet_random_folder"
    stored = read_embeddings(folder)
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    found = fgssl.load(folder, device="cpu").embed(stored.paths.tolist())
    assert torch.allclose(found, torch.from_numpy(stored.embedding), atol=1e-5)
    assert not seeded
    about = read_json(folder / "embeddings" / "about.json")
    about["network"]["seed"] += 1
    (folder / "embeddings" / "about.json").write_text(json.dumps(about))
    with pytest.raises(fgssl.UserError, match="Frozen of seed 4 has been"):
        fgssl.load(folder, device="cpu")
