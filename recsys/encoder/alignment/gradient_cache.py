"""Gradients of one loss over a large batch, with the memory of a small one (GradCache, arXiv 2101.06983).

A contrastive loss couples all rows of a batch, so that it cannot be summed up chunk by chunk. But its gradient can:
encode all chunks without a graph, differentiate the loss by the embeddings alone, then encode each chunk again, with a
graph, and send its share of that gradient through. The result equals that of the whole batch. Each chunk's two passes
start from the same random state, so that dropout drops the same units. Several processes share the chunks: each
encodes its own, and all take the loss of all embeddings. Knows neither texts nor the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from recsys.ranks import ALONE, Ranks

Chunk = TypeVar("Chunk")


def backward_in_chunks(
    chunks: Sequence[Chunk],
    encode: Callable[[Chunk], Tensor],
    loss_of: Callable[[Tensor], Tensor],
    ranks: Ranks = ALONE,
) -> Tensor:
    """Add the gradient of `loss_of(all embeddings)` to the encoder's weights; return the loss, a detached scalar.

    Args:
        chunks: what `encode` takes, in the order of the rows.
        encode: float [c, D] embeddings of a chunk; called twice unless it is the only one, and random only
            by torch's global generators.
        loss_of: scalar of float [sum of c, D]. Weights that it uses itself get their gradient, too, of a single
            process.
        ranks: the processes; each one's gradients are those of its own chunks, to be summed by the caller.
    """
    if len(chunks) == 1 and ranks.size == 1:  # one pass with a graph is the same and spares the other
        loss = loss_of(encode(chunks[0]))
        torch.autograd.backward(loss)
        return loss.detach()
    devices = list(range(torch.cuda.device_count()))
    own = chunks[ranks.part(len(chunks))]
    states, parts = [], []
    for chunk in own:
        states.append((torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in devices]))
        with torch.no_grad():
            parts.append(encode(chunk))
    everyones = ranks.interleaved(parts)
    embeddings = torch.cat(everyones).requires_grad_()
    loss = loss_of(embeddings)
    torch.autograd.backward(loss)
    assert embeddings.grad is not None
    gradients = torch.split(embeddings.grad, [len(part) for part in everyones])[ranks.part(len(chunks))]
    for chunk, (state, device_states), gradient in zip(own, states, gradients, strict=True):
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(state)
            for device, device_state in zip(devices, device_states, strict=True):
                torch.cuda.set_rng_state(device_state, device)
            torch.autograd.backward(encode(chunk), gradient)
    return loss.detach()
