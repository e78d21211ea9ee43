"""Losses of OBD-SD (Zeng et al., 2022). Shapes: B batch, N training images, D embedding.

A similarity matrix holds the cosines Z Z^T of unit rows, with the diagonal of ones.
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
    """Target distributions from the teacher's similarities, diffused by a random walk on the batch (OBDP).

    The paper and the released code differ in the transition matrix of the walk:

    - ``softmax``, released code: P = softmax of the rows of D / tau_d without the diagonal; targets
      (1 - omega) (I - omega P)^-1 softmax(D / tau).
    - ``symmetric``, Eq. 3 to 6 of the paper: W = D with zero diagonal, S = V^-1/2 W V^-1/2 with the row sums V,
      A = (1 - omega) (I - omega S)^-1 D; targets softmax(A / tau).

    Args:
        teacher_similarity: [B, B] similarities D of the teacher.
        omega: probability of a step of the walk, in [0, 1). 0 gives the targets of PSD, softmax(D / tau), in both
            cases.
        tau: temperature of the targets.
        tau_d: temperature of the transition matrix, with ``softmax`` only.
        normalization: ``softmax`` or ``symmetric``.
        clamp: set negative cosines in W to 0, with ``symmetric`` only. Without it, as in the paper's formula, a row
            with a negative sum gives NaN.

    Returns:
        [B, B] targets; each row sums to 1. float32 at least, also under autocast.
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
    """Transition matrix S = V^-1/2 W V^-1/2 [B, B] of similarities [B, B] (Sec. 3.3.1); a row of sum 0 stays 0."""
    w_BB = similarity.clone().fill_diagonal_(0)
    if clamp:
        w_BB = w_BB.clamp(min=0)
    v_B = w_BB.sum(dim=1)
    root_B = torch.where(v_B == 0, 0, v_B.rsqrt())
    return root_B[:, None] * w_BB * root_B


def _walk(transition_BB: Tensor, start_BB: Tensor, omega: float) -> Tensor:
    """Limit of the iteration f = omega S f + (1 - omega) f0 (Eq. 3), by solving the linear system."""
    identity = torch.eye(len(start_BB), dtype=start_BB.dtype, device=start_BB.device)
    # solve() would wait for the device to check that the matrix is regular; a diagonally dominant one is.
    return (1 - omega) * torch.linalg.solve_ex(identity - omega * transition_BB, start_BB).result


def relation_distillation(student_similarity: Tensor, targets: Tensor, *, tau: float) -> Tensor:
    """KL divergence between the targets and the student's similarity distributions (Eq. 1 and 6).

    Args:
        student_similarity: [B, B] similarities of the student; only they receive a gradient.
        targets: [B, B] targets from :func:`diffused_targets`.
        tau: temperature of the student's similarities.

    Returns:
        Scalar, mean over rows. float32 at least, also under autocast.
    """
    log_student_BB = F.log_softmax(at_least_float32(student_similarity) / tau, dim=1)
    return F.kl_div(log_student_BB, targets.detach().to(log_student_BB.dtype), reduction="batchmean")


def distillation_weight(epoch: int, max_epochs: float, *, lam: float, tau: float) -> float:
    """Weight tau^2 (t / T) lambda of Eq. 2 and 7 in epoch t = ``epoch`` of T = ``max_epochs``, counted from 0.

    The first epoch has weight 0, the last (T - 1) / T of the whole.
    """
    return tau**2 * epoch / max_epochs * lam


# ---- global manifold (Sec. 5.5) -------------------------------------------------------------------------------------

COLUMNS = 2048  # columns of the diffused matrix that are solved for together


@torch.no_grad()
def global_affinity(embeddings: Tensor, *, neighbours: int = 50, power: float = 1.0) -> Tensor:
    """Affinity matrix W of Eq. 12: cosines between mutual nearest neighbours, 0 elsewhere.

    Args:
        embeddings: [N, D] unit rows.
        neighbours: number of neighbours k, without the image itself. (The released code counts it as one of its k.)
        power: exponent of the cosines, after negative ones are set to 0: 1 in the paper, 3 in the released code.

    Returns:
        [N, N] sparse symmetric matrix (COO).
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
    """[n, k] nearest rows of each of the n ``rows``, without itself."""
    d_nN = z_ND[rows] @ z_ND.T
    d_nN[torch.arange(len(rows), device=rows.device), rows] = -torch.inf
    return d_nN.topk(k, dim=1).indices


@torch.no_grad()
def global_similarity(
    embeddings: Tensor, *, omega: float, neighbours: int = 50, power: float = 1.0, tolerance: float = 1e-6
) -> Tensor:
    """Similarities A of Eq. 5, diffused over the whole training set.

    The matrix I - omega S is symmetric, positive definite and sparse; it is solved by conjugate gradients for a block
    of columns at a time.

    Args:
        embeddings: [N, D] unit rows of the teacher.
        omega: probability of a step of the walk, in [0, 1).
        neighbours: number of nearest neighbours, see :func:`global_affinity`.
        power: exponent of the cosines, see :func:`global_affinity`.
        tolerance: norm of the residual relative to the right-hand side.

    Returns:
        [N, N] diffused similarities.
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
    for _ in range(len(s_NN)):  # in exact arithmetic N steps suffice
        if (square_n <= enough_n).all():
            break
        image_Nn = step_Nn - omega * torch.sparse.mm(s_NN, step_Nn)
        length_n = square_n / (step_Nn * image_Nn).sum(dim=0).clamp(min=torch.finfo(right_Nn.dtype).tiny)
        x_Nn += length_n * step_Nn
        rest_Nn -= length_n * image_Nn
        former_n, square_n = square_n, rest_Nn.square().sum(dim=0)
        step_Nn = rest_Nn + square_n / former_n.clamp(min=torch.finfo(right_Nn.dtype).tiny) * step_Nn
    return x_Nn
