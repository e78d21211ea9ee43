"""What is made of a trained network: embeddings on disk, neighbours of given images, files for use elsewhere."""

import importlib.util
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fgssl.callbacks.shards import Shards
from fgssl.cli.main import main
from fgssl.commands.networks import data_name
from fgssl.data.datasets import ALL
from fgssl.evaluation.reranking import Rerank, reranked_search
from fgssl.evaluation.reranking import expanded as add_neighbours
from fgssl.evaluation.store import read_embeddings, write_shard
from fgssl.metrics import finish, retrieval_statistics
from tests.cli.test_cli import fgssl, fit, results

pytestmark = pytest.mark.slow

QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("runs"), epochs=1)


@pytest.fixture(scope="module")
def embedded(run):
    """Embeddings of the test rows, 200 per file, with pictures except UMAP, which takes 10 seconds to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fgssl.report.figures.has_umap", lambda: False)
        return embed(run)


def embed(run):
    flags = ["--rows", "200", "--retrieval.grid", "2", *QUIET]
    assert main(["embed", "--ckpt_path", str(run), *flags]) == 0
    return run.with_name(f"{run.name}_embed")


def test_embeddings_are_those_that_predict_gives_and_their_labels_are_the_data_sets(run, embedded, tmp_path):
    stored = read_embeddings(embedded)
    assert [len(np.load(shard)["index"]) for shard in sorted((embedded / "embeddings").glob("*.npz"))] == [208, 208, 34]
    assert fgssl("predict", tmp_path, "--run.name", "p", "--ckpt_path", str(run)) == 0
    predicted = np.load(tmp_path / "maskcon_digits" / "p" / "embeddings.npz")
    for name in ("embedding", "fine", "index", "paths"):
        assert np.array_equal(getattr(stored, name), predicted[name]), name
    index = ALL["digits"]().index()
    assert np.array_equal(stored.coarse, index.coarse[stored.index])
    assert stored.about["coarse_names"] == list(index.coarse_names)


def test_an_embedded_run_is_evaluated_like_any_other(run, embedded):
    assert results(embedded)["status"] == "finished"
    theirs, ours = results(run)["metrics"], results(embedded)["metrics"]
    assert {name for name in ours if name.startswith("test/")} == {name for name in theirs if name.startswith("test/")}
    assert ours["test/map"] == pytest.approx(theirs["test/map"])
    for picture in ("retrieval.jpg", "similarity.png", "confusion.png", "tsne.png"):
        assert (embedded / picture).stat().st_size > 5000, picture


def test_training_rows_are_embedded_without_an_evaluation(run):
    assert main(["embed", "--ckpt_path", str(run), "--part", "train", *QUIET]) == 0
    folder = run.with_name(f"{run.name}_embed_train")
    assert len(read_embeddings(folder).index) == 69
    assert not any(name.startswith("test/") for name in results(folder)["metrics"])
    assert main(["compare", str(folder.parent)]) == 0  # it is passed over, not called broken


def test_a_public_network_stands_in_the_same_table(run, capsys):
    flags = ["--run.root", str(run.parents[1]), "--data.protocol.label_fraction", "0.05", "--data.num_workers", "0"]
    flags += ["--data.eval_size", "32", "--data.eval_resize", "32", "--retrieval.grid", "0", *QUIET]
    assert main(["embed", "--model", "timm/resnet18", "--pretrained", "false", "--data", "digits", *flags]) == 0
    folder = run.parents[1] / "embed" / "resnet18_random_digits"
    assert read_embeddings(folder).embedding.shape == (450, 512)
    import timm
    import yaml

    data = yaml.safe_load((folder / "config.yaml").read_text())["data"]
    assert (data["eval_size"], data["mean"]) == (32, list(timm.get_pretrained_cfg("resnet18").mean))
    capsys.readouterr()
    assert main(["compare", str(folder), str(run), "--metric", "recall@1"]) == 0
    said = capsys.readouterr().out
    assert said.count("450 test images") == 1
    assert "timm/resnet18 (random weights)" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no network is named"),
        (["--model", "resnet18", "--data", "digits"], "not of the form timm/NAME"),
        (["--model", "timm/resnet81", "--data", "digits", "--pretrained", "false"], "Did you mean 'resnet18'?"),
        (["--model", "timm/resnet18", "--data", "digitts"], "Did you mean 'digits'?"),
        (["--model", "timm/resnet18", "--data", "absent.yaml"], "config file not found: absent.yaml"),
        (["--model", "timm/resnet18", "--data", "digits", "--part", "tset"], "Did you mean 'test'?"),
        (["--ckpt_path", "absent"], "no checkpoint at"),
    ],
)
def test_mistakes_in_embed(arguments, message, tmp_path, capsys):
    assert main(["embed", *arguments]) == 2
    assert message in capsys.readouterr().err


OWN_DATA = """
from fgssl.data.datasets.digits import Digits
class Numbers(Digits):
    name = "numbers"
