"""Which candidates demonstrate a question: the orders in which three methods of the literature would take them.

Pure functions over what is known of M candidates; the first k of an order are the k shots of its method.

Shape suffixes: M candidates, P parts of the question, F numbers of a vector.
"""

from __future__ import annotations

import numpy as np

from influray.selectors.api import select

METHODS = ("influence", "coverage", "dpp")
EXHAUSTED = 1e-10  # of its own: what is left of a candidate that those chosen span


def by_influence(influence_M: np.ndarray) -> np.ndarray:
    """Return the candidates by falling influence on the question, ties to the lower place, int64 [M].

    Source: InfICL, arXiv 2402.11750, which takes the training examples of most influence as demonstrations. There
    influence is that on the loss of a linear head over the validation set, the same for every question, and each class
    has as many shots; here it is the run's own, on the question or on the targets of its task.
    """
    return np.argsort(-influence_M, kind="stable")


def by_coverage(part_MP: np.ndarray) -> np.ndarray:
    """Return the candidates in the order of greedy steps up f(S) = sum over parts of max(0, max over S), int64 [M].

    `part_MP[m, p]` is what candidate m does for part p of the question: its influence on a token of the answer, whose
    sum over parts is that on the whole, or on one of several targets that stand for the question. Where nothing adds
    any more, covering begins anew with those that are left.

    Source: Set-BSR, arXiv 2305.14907, whose f is this over the tokens of the question, what a candidate does for one
    being the largest cosine of contextual embeddings with any of its own tokens. A datastore has one vector a row and
    none of tokens, and gradients belong to the answer: parts are pieces of the answer, and a candidate is taken whole.
    """
    parts = part_MP.shape[1]
    if not part_MP.any():
        return np.arange(len(part_MP))
    return select(part_MP, ["part"] * parts, len(part_MP), method="facility_location", normaliser="none").rows


def by_dpp(relevance_M: np.ndarray, vector_MF: np.ndarray, diversity: float) -> np.ndarray:
    """Return the candidates in the order of greedy MAP of a DPP, int64 [M], ties to the lower place.

    The kernel is q_i S_ij q_j with S = (1 + cosine) / 2 and q = exp(relevance / (2 diversity)): a set is as likely as
    the determinant of its part of the kernel, which relevance raises and likeness lowers. Each step takes the candidate
    by which the determinant grows most; those that add nothing come last, by falling relevance. Incremental Cholesky:
    O(k^2 M) for the first k.

    Source: CEIL, arXiv 2302.05698 (S and q as in its code); its retriever is trained, the relevance here
    is given. Algorithm 1 of Chen, Zhang and Zhou, arXiv 1709.05135.
    """
    norm_M1 = np.linalg.norm(vector_MF.astype(np.float64), axis=1, keepdims=True)
    unit_MF = vector_MF / np.where(norm_M1 > 0, norm_M1, 1)
    relevance_M = relevance_M - relevance_M.max(initial=-np.inf)  # a common factor of q changes no order
    quality_M = np.exp(relevance_M / (2 * diversity))
    kernel_MM = quality_M[:, None] * (unit_MF @ unit_MF.T + 1) / 2 * quality_M
    left_M = kernel_MM.diagonal().copy()  # what the determinant grows by, as a factor
    least_M = EXHAUSTED * left_M
    factor_RM = np.zeros((0, len(left_M)))
    order: list[int] = []
    while (left_M > least_M).any():
        best = int(np.where(left_M > least_M, left_M, -np.inf).argmax())
        line_M = (kernel_MM[best] - factor_RM[:, best] @ factor_RM) / np.sqrt(left_M[best])
        factor_RM = np.vstack([factor_RM, line_M])
        left_M = left_M - line_M**2
        order.append(best)
        left_M[order] = -np.inf
    rest = [m for m in by_influence(relevance_M).tolist() if m not in set(order)]
    return np.array([*order, *rest], np.int64)
