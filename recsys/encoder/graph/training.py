"""The training loop of all graph encoders. Knows no method and no artifact."""

from __future__ import annotations

import copy

import numpy as np
import torch
from scipy import sparse

from recsys.data import Examples, IntArray, Sequences
from recsys.encoder.collaborative import unit_rows
from recsys.encoder.graph.config import GraphTrainingConfig
from recsys.encoder.graph.model import GraphModel, to_array
from recsys.encoder.graph.propagation import interaction_matrix
from recsys.encoder.graph.sampling import batches, keep_back_last
from recsys.errors import ConfigError
from recsys.progress import console, progress_bar

_RECALL_AT = 20
_BLOCK_CASES = 1024


def train_model(model: GraphModel, train: Sequences, num_items: int, config: GraphTrainingConfig) -> None:
    """Fit `model` to TRAINING sequences, then let it propagate on all of them.

    Some of them are kept back meanwhile: the parameters kept are those of the best Recall@20 on these. With too few
    interactions to keep any back, training takes all its steps. Draws from torch's global generator, which the caller
    seeds.

    Raises:
        ConfigError: the loss became NaN or infinite.
    """
    random = np.random.default_rng(config.seed)
    fitted, cases = keep_back_last(train, config.stop_share, random)
    interactions, users = interaction_matrix(fitted, num_items)
    model.set_interactions(interactions)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, weight_decay=model.adam_decay)

    step, best, best_step, best_state = 0, -1.0, 0, None
    with progress_bar(f"graph encoder: {type(model).__name__} steps", config.steps) as advance:
        for step, batch in zip(
            range(1, config.steps + 1), batches(interactions, config.batch_size, random), strict=False
        ):
            loss = model.loss(batch)
            if not torch.isfinite(loss):
                raise ConfigError(f"graph encoder: the loss is {loss.item()} at step {step}; lower learning_rate")
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            if len(cases) > 0 and (step % config.evaluate_every == 0 or step == config.steps):
                recall = _recall(model, cases, interactions, users, normalise=config.normalise)
                if recall > best:
                    best, best_step, best_state = recall, step, copy.deepcopy(model.state_dict())
                if step - best_step >= config.patience * config.evaluate_every:
                    break
            advance(1, f"loss {loss.item():.4f}" + (f", Recall@20 {best:.4f}" if best >= 0 else ""))
    if best_state is not None:
        model.load_state_dict(best_state)
        console.print(
            f"graph encoder: best of {step} steps was {best_step} with Recall@20 {best:.4f} on {len(cases)} training "
            "interactions kept back",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    model.set_interactions(interaction_matrix(train, num_items)[0])


def _recall(
    model: GraphModel, cases: Examples, interactions: sparse.csr_array, users: IntArray, *, normalise: bool
) -> float:
    """Share of the cases whose target is among the first 20 of all items that the user did not have before."""
    with torch.no_grad():
        user_table, item_table = (to_array(table) for table in model.representations())
    if not (np.isfinite(user_table).all() and np.isfinite(item_table).all()):
        raise ConfigError("graph encoder: vectors are no longer finite; lower learning_rate")
    if normalise:
        user_table, item_table = unit_rows(user_table), unit_rows(item_table)
    hits = 0
    for start in range(0, len(cases), _BLOCK_CASES):
        part = np.arange(start, min(start + _BLOCK_CASES, len(cases)))
        rows = np.searchsorted(users, cases.histories.users[part])
        scores = user_table[rows] @ item_table.T
        seen = interactions[rows].tocoo()
        scores[seen.row, seen.col] = -np.inf
        targets = scores[np.arange(len(part)), cases.targets[part]]
        hits += int(((scores >= targets[:, None]).sum(axis=1) <= _RECALL_AT).sum())
    return hits / len(cases)
