"""Networks compiled by ``torch.compile``, in place: names of weights, copies and checkpoints stay as they are."""

from typing import Any

import torch
from torch import nn

from fgssl.errors import UserError
from fgssl.nn.backbones import timm_networks

ENTRIES = ("forward", "forward_features", "forward_intermediates")  # through which the methods call a timm network
CUDA_GRAPHS = ("reduce-overhead", "max-autotune")  # modes of torch.compile that use them on a GPU
# Times that dynamo compiles a function anew before it gives up: student, teacher and evaluation, each for every size of
# a crop. Dynamo's default is 8.
RECOMPILES = 64


def compile_networks(module: nn.Module, **options: Any) -> None:
    """Compile every timm network in a module, in place. It is done at the first call, for each shape of the input.

    Args:
        module: a method.
        options: arguments of ``torch.compile``, such as ``mode`` or ``backend``.

    Raises:
        UserError: there is no timm network in the module, or the options ask for CUDA graphs. A graph writes the result
            of each call into the same memory, but teachers and evaluation keep results over several calls.
    """
    if options.get("mode") in CUDA_GRAPHS or (options.get("options") or {}).get("triton.cudagraphs"):
        raise UserError(
            "trainer.compile: results of CUDA graphs are overwritten by the next call, while they are needed. Take "
            "{mode: max-autotune-no-cudagraphs} or true."
        )
    networks = timm_networks(module)
    if not networks:
        raise UserError(f"trainer.compile: {type(module).__name__} has no timm network to compile. Set it to false.")
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILES)
    for network in networks:
        compile_network(network, **options)


def compile_network(network: nn.Module, **options: Any) -> None:
    """Compile one timm network in place; a deep copy of it is compiled too, with its own weights.

    The compiled functions are methods of a subclass. As attributes of the object, a deep copy would keep those of the
    original; as a wrapper (``torch.compile(network)``) they would change the names of the weights.
    """
    kind = type(network)
    if kind.__name__.startswith("Compiled"):
        return
    entries = {name: torch.compile(getattr(kind, name), **options) for name in ENTRIES if hasattr(kind, name)}
    network.__class__ = type(f"Compiled{kind.__name__}", (kind,), entries)


def to_channels_last(module: nn.Module) -> None:
    """Store the weights of convolutions channels-last, in place; the maps that they compute are then channels-last."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
