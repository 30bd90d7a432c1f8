"""LC-Rec's way to tell colliding items apart (arXiv 2311.09049, section 3.1 and the index generation of its code).

Here to be compared with, not to be used: within a group of a few items, uniform usage of all codes of the level spreads
each item over many codes, and the chosen one is nearly random. It cannot separate items with equal residuals either.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recsys.data import IntArray
from recsys.tokenizer.residual import DoubleArray, FloatArray, squared_distances, summed_codes

_ROUNDS = 20


def spread_groups(codes: IntArray, latents: DoubleArray, codebooks: Sequence[FloatArray]) -> IntArray:
    """int64 [n, L]: each group of items with the same codes gets the last codes of a Sinkhorn assignment of its own.

    Repeated up to 20 times for the groups that are left or have come about; rows may still repeat afterwards.
    """
    import torch  # here, because importing it takes seconds and the other strategies do without

    from recsys.tokenizer.sinkhorn import uniform_assignment

    codes = codes.copy()
    for _ in range(_ROUNDS):
        _, inverse, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
        order = np.argsort(inverse, kind="stable")
        ends = np.cumsum(counts)
        groups = np.flatnonzero(counts > 1)
        if len(groups) == 0:
            break
        for group in groups:
            rows = order[ends[group] - counts[group] : ends[group]]
            residual = latents[rows] - summed_codes(codes[rows, :-1], codebooks)
            plan = uniform_assignment(torch.from_numpy(squared_distances(residual, codebooks[-1])))
            codes[rows, -1] = plan.argmax(dim=1).numpy()
    return codes
