"""Whether MaskCon's soft relations find the fine class within the coarse one.

For batches of training images of a run of MaskCon, and for each tau: the share of an image's relations (Eq. 11 to 13)
that fall on entries of its own fine class, over entries of other images; and the part of its target (Eq. 14) that is
left for its own key. At tau = inf all entries of the coarse label are equal, as for Grafit: the share is then that of
the fine class in the coarse one, which relations have to exceed to mean something::

    python experiments/evidence/maskcon_relations.py runs/sweep_cifartoy_bad/seed_everything1_maskcon

Keys and memory are those of the run's checkpoint. B images a batch, K entries of the memory.
"""

import argparse
import math
from itertools import islice

import torch
from torch import Tensor

from fgssl.cli.saved import configuration
from fgssl.commands.restore import restore
from fgssl.losses.maskcon import soft_targets

TAUS = (0.0, 0.05, 0.1, 0.2, math.inf)
BATCHES = 5


def shares(targets_BK1: Tensor, same_BK: Tensor, own_BK: Tensor) -> tuple[float, float]:
    """Where the targets of a batch lie.

    Args:
        targets_BK1: targets at w = 1; column 0 is the own key.
        same_BK: whether an entry is of the image's fine class.
        own_BK: whether an entry is a key of the same image, from an earlier step; it counts neither as found nor as
            missed.

    Returns:
        Share of the relations that is on the fine class, and part of the target that is on the own key; means over the
        images that have a relation.
    """
    relations_BK = targets_BK1[:, 1:].masked_fill(own_BK, 0)
    sums_B = relations_BK.sum(dim=1)
    found_B = (relations_BK * same_BK).sum(dim=1)[sums_B > 0] / sums_B[sums_B > 0]
    return found_B.mean().item(), targets_BK1[:, 0].mean().item()


@torch.no_grad()
def measured(run: str) -> dict[float, tuple[float, float]]:
    """``shares`` by tau, means over the first training batches of an epoch."""
    application = restore(configuration(run, []), [])
    data, method = application.datamodule, application.model
    data.setup("fit")
    fine = torch.as_tensor(data.parts.index.fine)
    found: dict[float, list[tuple[float, float]]] = {tau: [] for tau in TAUS}
    for batch in islice(data.train_loader(epoch=0), BATCHES):
        batch = data.on_after_batch_transfer(batch, 0)
        keys_BD, memory = method.key(batch.views[1]), method.memory
        same_BK = batch.fine[:, None] == fine[memory.index][None, :]
        own_BK = batch.index[:, None] == memory.index[None, :]
        for tau in TAUS:
            targets_BK1 = soft_targets(keys_BD, memory.keys, batch.coarse, memory.labels, tau=tau, weight=1)
            found[tau].append(shares(targets_BK1, same_BK, own_BK))
    return {tau: tuple(torch.tensor(rows).mean(dim=0).tolist()) for tau, rows in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="run folder or checkpoint of MaskCon")
    args = parser.parse_args()
    print("tau    relations on the fine class, %   target on the own key, %")
    for tau, (share, own) in measured(args.run).items():
        print(f"{tau:<5g}  {100 * share:<31.1f}  {100 * own:.1f}")


if __name__ == "__main__":
    main()
