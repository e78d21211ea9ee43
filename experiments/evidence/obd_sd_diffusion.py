"""How far the diffusion inside a batch is a contraction of the teacher's targets towards their mean.

With P of equal entries beside its diagonal, the targets (1 - omega) (I - omega P)^-1 T are m + c (T - m): the rows T =
softmax(D / tau), moved towards their mean row m, with c = (1 - omega) / (1 + omega / (B - 1)). No neighbourhood matters
then. For batches of training images of a run of OBD-SD or PSD, and for each tau_d: the c that fits best, and the share
of the change from T to the diffused targets that it explains::

    python experiments/evidence/obd_sd_diffusion.py runs/sweep_obd_sd_long/seed_everything2_full

D are the similarities of the run's teacher, omega 0.3 and tau 1. B images a batch.
"""

import argparse
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from fgssl.cli.saved import configuration
from fgssl.commands.restore import restore
from fgssl.losses.obd_sd import diffused_targets
from fgssl.nn.distillation import similarity

OMEGA, TAU = 0.3, 1.0
WALKS: dict[str, dict[str, Any]] = {
    **{f"tau_d {tau_d:g}": {"tau_d": tau_d} for tau_d in (0.005, 0.05, 0.2, 1.0, 100.0)},
    "Eq. 3 to 6 of the paper": {"normalization": "symmetric"},
}
BATCHES = 5


def contraction(targets_BB: Tensor, diffused_BB: Tensor) -> tuple[float, float]:
    """The contraction towards the mean row that fits best.

    Args:
        targets_BB: targets before the diffusion, T.
        diffused_BB: after it.

    Returns:
        c, and the share of the squared change from T that m + c (T - m) explains.
    """
    mean_1B = targets_BB.mean(dim=0, keepdim=True)
    before, after = targets_BB - mean_1B, diffused_BB - mean_1B
    c = (after * before).sum() / before.square().sum()
    left = (after - c * before).square().sum() / (diffused_BB - targets_BB).square().sum()
    return c.item(), 1 - left.item()


@torch.no_grad()
def similarities(run: str) -> Iterator[Tensor]:
    """[B, B] float64 similarities of the run's teacher, for the first training batches of an epoch."""
    application = restore(configuration(run, []), [])
    data, method = application.datamodule, application.model
    data.setup("fit")
    for batch in islice(data.train_loader(epoch=0), BATCHES):
        images = data.on_after_batch_transfer(batch, 0).views[0]
        yield similarity(method.teacher_embeddings(images).double())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="run folder or checkpoint of OBD-SD or PSD")
    args = parser.parse_args()
    of_batches = list(similarities(args.run))
    print(f"{'':<24}  c      share of the change, %")
    for name, walk in WALKS.items():
        found = [
            contraction(diffused_targets(d_BB, omega=0, tau=TAU), diffused_targets(d_BB, omega=OMEGA, tau=TAU, **walk))
            for d_BB in of_batches
        ]
        c, share = torch.tensor(found).mean(dim=0).tolist()
        print(f"{name:<24}  {c:.3f}  {100 * share:.3f}")


if __name__ == "__main__":
    main()
