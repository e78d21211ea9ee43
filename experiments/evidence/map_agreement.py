"""Whether the maps of two networks agree: GradCAM and the activated instances of CMD (Figs. 6 and 7).

Over the test images: of each network, how many instances (patches) of an image have the prototype of their bag, and how
many prototypes are that of an image; of each two networks, the mean correlation of their GradCAM over the patches of an
image, without images where one is 0 everywhere, and the share of instances that both or neither activates::

    python experiments/evidence/map_agreement.py CMD=runs/sweep_cmd/seed_everything2_cmd \\
        EsViT=runs/sweep_cmd/seed_everything2_esvit

A network is a run folder or checkpoint of CMD, EsViT or DINO. The maps are those of ``fgssl maps``.
"""

import argparse
from itertools import combinations
from typing import NamedTuple

import numpy as np

from fgssl.cli.saved import configuration
from fgssl.commands.maps import activated, gradcam, network_of
from fgssl.commands.restore import restore


class Maps(NamedTuple):
    """Maps of one network over N images of P patches.

    Attributes:
        activated_NP: bool, the activated instances.
        prototypes: title of the most probable prototype of each image, "k = 3".
        gradcam_NP: GradCAM, >= 0.
    """

    activated_NP: np.ndarray
    prototypes: list[str]
    gradcam_NP: np.ndarray


def maps_of(run: str) -> Maps:
    """Maps of the network that a run evaluates, over its test part."""
    application = restore(configuration(run, []), [])
    data, net = application.datamodule, network_of(application.model, None)
    data.setup("test")
    framed, heats = [], []
    for batch in data.test_dataloader():
        images = data.on_after_batch_transfer(batch, 0).views[0]
        framed += [panels[0] for panels in activated(net, images)]
        heats += [panels[0][0].heat_HW for panels in gradcam(net, images)]
    return Maps(
        np.stack([panels[0].marked_HW.ravel() for panels in framed]),
        [panels[1].title.partition(",")[0] for panels in framed],
        np.stack([heat_HW.ravel() for heat_HW in heats]),
    )


def correlation(one_NP: np.ndarray, other_NP: np.ndarray) -> float:
    """Mean over the images of the correlation of two maps; an image where one of them is constant does not count."""
    varied = (np.ptp(one_NP, axis=1) > 0) & (np.ptp(other_NP, axis=1) > 0)
    pairs = zip(one_NP[varied], other_NP[varied], strict=True)
    return float(np.mean([np.corrcoef(one_P, other_P)[0, 1] for one_P, other_P in pairs]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="+", metavar="NAME=RUN", help="run folder or checkpoint")
    args = parser.parse_args()
    maps = {name: maps_of(run) for name, _, run in (text.partition("=") for text in args.networks)}
    print(f"{'':<28} activated instances   prototypes")
    for name, own in maps.items():
        activated_words = f"{own.activated_NP.sum(axis=1).mean():.1f} of {own.activated_NP.shape[1]}"
        print(f"{name:<28} {activated_words:>19} {len(set(own.prototypes)):>12}")
    print(f"\n{'':<28} correlation of GradCAM   same instances, %")
    for (one, a), (other, b) in combinations(maps.items(), 2):
        same = 100 * (a.activated_NP == b.activated_NP).mean()
        print(f"{one + ' and ' + other:<28} {correlation(a.gradcam_NP, b.gradcam_NP):>22.2f} {same:>19.1f}")


if __name__ == "__main__":
    main()