"""


def test_embed_takes_a_data_set_of_ones_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_data.py").write_text(OWN_DATA)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    network = ["--model", "timm/test_resnet", "--pretrained", "false", "--retrieval.grid", "0", *QUIET]
    assert main(["embed", *network, "--data", "own_data.Numbers", "--data.num_workers", "0"]) == 0
    embedded = tmp_path / "runs" / "embed" / "test_resnet_random_numbers"
    assert len(read_embeddings(embedded).index) == 450
    assert main(["search", str(embedded), "--row", str(read_embeddings(embedded).index[0])]) == 0
    assert "picture: neighbours.png" in capsys.readouterr().out
    assert data_name("own_data.Numbers") == "numbers"
    for wrong in ("own_data.Letters", "no_data.Numbers"):
        assert main(["embed", *network, "--data", wrong]) == 2
        assert f"--data: '{wrong}' is no YAML file, and no class that can be imported" in capsys.readouterr().err


def test_embeddings_are_never_overwritten(run, embedded, capsys):
    again = ["embed", "--ckpt_path", str(run), "--retrieval.grid", "0", *QUIET]
    assert main([*again, "--run.resume", "true"]) == 2
    assert "already holds the results of a run" in capsys.readouterr().err
    path = embedded / "results.json"
    finished = path.read_text()
    path.write_text(json.dumps(json.loads(finished) | {"status": "running"}))
    assert main(again) == 2  # perhaps another process is writing them
    assert "--run.resume true writes it anew" in capsys.readouterr().err
    path.write_text(finished)


def test_embeddings_that_another_process_is_writing_stay(run, embedded, capsys):
    """Also with ``--run.resume true``, by which a second job would have removed them."""
    folder = run.with_name("running")
    shutil.copytree(embedded, folder)
    (folder / "results.json").unlink()
    files = sorted(folder.rglob("*.npz"))
    hold = "import sys; from pathlib import Path; from fgssl.run import claim; file = claim(Path(sys.argv[1])); "
    again = ["embed", "--ckpt_path", str(run), "--retrieval.grid", "0", "--run.name", folder.name, *QUIET]
    with subprocess.Popen(
        [sys.executable, "-c", hold + "print('held', flush=True); sys.stdin.read()", str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "held\n"
        assert main([*again, "--run.resume", "true"]) == 2
        other.kill()
    assert f"is in use by process {other.pid}" in capsys.readouterr().err
    assert sorted(folder.rglob("*.npz")) == files
    (folder / "embeddings" / "test-1-00000.npz").write_bytes(b"of a process that died")
    assert main([*again, "--run.resume", "true"]) == 0
    assert len(read_embeddings(folder).index) == 450


def test_embedding_counts_as_finished_when_its_map_is_drawn(run, monkeypatch):
    def draw(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fgssl.report.pictures.draw_maps", draw)
    flags = ["--run.name", "map", "--retrieval.grid", "2", *QUIET]
    assert main(["embed", "--ckpt_path", str(run), *flags]) == 130
    assert results(run.with_name("map"))["status"] == "interrupted"


def test_data_without_coarse_labels_are_stored_with_none(tmp_path):
    index = SimpleNamespace(coarse=None, paths=np.array(["a", "b"]))
    trainer = SimpleNamespace(global_rank=0, datamodule=SimpleNamespace(parts=SimpleNamespace(index=index)))
    rows = {"embedding": torch.eye(2), "fine": torch.tensor([0, 1]), "index": torch.tensor([0, 1])}
    Shards(tmp_path, "test", rows=2).on_test_batch_end(trainer, None, rows, None, 0)
    (tmp_path / "about.json").write_text("{}")
    assert read_embeddings(tmp_path).coarse.tolist() == [-1, -1]


def test_a_row_in_the_place_of_an_unreadable_one_is_written_once(tmp_path):
    index = SimpleNamespace(coarse=None, paths=np.array(list("abcd")))
    trainer = SimpleNamespace(global_rank=0, datamodule=SimpleNamespace(parts=SimpleNamespace(index=index)))
    shards = Shards(tmp_path, "test", rows=2)
    for rows in ([1, 1], [2, 3], [3, 0]):
        rows = torch.tensor(rows)
        shards.on_test_batch_end(trainer, None, {"embedding": torch.ones(2, 1), "fine": rows, "index": rows}, None, 0)
    found = [np.load(shard)["index"].tolist() for shard in sorted(tmp_path.glob("*.npz"))]
    assert found == [[1], [2, 3], [0]]


def test_several_ranks_shards_are_one_set(tmp_path):
    """Two ranks; one row that pads the shorter share is in both."""
    for rank, rows in enumerate(([0, 4, 2], [5, 3, 0])):
        rows = np.array(rows)
        columns = {"embedding": rows[:, None] * np.ones((1, 2), np.float32), "fine": rows, "coarse": -rows}
        write_shard(tmp_path, f"test-{rank}-00000", columns | {"index": rows, "paths": rows.astype(str)})
    (tmp_path / "about.json").write_text("{}")
    stored = read_embeddings(tmp_path)
    assert stored.index.tolist() == [0, 2, 3, 4, 5]
    assert stored.embedding[:, 0].tolist() == [0, 2, 3, 4, 5]
    (tmp_path / "test-1-00000.npz").write_bytes((tmp_path / "test-1-00000.npz").read_bytes()[:300])
    with pytest.raises(Exception, match="test-1-00000.npz is damaged"):
        read_embeddings(tmp_path)


# ---- search ---------------------------------------------------------------------------------------------------------


def test_search_finds_a_given_image_itself_and_a_rows_true_neighbours(embedded, tmp_path, capsys):
    stored = read_embeddings(embedded)
    given, row = 17, int(stored.index[30])
    picture = tmp_path / "given.png"
    Image.fromarray(ALL["digits"]().index().pixels[stored.index[given]]).save(picture)
    flags = ["--row", str(row), "-k", "3", "--out", str(tmp_path / "new" / "found.png")]
    assert main(["search", str(embedded), str(picture), *flags]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "digit" in line]
    first = next(line for line in lines if line[0] == str(picture))
    assert first[1:5] == ["1", "1.0000", str(stored.fine[given]), str(stored.index[given])]
    # Of the row: by hand, itself left out.
    features = stored.embedding.astype(np.float64)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosine = dict(zip(stored.paths, unit @ unit[30], strict=True))
    del cosine[stored.paths[30]]
    found = [cosine[" ".join(line[-2:])] for line in lines[3:6]]
    assert found == pytest.approx(sorted(cosine.values(), reverse=True)[:3], abs=1e-8)  # near-ties may change places
    assert (tmp_path / "new" / "found.png").stat().st_size > 5000


def test_search_shows_each_image_from_its_own_file_also_where_others_are_gone(tmp_path, monkeypatch, capsys):
    """The rows of the folder have moved up by one: an image from its row would be that of the next one."""
    shades = [10, 60, 110, 160]
    for row, shade in enumerate(shades):
        (tmp_path / "photos" / "a").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (shade,) * 3).save(tmp_path / "photos" / "a" / f"{row}.png")
    paths = np.array([str(tmp_path / "photos" / "a" / f"{row}.png") for row in range(4)])
    columns = {"embedding": np.eye(4, dtype=np.float32) + 0.1, "fine": np.zeros(4, int), "coarse": np.full(4, -1)}
    write_shard(tmp_path / "run" / "embeddings", "all-0-00000", columns | {"index": np.arange(4), "paths": paths})
    (tmp_path / "run" / "embeddings" / "about.json").write_text(json.dumps({"fine_names": ["a"]}))
    dataset = {"class_path": "fgssl.Folder", "init_args": {"root": str(tmp_path / "photos")}}
    (tmp_path / "run" / "config.yaml").write_text(json.dumps({"data": {"dataset": dataset}}))
    drawn = []

    def drawing(lines, title, path):
        drawn.append([int(image[0, 0, 0]) for image, _, _ in lines[0]])

    monkeypatch.setattr("fgssl.report.figures.picture_rows", drawing)
    command = ["search", str(tmp_path / "run"), "--row", "2", "-k", "3", "--out", str(tmp_path / "found.png")]
    assert main(command) == 0
    assert drawn.pop() == [110, 10, 60, 160]
    capsys.readouterr()
    (tmp_path / "photos" / "a" / "0.png").unlink()
    assert main(command) == 0
    assert drawn.pop() == [110, 192, 60, 160]
    said = f"grey in the picture: 1 of its images could not be read, such as: image not found: {paths[0]}"
    assert said in capsys.readouterr().out
    (tmp_path / "photos").rename(tmp_path / "moved")  # the data set is found where the configuration says
    dataset["init_args"]["root"] = str(tmp_path / "moved")
    (tmp_path / "run" / "config.yaml").write_text(json.dumps({"data": {"dataset": dataset}}))
    Image.new("RGB", (8, 8), (10,) * 3).save(tmp_path / "moved" / "a" / "0.png")
    assert main(command) == 0
    assert drawn.pop() == [110, 10, 60, 160]
    assert main([*command, str(tmp_path)]) == 2
    assert f"{tmp_path} is a folder. Give its images, such as {tmp_path}/*.jpg" in capsys.readouterr().err


def test_search_and_test_rerank_on_demand(run, embedded, tmp_path, capsys):
    stored = read_embeddings(embedded)
    z, labels = torch.from_numpy(stored.embedding), torch.from_numpy(stored.fine)
    rows = torch.tensor([3, 30])
    _, ids = reranked_search(z[rows], z, 5, Rerank(k_reciprocal=True, k1=10), exclude=rows)
    flags = ["--row", *map(str, stored.index[rows]), "-k", "5", "--out", str(tmp_path / "found.png")]
    assert main(["search", str(embedded), *flags, "--k_reciprocal", "--k1", "10"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "digit" in line]
    assert [" ".join(line[-2:]) for line in lines] == stored.paths[ids.flatten()].tolist()

    flags = ("--retrieval.grid", "0", "--retrieval.rerank.query_expansion", "5", "--retrieval.rerank.alpha", "1")
    assert fgssl("test", tmp_path, "--run.name", "expanded", "--ckpt_path", str(run), *flags) == 0
    expanded = results(tmp_path / "maskcon_digits" / "expanded")
    assert expanded["reranking"] == "query expansion 5 (alpha 1)"
    own = torch.arange(len(z))
    queries, _ = add_neighbours(z, z, Rerank(query_expansion=5, alpha=1), own)
    metrics = finish(retrieval_statistics(queries, labels, z, labels, exclude=own, ks=[1]))
    assert expanded["metrics"]["test/map"] == pytest.approx(metrics["map"])
    assert expanded["metrics"]["test/map"] != results(run)["metrics"]["test/map"]
    capsys.readouterr()
    assert main(["compare", str(run), str(tmp_path), "--metric", "map"]) == 0
    said = capsys.readouterr().out
    assert "re-ranked by query expansion 5 (alpha 1)" in " ".join(said.split())
    assert "2 tables: their numbers do not compare" in " ".join(said.split())
    assert fgssl("test", tmp_path, "--ckpt_path", str(run), "--retrieval.rerank.lam", "2") == 2
    assert "rerank.lam is 2" in capsys.readouterr().err


def test_mistakes_in_search(run, embedded, tmp_path, capsys):
    for arguments, message in (
        ([str(run), "--row", "1"], "contains no embeddings"),
        ([str(embedded)], "no query is given"),
        ([str(embedded), str(tmp_path / "absent.png")], "image not found"),
        ([str(embedded), "--row", "100000"], "100000 is not one of the 450"),
        ([str(embedded), "--row", "1", "-k", "450"], "-k is 450"),
        ([str(embedded), "--row", "1", "--k_reciprocal", "--query_expansion", "2"], "cannot be combined"),
        (
            [str(embedded), "--row", "1", "--out", "found.txt"],
            "argument --out: found.txt is no picture: it must end in .png,",
        ),
        ([str(embedded), "-k", "2", str(tmp_path / "absent.png")], "image not found"),  # after an option too
        ([str(embedded), "--rwo", "1"], "Did you mean '--row'?"),
    ):
        assert main(["search", *arguments]) == 2
        assert message in capsys.readouterr().err


# ---- export ---------------------------------------------------------------------------------------------------------


def reference(run) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and their features from the method of the run."""
    from fgssl.cli.saved import configuration
    from fgssl.commands.restore import restore

    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return images, restore(configuration(str(run), []), []).model.embed(images)


