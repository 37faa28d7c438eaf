"""How much the members of an ensemble differ.

- pairwise disagreement: share of rows where the argmax of two members differs, mean over unordered pairs
  (Fort et al. 2019, arXiv 1912.02757, §4);
- pairwise KL: Σ_c p_i log(p_i / p_j) in nats, mean over rows and ordered pairs i ≠ j;
- oracle accuracy: share of rows that at least one member gets right, the bound of any choice among members.

Shapes: member-first (M, N, C) of any real dtype, labels (N,). Work goes through blocks of rows, in float64.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quorate.metrics._checks import check_labels, check_members, finite_blocks, prob_blocks


def pairwise_disagreement(probs: ArrayLike) -> float:
    """Share of rows on which two members vote for different classes, mean over pairs; 0 = all agree.

    Only the argmax counts (the lowest class among equals), so (M, N, C) logits do as well as probabilities.

    Raises:
        ValueError: not (M, N, C), fewer than two members, NaN or infinite entries.
    """
    outputs = check_members("probs", probs, least=2)
    members, count, _ = outputs.shape
    votes = np.empty((members, count), dtype=np.intp)
    for rows, block in finite_blocks("probs", outputs):
        votes[:, rows] = block.argmax(axis=-1)
    apart = [int(np.count_nonzero(one != other)) for one, other in combinations(votes, 2)]
    return float(sum(apart) / (len(apart) * count))


def pairwise_kl(probs: ArrayLike) -> float:
    """Mean KL(p_i ‖ p_j) in nats over rows and ordered pairs of members; 0 log 0 = 0.

    Exactly ``inf`` when a class has probability 0 for one member and not for another.

    Raises:
        ValueError: not (M, N, C), fewer than two members, rows that are not probabilities summing to 1 within 1e-3.
    """
    outputs = check_members("probs", probs, least=2)
    members, count, _ = outputs.shape
    total = 0.0
    for _, block in prob_blocks("probs", outputs):
        zero = block == 0
        if (zero.any(axis=0) & ~zero.all(axis=0)).any():
            total = np.inf  # the blocks that follow are still checked
            continue
        logs = np.log(np.where(zero, 1.0, block))
        total += members * _covariance(block, logs)
    return float(total / (members * (members - 1) * count))


def oracle_accuracy(probs: ArrayLike, labels: ArrayLike) -> float:
    """Share of rows that at least one member classifies rightly; (M, N, C) logits do as well, M = 1 is its accuracy.

    Raises:
        ValueError: not (M, N, C), NaN or infinite entries, labels outside 0 … C−1.
    """
    outputs = check_members("probs", probs, least=1)
    truth = check_labels(labels, *outputs.shape[1:])
    right = 0
    for rows, block in finite_blocks("probs", outputs):
        right += int(np.count_nonzero((block.argmax(axis=-1) == truth[rows]).any(axis=0)))
    return right / truth.size


def _covariance(probs: NDArray[np.float64], logs: NDArray[np.float64]) -> float:
    """Σ_i (p_i − p̄)(l_i − l̄) over members, rows and classes of (M, n, C).

    M times it is Σ_{i<j} (p_i − p_j)(l_i − l_j), the sum of KL over ordered pairs, in O(M) and without cancelling.
    Taking off member 0 first makes it exactly 0 for equal members.
    """
    probs, logs = probs - probs[0], logs - logs[0]
    probs -= probs.mean(axis=0)
    logs -= logs.mean(axis=0)
    return max(0.0, float(np.vdot(probs, logs)))
