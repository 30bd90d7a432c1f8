"""How well items suit what a user remembers, in numbers whose weighted sum is a utility. Knows no weights.

A block's cosine enters as itself and as powers of its positive part: one very near item of the history says more than
many that are somewhat near, which a linear utility cannot express.

Shapes: B users, S items, L decays, D columns of the vectors.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from recsys.data.sequences import IntArray
from recsys.simulator.behaviour.history import recent_mean, unit_blocks
from recsys.simulator.behaviour.vectors import ItemVectors

FloatArray = npt.NDArray[np.float32]

POWERS = (1, 2, 6)
"""Of the cosine; above 1, of its positive part."""


def affinities(
    vectors: ItemVectors, memories: FloatArray, recent: IntArray, items: IntArray | None
) -> Iterator[FloatArray]:
    """Yield float32 [B, S] by block, within it by decay, within that by power of `POWERS`; and at the end minus the
    cosine with the last choices of the session, averaged over the blocks: what satiation weighs.

    Args:
        vectors: of all items.
        memories: float32 [B, L, D].
        recent: int64 [B, 3], last choices of the session, -1 where there are none.
        items: int64 [B, S], -1 = anything; None for the whole catalogue.
    """
    widths = vectors.widths
    unit = unit_blocks(memories, widths)
    tired_of = unit_blocks(recent_mean(vectors.joined, recent), widths)
    tired: FloatArray | None = None
    begin = 0
    for block in vectors.blocks.values():
        end = begin + block.shape[1]
        options = None if items is None else block[items]

        def cosine(query: FloatArray, block: FloatArray = block, options: FloatArray | None = options) -> FloatArray:
            return query @ block.T if options is None else np.einsum("bd,bsd->bs", query, options)

        for decay in range(memories.shape[1]):
            plain = cosine(unit[:, decay, begin:end])
            yield plain
            square = np.square(np.maximum(plain, 0))
            yield square
            yield square * square * square
        own = cosine(tired_of[:, begin:end])
        tired = own if tired is None else tired + own
        begin = end
    assert tired is not None
    yield tired / np.float32(-len(widths))