def test_timm_and_torch_files_give_the_checkpoints_features(run, tmp_path, capsys):
    out = tmp_path / "export"
    assert main(["export", "--ckpt_path", str(run), "--out", str(out), "--formats", "timm", "torch"]) == 0
    images, expected = reference(run)
    import timm

    with torch.no_grad():
        by_timm = timm.create_model(f"local-dir:{out}", pretrained=True).eval()(images)
        by_torch = torch.export.load(out / "model.pt2").module()(images[:2])  # another number of images
    assert torch.allclose(by_timm, expected, atol=1e-5 * expected.abs().max())
    assert torch.allclose(by_torch, expected[:2], atol=1e-5 * expected.abs().max())
    config = json.loads((out / "config.json").read_text())
    assert (config["architecture"], config["pretrained_cfg"]["mean"]) == ("resnet18", [0.5, 0.5, 0.5])
    card = (out / "README.md").read_text()
    assert len({file.stat().st_mode for file in out.iterdir()}) == 1  # who may read one file may read all
    said = results(run)
    for words in ("MaskCon on digits", "69 training images", f"| map | {100 * said['metrics']['test/map']:.2f} |"):
        assert words in card
    assert main(["export", "--ckpt_path", str(run), "--out", str(out)]) == 2  # nothing is overwritten
    assert "not empty" in capsys.readouterr().err


