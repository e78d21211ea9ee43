"""Metric-learning losses and miners as modules, and how a configuration names them.

Ours follow the formulas that OBD-SD's tables rest on; every other name is pytorch-metric-learning's. Both kinds are
called alike: ``loss(embeddings, labels)``, or with what a miner picked, ``loss(embeddings, labels, miner(...))``.
"""

import importlib
import inspect
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fgssl.errors import UserError, did_you_mean
from fgssl.losses.metric_learning import (
    Triplets,
    distance_weighted_triplets,
    margin_loss,
    multi_similarity,
    random_triplets,
    semi_hard_triplets,
    soft_hard_triplets,
    without_positives,
)


class Spec:
    """A class by name, with its arguments: ``NAME`` or ``{class_path: NAME, init_args: {...}}`` in a configuration."""

    def __init__(self, class_path: str, init_args: dict[str, Any] | None = None):
        self.class_path, self.init_args = class_path, dict(init_args or {})

    @classmethod
    def read(cls, value: Any) -> "Spec":
        """From a configuration's value.

        Raises:
            ValueError: it is of neither form.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls(value)
        if isinstance(value, dict) and "class_path" in value and value.keys() <= {"class_path", "init_args"}:
            return cls(**value)
        raise ValueError(f"{value} is neither a class's name nor {{class_path: NAME, init_args: {{...}}}}")

    def plain(self) -> str | dict[str, Any]:
        """For a configuration."""
        return {"class_path": self.class_path, "init_args": self.init_args} if self.init_args else self.class_path

    def __eq__(self, other: object) -> bool:
        return self.plain() == (other.plain() if isinstance(other, Spec) else other)

    def __repr__(self) -> str:
        return str(self.plain())


class MultiSimilarity(nn.Module):
    """:func:`fgssl.losses.metric_learning.multi_similarity`, which mines for itself."""

    def __init__(self, alpha: float = 2.0, beta: float = 40.0, base: float = 0.5, epsilon: float = 0.1):
        super().__init__()
        self.settings = {"alpha": alpha, "beta": beta, "base": base, "epsilon": epsilon}

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return multi_similarity(embeddings, labels, **self.settings)


class Margin(nn.Module):
    """:func:`fgssl.losses.metric_learning.margin_loss` with a boundary that is learnt for each class.

    Args:
        num_classes: C; the data's training classes where a method builds it.
        margin: half the width of the boundary.
        beta: where the boundaries start.
        average: denominator, see the function.
        push_own: R-Margin's share of triplets that push a sample of the anchor's own class away.
    """

    def __init__(
        self,
        num_classes: int,
        margin: float = 0.2,
        beta: float = 1.2,
        average: Literal["triplets", "pairs"] = "triplets",
        push_own: float = 0.0,
    ):
        super().__init__()
        self.beta = nn.Parameter(torch.full((num_classes,), beta))
        self.margin, self.average, self.push_own = margin, average, push_own

    def forward(self, embeddings: Tensor, labels: Tensor, triplets: Triplets) -> Tensor:
        if self.push_own:
            triplets = without_positives(triplets, self.push_own)
        return margin_loss(embeddings, labels, triplets, self.beta, margin=self.margin, average=self.average)


class RandomTriplets(nn.Module):
    """:func:`fgssl.losses.metric_learning.random_triplets`."""

    def forward(self, embeddings: Tensor, labels: Tensor) -> Triplets:
        return random_triplets(embeddings, labels)


class SemiHard(nn.Module):
    """:func:`fgssl.losses.metric_learning.semi_hard_triplets`."""

    def __init__(self, margin: float = 0.2):
        super().__init__()
        self.margin = margin

    def forward(self, embeddings: Tensor, labels: Tensor) -> Triplets:
        return semi_hard_triplets(embeddings, labels, margin=self.margin)


class SoftHard(nn.Module):
    """:func:`fgssl.losses.metric_learning.soft_hard_triplets`."""

    def forward(self, embeddings: Tensor, labels: Tensor) -> Triplets:
        return soft_hard_triplets(embeddings, labels)


class DistanceWeighted(nn.Module):
    """:func:`fgssl.losses.metric_learning.distance_weighted_triplets`."""

    def __init__(self, cutoff: float = 0.5):
        super().__init__()
        self.cutoff = cutoff

    def forward(self, embeddings: Tensor, labels: Tensor) -> Triplets:
        return distance_weighted_triplets(embeddings, labels, cutoff=self.cutoff)


OURS: dict[str, dict[str, type[nn.Module]]] = {
    "losses": {"MultiSimilarity": MultiSimilarity, "Margin": Margin},
    "miners": {
        "RandomTriplets": RandomTriplets,
        "SemiHard": SemiHard,
        "SoftHard": SoftHard,
        "DistanceWeighted": DistanceWeighted,
    },
}
PARTS = ("distances", "reducers", "regularizers")  # of pytorch-metric-learning; arguments of its losses


def build_dml(dml_loss: Any, miner: Any, **facts: int) -> tuple[nn.Module, nn.Module | None]:
    """The loss and the miner that a configuration names.

    Args:
        dml_loss: the loss, as ``Spec.read`` takes it. Arguments that are objects (a distance, a reducer, a wrapped
            loss) are named the same way.
        miner: the miner, or None.
        facts: ``num_classes`` and ``embedding_size``, given to a class that takes them unless the configuration does.

    Raises:
        UserError: an unknown class or argument, or a loss and a miner that do not go together.
    """
    loss = _build(dml_loss, "losses", "model.dml_loss", facts)
    picker = None if miner is None else _build(miner, "miners", "model.miner", facts)
    _, _, *third = inspect.signature(loss.forward).parameters.values()
    name = type(loss).__name__
    if picker is None and third and third[0].default is inspect.Parameter.empty:
        raise UserError(f"model.miner: {name} needs one: {', '.join(OURS['miners'])}, or pytorch-metric-learning's.")
    if picker is not None and not third:
        raise UserError(f"model.miner: {name} mines for itself; set it null.")
    return loss, picker


def _build(value: Any, kind: str, option: str, facts: dict[str, int]) -> Any:
    try:
        spec = Spec.read(value)
    except ValueError as fault:
        raise UserError(f"{option}: {fault}.") from fault
    cls, arguments = _class_of(spec.class_path, kind, option), spec.init_args
    known = _arguments_of(cls)
    for name in arguments:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UserError(f"{option}: {cls.__name__} takes no '{name}'.{hint} It takes: {', '.join(sorted(known))}.")
    built = {
        name: _build(value, kind, f"{option}.{name}", facts) if _is_spec(value) else value
        for name, value in arguments.items()
    }
    try:
        return cls(**{name: value for name, value in facts.items() if name in known and name not in built}, **built)
    except (TypeError, ValueError, AssertionError) as fault:
        raise UserError(f"{option}: {cls.__name__} cannot be built: {fault}.") from fault


def _is_spec(value: Any) -> bool:
    return isinstance(value, dict) and "class_path" in value


def _class_of(path: str, kind: str, option: str) -> type:
    """A class by its short name, ours or pytorch-metric-learning's, or by its whole path."""
    if path in OURS[kind]:
        return OURS[kind][path]
    if "." in path:
        place, _, name = path.rpartition(".")
        try:
            return getattr(importlib.import_module(place), name)
        except (ImportError, AttributeError) as fault:
            raise UserError(f"{option}: there is no class '{path}' ({fault}).") from fault
    known: dict[str, type] = dict(OURS[kind])
    for part in (kind, *PARTS):
        module = importlib.import_module(f"pytorch_metric_learning.{part}")  # slow: only where a method needs it
        known |= {name: cls for name, cls in vars(module).items() if inspect.isclass(cls)}
    if path not in known:
        raise UserError(
            f"{option}: unknown class '{path}'.{did_you_mean(path, known)} Ours: {', '.join(OURS[kind])}; and any of "
            f"pytorch_metric_learning.{kind}."
        )
    return known[path]


def _arguments_of(cls: type) -> set[str]:
    """What the constructor takes, and those that it hands on to."""
    names: set[str] = set()
    for parent in cls.__mro__:
        if parent not in (nn.Module, object) and "__init__" in vars(parent):
            parameters = list(inspect.signature(vars(parent)["__init__"]).parameters.values())[1:]
            names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
            if not any(p.kind == p.VAR_KEYWORD for p in parameters):
                break
    return names
