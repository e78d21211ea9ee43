"""The losses of OBD-SD (Zeng et al., 2022). Shapes: B batch, N training rows, D embedding.

A similarity matrix is Z Z^T of unit rows, its diagonal (1) included.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fgssl.losses.precision import at_least_float32


@torch.no_grad()
def diffused_targets(
    teacher_similarity: Tensor,
    *,
    omega: float,
    tau: float,
    tau_d: float = 1.0,
    normalization: Literal["softmax", "symmetric"] = "softmax",
    clamp: bool = True,
) -> Tensor:
    """The teacher's relations, refined by a random walk on the batch: online batch diffusion (OBDP).

    The two readings of the walk's transition matrix:

    - ``softmax``, the released code: P = softmax of D / tau_d by rows without the diagonal, and the targets
      (1 - omega) (I - omega P)^-1 softmax(D / tau).
    - ``symmetric``, the paper's Eq. 3 to 6: W = D without its diagonal, S = V^-1/2 W V^-1/2 with V the row sums,
      A = (1 - omega) (I - omega S)^-1 D, and the targets softmax(A / tau).

    Args:
        teacher_similarity: [B, B] D of the teacher, cosines.
        omega: probability to walk on, in [0, 1). 0 gives PSD's targets, softmax(D / tau), in both readings.
        tau: temperature of the targets.
        tau_d: temperature of the walk, ``softmax`` alone.
        normalization: which reading.
        clamp: take negative cosines as 0 in W, ``symmetric`` alone. A row sum below 0 has no root: the paper's formula
            as it stands (False) then gives NaN.

    Returns:
        [B, B] targets, each row of sum 1. float32 at least, also under autocast.
    """
    if not 0 <= omega < 1 or tau <= 0 or tau_d <= 0:
        raise ValueError(f"omega lies in [0, 1), tau and tau_d above 0: got {omega}, {tau}, {tau_d}")
    with torch.autocast(teacher_similarity.device.type, enabled=False):
        d_BB = at_least_float32(teacher_similarity)
        if omega == 0 or len(d_BB) == 1:
            return torch.softmax(d_BB / tau, dim=1)
        if normalization == "softmax":
            p_BB = torch.softmax((d_BB / tau_d).fill_diagonal_(-torch.inf), dim=1)
            return _walk(p_BB, torch.softmax(d_BB / tau, dim=1), omega)
        a_BB = _walk(symmetric_transition(d_BB, clamp), d_BB, omega)  # Eq. 5
        return torch.softmax(a_BB / tau, dim=1)


def symmetric_transition(similarity: Tensor, clamp: bool = True) -> Tensor:
    """S = V^-1/2 W V^-1/2 (section 3.3.1): [B, B] similarities to [B, B]. A row without neighbours stays 0."""
    w_BB = similarity.clone().fill_diagonal_(0)
    if clamp:
        w_BB = w_BB.clamp(min=0)
    v_B = w_BB.sum(dim=1)
    root_B = torch.where(v_B == 0, 0, v_B.rsqrt())
    return root_B[:, None] * w_BB * root_B


def _walk(transition_BB: Tensor, start_BB: Tensor, omega: float) -> Tensor:
    """Where f := omega S f + (1 - omega) f0 converges to (Eq. 3). Solved, not inverted."""
    identity = torch.eye(len(start_BB), dtype=start_BB.dtype, device=start_BB.device)
    return (1 - omega) * torch.linalg.solve(identity - omega * transition_BB, start_BB)


def relation_distillation(student_similarity: Tensor, targets: Tensor, *, tau: float) -> Tensor:
    """KL divergence of the student's relations from the targets: Eq. 1 and 6.

    Args:
        student_similarity: [B, B] cosines of the student; the only input that a gradient reaches.
        targets: [B, B] of :func:`diffused_targets`.
        tau: temperature.

    Returns:
        Scalar, mean over the rows. float32 at least, also under autocast.
    """
    log_student_BB = F.log_softmax(at_least_float32(student_similarity) / tau, dim=1)
    return F.kl_div(log_student_BB, targets.detach().to(log_student_BB.dtype), reduction="batchmean")


def distillation_weight(epoch: int, max_epochs: int, *, lam: float, tau: float) -> float:
    """tau^2 (t / T) lambda of Eq. 2 and 7, with t = ``epoch`` counted from 0: nothing in the first epoch."""
    return tau**2 * epoch / max_epochs * lam


# ---- global manifold (section 5.5) ----------------------------------------------------------------------------------

COLUMNS = 2048  # of the refined matrix at a time


@torch.no_grad()
def global_affinity(embeddings: Tensor, *, neighbours: int = 50, power: float = 1.0) -> Tensor:
    """W of Eq. 12: cosines between mutual nearest neighbours, 0 elsewhere.

    Args:
        embeddings: [N, D] unit rows.
        neighbours: k.
        power: exponent of the cosines, negative ones taken as 0: 1 in the paper, 3 in the released code.

    Returns:
        [N, N] sparse (COO), symmetric.
    """
    n = len(embeddings)
    neighbours = min(neighbours, n - 1)
    ids_Nk = torch.cat([_nearest(embeddings, rows, neighbours) for rows in _blocks(embeddings)])
    from_M = torch.arange(n, device=embeddings.device).repeat_interleave(neighbours)
    to_M = ids_Nk.flatten()
    mutual_M = torch.isin(to_M * n + from_M, from_M * n + to_M)
    from_M, to_M = from_M[mutual_M], to_M[mutual_M]
    w_M = (embeddings[from_M] * embeddings[to_M]).sum(dim=1).clamp(min=0) ** power
    return torch.sparse_coo_tensor(torch.stack([from_M, to_M]), w_M, (n, n), check_invariants=False).coalesce()


def _blocks(embeddings: Tensor) -> tuple[Tensor, ...]:
    return torch.arange(len(embeddings), device=embeddings.device).split(COLUMNS)


def _nearest(z_ND: Tensor, rows: Tensor, k: int) -> Tensor:
    """[n, k] nearest rows of each of ``rows``, itself left out."""
    d_nN = z_ND[rows] @ z_ND.T
    d_nN[torch.arange(len(rows), device=rows.device), rows] = -torch.inf
    return d_nN.topk(k, dim=1).indices


@torch.no_grad()
def global_similarity(
    embeddings: Tensor, *, omega: float, neighbours: int = 50, power: float = 1.0, tolerance: float = 1e-6
) -> Tensor:
    """A of Eq. 5 over the whole training set: diffusion on the global manifold.

    I - omega S is symmetric, positive definite and sparse: conjugate gradients, all columns of a block side by side.

    Args:
        embeddings: [N, D] unit rows, of the teacher.
        omega: probability to walk on, in [0, 1).
        neighbours, power: of :func:`global_affinity`.
        tolerance: of the solution, relative to the right-hand side.

    Returns:
        [N, N] refined similarities.
    """
    w_NN = global_affinity(embeddings, neighbours=neighbours, power=power)
    degree_N = torch.sparse.sum(w_NN, dim=1).to_dense()
    root_N = torch.where(degree_N > 0, degree_N.rsqrt(), 0)
    from_M, to_M = w_NN.indices()
    walk_M = root_N[from_M] * w_NN.values() * root_N[to_M]
    s_NN = torch.sparse_coo_tensor(w_NN.indices(), walk_M, w_NN.shape, check_invariants=False)
    a_NN = embeddings.new_empty(len(embeddings), len(embeddings))
    for columns in _blocks(embeddings):
        d_Nn = embeddings @ embeddings[columns].T
        a_NN[:, columns] = (1 - omega) * _conjugate_gradients(s_NN, omega, d_Nn, tolerance)
    return a_NN


def _conjugate_gradients(s_NN: Tensor, omega: float, right_Nn: Tensor, tolerance: float) -> Tensor:
    """Solve (I - omega S) X = right-hand sides [N, n]."""
    x_Nn, rest_Nn = torch.zeros_like(right_Nn), right_Nn.clone()
    step_Nn, square_n = rest_Nn.clone(), rest_Nn.square().sum(dim=0)
    enough_n = tolerance**2 * square_n
    for _ in range(len(s_NN)):  # exact arithmetic needs no more
        if (square_n <= enough_n).all():
            break
        image_Nn = step_Nn - omega * torch.sparse.mm(s_NN, step_Nn)
        length_n = square_n / (step_Nn * image_Nn).sum(dim=0).clamp(min=torch.finfo(right_Nn.dtype).tiny)
        x_Nn += length_n * step_Nn
        rest_Nn -= length_n * image_Nn
        former_n, square_n = square_n, rest_Nn.square().sum(dim=0)
        step_Nn = rest_Nn + square_n / former_n.clamp(min=torch.finfo(right_Nn.dtype).tiny) * step_Nn
    return x_Nn
