"""Metric-learning losses and miners as modules, and how a configuration names them.

The classes of this file are what pytorch-metric-learning has in another form, or not; every other name is its own. All
are called in the same way: ``loss(embeddings, labels)``, or with a miner ``loss(embeddings, labels, miner(...))``.
"""

import importlib
import inspect
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgssl.errors import UserError, did_you_mean
from fgssl.losses.metric_learning import (
    Triplets,
    distance_weighted_triplets,
    margin_loss,
    multi_similarity,
    random_triplets,
    semi_hard_triplets,
    soft_hard_triplets,
    without_padding,
    without_positives,
)
from fgssl.losses.proxies import proxy_nca_pp, soft_triple


class Spec:
    """A class named in a configuration, with its arguments: ``NAME`` or ``{class_path: NAME, init_args: {...}}``.

    Args:
        class_path: name of the class; with its module where it is neither ours nor pytorch-metric-learning's.
        init_args: arguments of its constructor.
    """

    def __init__(self, class_path: str, init_args: dict[str, Any] | None = None):
        self.class_path, self.init_args = class_path, dict(init_args or {})

    @classmethod
    def read(cls, value: Any) -> "Spec":
        """Read a value of a configuration.

        Raises:
            ValueError: the value has neither of the two forms.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls(value)
        if isinstance(value, dict) and "class_path" in value and value.keys() <= {"class_path", "init_args"}:
            return cls(**value)
        raise ValueError(f"{value} is neither a class's name nor {{class_path: NAME, init_args: {{...}}}}")

    def plain(self) -> str | dict[str, Any]:
        """Value for a configuration."""
        return {"class_path": self.class_path, "init_args": self.init_args} if self.init_args else self.class_path

    def __eq__(self, other: object) -> bool:
        return self.plain() == (other.plain() if isinstance(other, Spec) else other)

    def __repr__(self) -> str:
        return str(self.plain())


class MultiSimilarity(nn.Module):
    """Multi-similarity loss with its own selection of pairs: :func:`fgssl.losses.metric_learning.multi_similarity`.

    Args:
        alpha: sharpness on positive pairs.
        beta: sharpness on negative pairs.
        base: similarity at which a pair has half its weight.
        epsilon: margin of the selection of pairs.
    """

    def __init__(self, alpha: float = 2.0, beta: float = 40.0, base: float = 0.5, epsilon: float = 0.1):
        super().__init__()
        self.settings = {"alpha": alpha, "beta": beta, "base": base, "epsilon": epsilon}

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return multi_similarity(embeddings, labels, **self.settings)


class Margin(nn.Module):
    """Margin loss with a learnable boundary for each class: :func:`fgssl.losses.metric_learning.margin_loss`.

    Args:
        num_classes: number of training classes C; default: those of the data set.
        margin: half the width of the zone around the boundary.
        beta: initial boundary, a Euclidean distance.
        average: denominator of the mean: ``triplets`` with an active term, or active ``pairs``.
        push_own: probability that a triplet pushes a sample of the anchor's own class away (R-Margin); 0: never.
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


class CrossEntropy(nn.Module):
    """Cross-entropy of a linear classifier over the training classes, with label smoothing (Boudiaf et al., ECCV 2020).

    The classifier starts at zero and, with ``model.normalize: false``, sees embeddings of any length, both as in the
    paper's released code.

    Args:
        num_classes: number of training classes C; default: those of the data set.
        embedding_size: dimension D of the embedding; default: that of the model.
        label_smoothing: share of the target that is spread evenly over all classes, in [0, 1].
        dropout: probability with which an entry of the embedding is set to zero before the classifier.
    """

    def __init__(self, num_classes: int, embedding_size: int, label_smoothing: float = 0.1, dropout: float = 0.0):
        super().__init__()
        self.label_smoothing = label_smoothing
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(embedding_size, num_classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        logits = self.classifier(self.dropout(embeddings))
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)


