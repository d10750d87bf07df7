"""Weights rounded one input after the other, the later ones making up for the earlier.

Rounding to the nearest code treats every weight alone. What counts is the product with what comes
in: an error at one input is taken back, as far as the inputs go together, by the weights that are
not rounded yet (GPTQ, Frantar et al. 2022, algorithm 1 with `act_order`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from segagent_rt_export.graphs.integer_product import MOST
from segagent_rt_export.sources.weights import Blocks, Weight

ZERO = MOST + 1
"""The code of zero."""

DAMPING = 0.01
"""Added to every input's moment, as a share of their mean, so that none is zero."""


def gptq_round(weight: Weight, moments: npt.NDArray[np.float64]) -> Blocks:
    """Integers of 7 bits for [N, K], one scale per output.

    `moments` [K, K] is the sum of x x^T over the inputs x that were seen.
    """
    order = np.argsort(-np.diag(moments), kind="stable")
    left = weight[:, order].astype(np.float64)
    scale = np.maximum(np.abs(left).max(1), 1e-12) / MOST
    codes = np.empty_like(left)
    together = _taken_back(moments[np.ix_(order, order)])
    for at in range(left.shape[1]):
        codes[:, at] = np.clip(np.rint(left[:, at] / scale), -MOST, MOST)
        error = (left[:, at] - codes[:, at] * scale) / together[at, at]
        left[:, at + 1 :] -= np.outer(error, together[at, at + 1 :])
    unsorted = np.empty(weight.shape, np.uint8)
    unsorted[:, order] = codes + ZERO
    zeros = np.full((len(weight), 1), ZERO, np.uint8)
    return Blocks(7, unsorted, zeros, scale.astype(np.float32)[:, None])


def _taken_back(moments: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Upper triangle whose row k says how an error at input k is shared out among those behind."""
    damped = moments + np.eye(len(moments)) * DAMPING * max(float(np.diag(moments).mean()), 1e-12)
    return np.linalg.cholesky(np.linalg.inv(damped)).T
