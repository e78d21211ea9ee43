"""Which metrics are shares, shown in percent, and which are best where they are smallest."""

import csv
import json

import pytest

from fgssl.report.compare import DEFAULT_METRICS
from fgssl.report.metric_names import LOSS_TERMS, is_count, is_share, lower_is_better
from fgssl.report.published import METRICS, VOC_MAP, all_rows
from tests.shortened import ROOT

SHARES = (
    "recall@1", "recall@1000", "precision@1", "map", "map@r", "map@1000", "map_c", "r_precision",
    "map_11point", "map_allpoint", "map_noninterpolated", "nmi", "ami",
    "cmd_code_rank1", "cmd_code_rank5", "cmd_code_map", "best_epoch_recall@1", "best_epoch_nmi",
    "top1", "top5", "knn_top1", "online_top1", "online_top5", "box_knn_top1", "box_knn_patches",
    "patch_purity", "patch_nmi", "miou", "macc", "aacc", "j_mean", "f_mean", "j_recall", "f_recall", "jf_mean",
    "ap_box", "ap50_box", "ap70_box", "ap75_box", "aps_box", "apm_box", "apl_box", "ap_mask", "ap50_mask", "ap75_mask",
    "aps_mask", "apm_mask", "apl_mask", "extra_time", "label_precision", "matched", "waiting_for_data",
)  # fmt: skip
OTHERS = (
    "density", "spectral_decay", "queries_without_match", "best_epoch_of_recall@1", "best_epoch_of_nmi",
    "seconds_an_epoch", "images_per_second", "lr", "teacher_momentum", "teacher_entropy", "teacher_student_kl",
    "distillation_weight", "q_z_mean", "z_std", "feature_std", "rankme", "map_peak", "cam_peak", "loss", *LOSS_TERMS,
)  # fmt: skip


@pytest.mark.parametrize("part", ["", "test/", "val/", "train/", "test_each_epoch/"])
def test_shares_are_those_that_fgssl_measures(part):
    assert [name for name in SHARES if not is_share(part + name)] == []
    assert [name for name in (*OTHERS, "mean_norm", "mapping", "topology") if is_share(part + name)] == []


def test_every_metric_of_the_results_and_of_the_papers_is_known():
    """A new one has to be added to the lists above, and to ``SHARES`` where it is one."""
    found = set(DEFAULT_METRICS) | set(VOC_MAP)
    for file in (ROOT / "experiments" / "evidence" / "results").rglob("results.json"):
        found |= set(json.loads(file.read_text())["metrics"])
    for file in (ROOT / "experiments" / "evidence" / "results").rglob("metrics.csv"):
        with file.open(newline="") as lines:
            found |= set(next(csv.reader(lines))) - {"epoch", "step"}
    found |= {name for row in all_rows() for name in METRICS.get(row["metric"], (row["metric"],))}
    names = {name.rpartition("/")[2] for name in found}
    assert sorted(name for name in names - {*SHARES, *OTHERS} if not is_share(name)) == []


def test_losses_and_their_terms_are_best_where_they_are_smallest():
    smallest = ("train/loss", "test/loss", "train/l_i", "train/push", "val/spectral_decay", "seconds_an_epoch")
    smallest += ("test/queries_without_match", "throughput/waiting_for_data")
    assert all(map(lower_is_better, smallest))
    largest = ("recall@1", "val/map", "density", "train/rankme", "train/label_precision", "test/knn")
    assert not any(map(lower_is_better, largest))


def test_counts_are_no_shares():
    assert is_count("test/queries_without_match")
    assert is_count("best_epoch_of_recall@1")
    assert not is_count("best_epoch_recall@1")
