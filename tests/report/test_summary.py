"""The table at the end of a run: shares in percent, counts, losses and metrics of one's own as they are."""

from fgssl.report.summary import print_summary


def test_shares_are_in_percent_and_counts_are_not(capsys):
    metrics = {
        "test/recall@1": 0.5972, "val/map": 0.1, "test/queries_without_match": 3.0, "test/best_epoch_recall@1": 0.61,
        "test/best_epoch_of_recall@1": 12.0, "test/density": 0.25, "test/loss": 1.5, "test/mean_norm": 7.586,
        "train/loss": 2.0,
    }  # fmt: skip
    results = {"method": "MaskCon", "dataset": "cub", "status": "finished", "duration_s": 61.2, "metrics": metrics}
    print_summary(results, "runs/a/b")
    said = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:3]] for line in said.splitlines() if line.startswith("│")]
    assert rows == [
        ["test/recall@1", "59.72 %"],
        ["val/map", "10.00 %"],
        ["test/queries_without_match", "3"],
        ["test/best_epoch_recall@1", "61.00 %"],
        ["test/best_epoch_of_recall@1", "12"],
        ["test/density", "0.2500"],
        ["test/loss", "1.5000"],
        ["test/mean_norm", "7.5860"],
    ]
    assert said.splitlines()[-1] == "finished in 61 s. Run folder: runs/a/b"
