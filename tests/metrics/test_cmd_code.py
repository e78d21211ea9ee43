"""CMD's published retrieval script."""

import json
from pathlib import Path

import pytest
import torch

from fgssl.metrics.cmd_code import cmd_code_retrieval

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "cmd_retrieval.json").read_text())


def test_cmd_code_retrieval_equals_golden_numbers():
    arrays = [torch.tensor(GOLDEN[f"{part}_{name}"]) for part in ("test", "train") for name in ("features", "labels")]
    ours = cmd_code_retrieval(*arrays)
    golden = GOLDEN["CMD_code_every_9th_test_query__gallery_train_plus_rest__AP@100"]
    assert 100 * ours["cmd_code_rank1"] == pytest.approx(golden["rank1"])
    assert 100 * ours["cmd_code_rank5"] == pytest.approx(golden["rank5"])
    assert 100 * ours["cmd_code_map"] == pytest.approx(golden["mAP"], rel=1e-6)


def test_cmd_code_retrieval_uses_the_first_hundred_neighbours():
    query = torch.tensor([[1.0, 0.0]])
    near, far = torch.tensor([[1.0, 0.1]]).expand(100, 2), torch.tensor([[0.0, 1.0]])
    labels = torch.cat([torch.zeros(100), torch.ones(1)]).long()
    ours = cmd_code_retrieval(query, torch.ones(1).long(), torch.cat([near, far]), labels)
    assert ours["cmd_code_map"] == 0
    assert cmd_code_retrieval(query, torch.zeros(1).long(), torch.cat([near, far]), labels)["cmd_code_map"] == 1