class ProxyNCApp(nn.Module):
    """ProxyNCA++ with a learned proxy of each class: :func:`fgssl.losses.proxies.proxy_nca_pp`.

    Args:
        num_classes: number of training classes C; default: those of the data set.
        embedding_size: dimension D of the embedding; default: that of the model.
        temperature: divides the squared distances: 1/9 in the paper.
        spread: standard deviation of the proxies at the start. Only their direction enters the loss, but the shorter
            they are the faster they turn: 1/8 in the released code, to which its rate of the proxies belongs.
    """

    def __init__(self, num_classes: int, embedding_size: int, temperature: float = 1 / 9, spread: float = 1 / 8):
        super().__init__()
        self.temperature = temperature
        self.proxies = nn.Parameter(torch.randn(num_classes, embedding_size) * spread)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return proxy_nca_pp(embeddings, labels, self.proxies, temperature=self.temperature)


class SoftTriple(nn.Module):
    """SoftTriple with learned centres of each class: :func:`fgssl.losses.proxies.soft_triple`.

    Args:
        num_classes: number of training classes C; default: those of the data set.
        embedding_size: dimension D of the embedding; default: that of the model.
        centers_per_class: number of centres K of a class: 10 in the paper.
        la: lambda, factor of the similarities.
        gamma: temperature of the choice among the centres of a class.
        margin: delta, subtracted from the similarity to the own class.
        tau: weight of the regulariser that merges centres of one class; 0: without.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        centers_per_class: int = 10,
        la: float = 20.0,
        gamma: float = 0.1,
        margin: float = 0.01,
        tau: float = 0.2,
    ):
        super().__init__()
        self.settings = {"la": la, "gamma": gamma, "margin": margin, "tau": tau}
        self.centers = nn.Parameter(torch.empty(num_classes, centers_per_class, embedding_size))
        bound = (num_classes * centers_per_class) ** -0.5  # that of the released code
        nn.init.uniform_(self.centers, -bound, bound)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return soft_triple(embeddings, labels, self.centers, **self.settings)


class Miner(nn.Module):
    """Base of the miners here.

    Attributes:
        pads: whether the result has a row for each image, also where there is no triplet: ``Margin`` leaves those out.
    """

    pads = False

    def draw(self, embeddings: Tensor, labels: Tensor) -> Triplets:
        """Triplets with a row for each image."""
        raise NotImplementedError

    def forward(self, embeddings: Tensor, labels: Tensor) -> Triplets:
        triplets = self.draw(embeddings, labels)
        return triplets if self.pads else without_padding(triplets)


class RandomTriplets(Miner):
    """As many random triplets as images: :func:`fgssl.losses.metric_learning.random_triplets`."""

    def draw(self, embeddings: Tensor, labels: Tensor) -> Triplets:
        return random_triplets(embeddings, labels)


class SemiHard(Miner):
    """A semi-hard triplet for each anchor: :func:`fgssl.losses.metric_learning.semi_hard_triplets`.

    Args:
        margin: largest difference between the distances of the negative and of the positive.
    """

    def __init__(self, margin: float = 0.2):
        super().__init__()
        self.margin = margin

    def draw(self, embeddings: Tensor, labels: Tensor) -> Triplets:
        return semi_hard_triplets(embeddings, labels, margin=self.margin)


class SoftHard(Miner):
    """A soft-hard triplet for each anchor: :func:`fgssl.losses.metric_learning.soft_hard_triplets`."""

    def draw(self, embeddings: Tensor, labels: Tensor) -> Triplets:
        return soft_hard_triplets(embeddings, labels)


class DistanceWeighted(Miner):
    """A distance-weighted triplet for each anchor: :func:`fgssl.losses.metric_learning.distance_weighted_triplets`.

    Args:
        cutoff: smallest distance in the weights; shorter distances count as this one.
    """

    def __init__(self, cutoff: float = 0.5):
        super().__init__()
        self.cutoff = cutoff

    def draw(self, embeddings: Tensor, labels: Tensor) -> Triplets:
        return distance_weighted_triplets(embeddings, labels, cutoff=self.cutoff)


OURS: dict[str, dict[str, type[nn.Module]]] = {
    "losses": {
        "CrossEntropy": CrossEntropy,
        "Margin": Margin,
        "MultiSimilarity": MultiSimilarity,
        "ProxyNCApp": ProxyNCApp,
        "SoftTriple": SoftTriple,
    },
    "miners": {
        "RandomTriplets": RandomTriplets,
        "SemiHard": SemiHard,
        "SoftHard": SoftHard,
        "DistanceWeighted": DistanceWeighted,
    },
}
PARTS = ("distances", "reducers", "regularizers")  # modules of pytorch-metric-learning whose classes are arguments


def build_dml(dml_loss: Any, miner: Any, **facts: int) -> tuple[nn.Module, nn.Module | None]:
    """Build the loss and the miner that a configuration names.

    Args:
        dml_loss: loss, in a form that ``Spec.read`` takes. Arguments that are objects (a distance, a reducer, an inner
            loss) have the same form.
        miner: miner in the same form, or None.
        facts: ``num_classes`` and ``embedding_size``: arguments for a class that takes them, where the configuration
            does not set them.

    Returns:
        The loss, and the miner or None.

    Raises:
        UserError: a class or argument is unknown, or loss and miner do not go together.
    """
    loss = _build(dml_loss, "losses", "model.dml_loss", facts)
    picker = None if miner is None else _build(miner, "miners", "model.miner", facts)
    if isinstance(picker, Miner):
        picker.pads = isinstance(loss, Margin)
    _, _, *third = inspect.signature(loss.forward).parameters.values()
    name = type(loss).__name__
    if picker is None and third and third[0].default is inspect.Parameter.empty:
        raise UserError(
            f"model.miner: {name} needs one: {', '.join(OURS['miners'])}, or any of pytorch-metric-learning."
        )
    if picker is not None and not third:
        raise UserError(f"model.miner: {name} selects its pairs itself; set model.miner to null.")
    return loss, picker


def loss_label(loss: nn.Module) -> str:
    """Name of a loss in the papers' tables; others by the shortest name that a configuration has for them."""
    if isinstance(loss, Margin):
        return "R-Margin" if loss.push_own else "Margin"
    name = type(loss).__name__
    short = name.removesuffix("Loss")
    known = {"MultiSimilarity": "MS", "ProxyNCApp": "ProxyNCA++"}
    return name if short != name and short in OURS["losses"] else known.get(name, short)


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
    """Class of a dotted path, or of a short name: ours or pytorch-metric-learning's, whose ``Loss`` may be left out."""
    if path in OURS[kind]:
        return OURS[kind][path]
    if "." in path:
        place, _, name = path.rpartition(".")
        try:
            found = getattr(importlib.import_module(place), name)
        except (ImportError, AttributeError) as fault:
            raise UserError(f"{option}: there is no class '{path}' ({fault}).") from fault
        if not inspect.isclass(found):
            raise UserError(f"{option}: '{path}' is no class. Write it as a torch.nn.Module.")
        return found
    known: dict[str, type] = dict(OURS[kind])
    for part in (kind, *PARTS):
        module = importlib.import_module(f"pytorch_metric_learning.{part}")  # imported here because it takes a second
        classes = {name: cls for name, cls in vars(module).items() if inspect.isclass(cls)}
        short = {name.removesuffix("Loss"): cls for name, cls in classes.items()} if part == "losses" else {}
        known = short | known | classes
    if path not in known:
        raise UserError(
            f"{option}: unknown class '{path}'.{did_you_mean(path, known)} Ours: {', '.join(OURS[kind])}; and any of "
            f"pytorch_metric_learning.{kind}."
        )
    return known[path]


def _arguments_of(cls: type) -> set[str]:
    """Names of the constructor's arguments, with those that it hands on to its parent classes."""
    names: set[str] = set()
    for parent in cls.__mro__:
        if parent not in (nn.Module, object) and "__init__" in vars(parent):
            parameters = list(inspect.signature(vars(parent)["__init__"]).parameters.values())[1:]
            names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
            if not any(p.kind == p.VAR_KEYWORD for p in parameters):
                break
    return names
