"""Number formats of the losses."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Convert float16 and bfloat16 to float32; leave every other type as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