def test_the_cards_code_runs(run, tmp_path, monkeypatch):
    """Also for the stem for small images, which timm does not have."""
    short = ("--trainer.max_steps", "1", "--trainer.limit_test_batches", "1")
    small = fit(
        tmp_path,
        "small",
        "--model.backbone.small_input",
        "true",
        "--model.backbone.pooling",
        "avg+max",
        *short,
        epochs=1,
    )
    for name, source in (("plain", run), ("small", small)):
        out = tmp_path / f"export_{name}"
        assert main(["export", "--ckpt_path", str(source), "--out", str(out), "--formats", "timm"]) == 0
        monkeypatch.chdir(out)
        Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save("photo.jpg")
        code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
        names: dict = {}
        exec(code, names)
        images, expected = reference(source)
        with torch.no_grad():
            assert torch.allclose(names["model"](images), expected, atol=1e-5 * expected.abs().max())


PLAIN_TIMM = """
import sys
import numpy, timm, torch
from PIL import Image
assert "fgssl" not in sys.modules
model = timm.create_model("local-dir:.", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
with torch.inference_mode():
    numpy.save("timm.npy", model(transform(Image.open("photo.jpg").convert("RGB"))[None]))
"""


@pytest.mark.parametrize("resize", ["null", "40"])
def test_exported_network_gives_the_embedding_of_a_photograph_without_fgssl(resize, tmp_path):
    """A large JPEG of 3:1, through the card's code and through timm's own transform, in a process without fgssl."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 60, 3), np.uint8)
    for part in ("train", "test"):
        (tmp_path / "photos" / part / "a").mkdir(parents=True)
        Image.fromarray(noise).resize((1200, 400)).save(tmp_path / "photos" / part / "a" / "photo.jpg", quality=60)
    seen = ("--data.eval_resize", resize, "--data.eval_resample", "bicubic", "--data.mean", "[0.48, 0.46, 0.41]")
    short = ("--trainer.max_steps", "1", "--trainer.limit_test_batches", "1")
    run = fit(tmp_path, "seen", *seen, *short, epochs=1)
    photos = ["--data", "folder", "--data.dataset.root", str(tmp_path / "photos"), "--retrieval.grid", "0", *QUIET]
    assert main(["embed", "--ckpt_path", str(run), "--run.name", "photos", *photos]) == 0
    (expected,) = read_embeddings(run.parent / "photos").embedding

    out = tmp_path / "export"
    assert main(["export", "--ckpt_path", str(run), "--out", str(out), "--formats", "timm"]) == 0
    shutil.copy(tmp_path / "photos" / "test" / "a" / "photo.jpg", out)
    card = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code = card + "\nimport numpy\nnumpy.save('card.npy', features)\n" + PLAIN_TIMM
    subprocess.run([sys.executable, "-c", code], cwd=out, check=True)
    largest = abs(expected).max()
    assert np.allclose(np.load(out / "card.npy")[0], expected, atol=1e-5 * largest)
    by_timm = np.load(out / "timm.npy")[0]  # PIL's resize rounds a few pixels the other way
    assert 1 - by_timm @ expected / np.linalg.norm(by_timm) / np.linalg.norm(expected) < 1e-4


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="the optional extra 'export' (onnx, onnxscript, onnxruntime) is not installed",
)
def test_onnx_gives_the_checkpoints_features(run, tmp_path):
    import onnxruntime

    assert main(["export", "--ckpt_path", str(run), "--out", str(tmp_path / "onnx"), "--formats", "onnx"]) == 0
    images, expected = reference(run)
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    (found,) = session.run(["features"], {"images": images.numpy()})
    assert np.allclose(found, expected.numpy(), atol=1e-5 * float(expected.abs().max()))


def test_a_file_that_gives_other_features_is_refused(tmp_path):
    from fgssl.commands.export import check
    from fgssl.errors import UserError

    features = torch.rand(2, 5)
    assert check(features + 1e-7, features, tmp_path) <= 1e-5
    for wrong in (features + 1e-4, features * torch.nan):
        with pytest.raises(UserError, match="features differ"):
            check(wrong, features, tmp_path)


def test_a_misspelt_option_of_embed_gets_a_suggestion(capsys):
    assert main(["embed", "--ckpt_path", "nowhere", "--rwos", "3"]) == 2
    assert "unknown option --rwos. Did you mean 'rows'?" in capsys.readouterr().err
