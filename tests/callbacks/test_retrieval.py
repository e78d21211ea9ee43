"""Retrieval metrics at the end of an epoch: which rows count, and what there is of very few."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fgssl.callbacks.retrieval import Retrieval, labelled, statistics_over_ranks
from fgssl.errors import UserError
from fgssl.evaluation.embedding import Embeddings
from fgssl.evaluation.reranking import Rerank
from fgssl.nn.backbones import Backbone
from fgssl.tasks.frozen import Frozen
from tests.ddp.ranks import as_rank, seen_by_ranks
from tests.tasks.test_finetune import Mixed, data, finetune
from tests.tiny import tiny_trainer

WORLD = 3
RERANK = (Rerank(), Rerank(query_expansion=1), Rerank(k_reciprocal=True))


def rows(*fine: int) -> Embeddings:
    return Embeddings(torch.eye(len(fine)), torch.tensor(fine), torch.arange(len(fine)))


def test_images_without_a_class_label_are_left_out():
    whole = rows(2, 0, 2)
    assert labelled(whole, "test") is whole
    some = labelled(rows(-1, 0, -1, 2), "test")
    assert (some.fine.tolist(), some.index.tolist()) == ([0, 2], [1, 3])
    assert torch.equal(some.embedding, torch.eye(4)[[1, 3]])
    assert labelled(rows(-1, -1), "val") is None


@pytest.mark.parametrize(("gallery", "pictures"), [("evaluated", False), ("train", True)])
def test_one_labelled_test_image_is_measured_and_drawn_if_it_has_a_neighbour(gallery, pictures, tmp_path):
    extra = ["clustering", "density", "spectral_decay", "cmd_code"]
    retrieval = Retrieval(ks=[1], gallery=gallery, extra=extra)
    retrieval.folder = tmp_path
    trainer = tiny_trainer(callbacks=[retrieval])
    (metrics,) = trainer.test(finetune(), data(Mixed(*range(32, 63))), verbose=False)
    assert metrics["test/queries_without_match"] == (gallery == "evaluated")
    assert (tmp_path / "retrieval.jpg").is_file() == (tmp_path / "confusion.png").is_file() == pictures


def test_training_images_without_a_class_label_are_no_gallery(caplog):
    """As distractors, they would count as errors where they are of the query's class."""
    retrieval = Retrieval(ks=[1], gallery="train", extra=["cmd_code"])
    trainer, method = tiny_trainer(callbacks=[retrieval]), Frozen(Backbone("test_resnet"))
    caplog.set_level("INFO")
    (some,) = trainer.test(method, data(Mixed(*range(12))), verbose=False)  # 4 of 16 are left, one of each class
    assert "Retrieval: 12 of 16 training images have no class label and are left out" in caplog.text
    assert some["test/recall@1"] == some["test/map"] == 1
    assert trainer.test(method, data(Mixed(*range(16))), verbose=False) == [{}]
    assert "No retrieval metrics: none of the 16 training images has a single class label" in caplog.text


def test_features_that_are_not_finite_are_named_by_what_to_do():
    """As after the last step of a training that diverged; it was a traceback of a metric."""
    trainer, method = tiny_trainer(callbacks=[Retrieval(ks=[1])]), Frozen(Backbone("test_resnet"))
    with torch.no_grad():
        next(method.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match=r"the features of 32 of 32 images hold NaN or Inf.*lower model\.optim\.lr"):
        trainer.test(method, data(Mixed()), verbose=False)


# ---- several processes ----------------------------------------------------------------------------------------------


def measured(count: int) -> list[dict]:
    """Statistics of the first rows among themselves and in a gallery, by each kind of re-ranking."""
    rng = np.random.default_rng(0)
    whole = Embeddings(torch.from_numpy(rng.normal(size=(9, 4))).float(), torch.arange(9) % 2, torch.arange(9))
    queries = Embeddings(*(column[:count] for column in whole))
    galleries = (None, Embeddings(*(column[2:] for column in whole)))
    return [statistics_over_ranks(queries, gallery, [1, 2], options) for gallery in galleries for options in RERANK]


def one_rank(rank: int, folder: str) -> None:
    with as_rank(rank, WORLD, folder):
        torch.save([measured(count) for count in (1, 2, 3, 5)], f"{folder}/{rank}.pt")


@pytest.mark.ddp
def test_fewer_queries_than_processes_give_the_same(tmp_path: Path):
    expected = [measured(count) for count in (1, 2, 3, 5)]
    assert seen_by_ranks(one_rank, tmp_path, WORLD) == [expected] * WORLD
