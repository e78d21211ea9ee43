"""What the name of a metric says: whether it is a share, a count, or best where it is smallest."""

import re

from fgssl.report.runs import SECONDS

EXTRA_TIME = "extra_time"  # share by which an epoch takes longer than one of the baseline
COUNTS = ("queries_without_match",)
# The fractions that fgssl measures, which are shown in percent. Metrics of other names are shown as they are.
SHARES = re.compile(
    r"(best_epoch_)?("
    r"(recall|precision)@\d+|map(@r|@\d+|_c|_11point|_allpoint|_noninterpolated)?|r_precision|cmd_code_(rank\d+|map)|"
    r"(knn_|online_|box_knn_)?top\d+|box_knn_patches|patch_(purity|nmi)|nmi|ami|"
    r"ap(\d+|[sml])?_(box|mask)|miou|macc|aacc|[jf]_(mean|recall)|jf_mean|"
    rf"label_precision|matched|waiting_for_data|{EXTRA_TIME})"
)
# Terms of losses, as the methods log them under train/.
LOSS_TERMS = (
    "ce", "contrastive", "nce", "mls", "knn", "bce_pos", "pull", "push", "dml", "kl",
    "l_i", "l_r", "l_s", "l_t", "l_ts", "koleo", "intra", "inter", "volume",
    "invariance", "variance", "covariance", "redundancy", "byol", "dense", "pooled", "aligned", "fit",
)  # fmt: skip
# And the losses.
LOWER_IS_BETTER = ("spectral_decay", "queries_without_match", "waiting_for_data", SECONDS, EXTRA_TIME)


def is_share(metric: str) -> bool:
    """Whether a metric is a fraction, which is shown in percent."""
    return SHARES.fullmatch(bare(metric)) is not None


def is_count(metric: str) -> bool:
    """Whether a metric is a number of images or epochs."""
    return bare(metric) in COUNTS or bare(metric).startswith("best_epoch_of_")


def lower_is_better(metric: str) -> bool:
    """Whether the smallest value of a metric is the best: of losses and ``LOWER_IS_BETTER``."""
    part, _, name = metric.rpartition("/")
    return name in LOWER_IS_BETTER or "loss" in name or (part == "train" and name in LOSS_TERMS)


def bare(metric: str) -> str:
    """A metric without the part that it is of: ``spectral_decay`` of ``val/spectral_decay``."""
    return metric.rpartition("/")[2]
