"""Which channel means and deviations a run normalises its images with."""

import math

from fgssl.data.augment import IMAGENET_MEAN, IMAGENET_STD, Channels

Trained = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation, each [3]


def normalisation(mean: Channels | None, std: Channels | None, trained: Trained | None) -> tuple[Channels, Channels]:
    """Channel means and standard deviations of a run.

    Args:
        mean: ``data.mean``; None: ``trained``'s, or ImageNet's.
        std: ``data.std``; None: ``trained``'s, or ImageNet's.
        trained: mean and standard deviation that the starting weights were trained with; None: unknown.
    """
    (m_r, m_g, m_b), (s_r, s_g, s_b) = trained or (IMAGENET_MEAN, IMAGENET_STD)
    return mean or (m_r, m_g, m_b), std or (s_r, s_g, s_b)


def difference(mean: Channels, std: Channels, trained: Trained | None) -> str | None:
    """A line that says how a run's normalisation differs from its starting weights' own; None where it does not."""
    if trained is None or _close(mean, trained[0]) and _close(std, trained[1]):
        return None
    return (
        f"data.mean {list(mean)} and data.std {list(std)} are not those that the starting weights were trained with, "
        f"{list(trained[0])} and {list(trained[1])}. null takes the latter."
    )


def _close(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip(one, other, strict=True))
