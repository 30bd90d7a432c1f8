"""The reasoning mode: a language model writes its reasons first, then the answer is decoded under the trie.

GREAM (arXiv 2510.20815) ranks the answers of several chains by the likelihood of the whole text, by which short chains
win. Here items are ranked by what they are worth over the chains: p(item) = mean over chains c of p(item | history, c),
one normalised probability an item. At temperature 1 and top_p 1 that estimates the model's own marginal without bias.

Shapes: B requests, C chains a request, N = B * C, V words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from recsys.config import StrictConfig
from recsys.data.sequences import IntArray, Sequences
from recsys.generator import caches
from recsys.generator.constraints import Constraints
from recsys.generator.diversity import walk_one
from recsys.generator.lists import shortages
from recsys.generator.lm.backbone import Backbone
from recsys.generator.lm.examples import Items, Piece
from recsys.generator.lm.language import ItemLanguage
from recsys.generator.lm.templates import NO_HISTORY, render
from recsys.generator.recommendations import Recommendations
from recsys.generator.recommender import GenerativeRecommender
from recsys.generator.spliced import entries
from recsys.generator.tree_decoding import Prefix


class ReasonConfig(StrictConfig):
    """How chains are sampled."""

    chains: int = Field(default=4, ge=1)
    """Chains a request."""
    max_tokens: int = Field(default=160, ge=1)
    """Tokens of a chain; a chain that has not ended by then is ended."""
    temperature: float = Field(default=0.7, gt=0)
    """Below 1 chains are more alike."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Words are drawn from the most probable ones that together have this probability."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reasoned:
    """Answers with the reasons that led to them."""

    recommendations: Recommendations
    """Scores are log-probabilities, marginalised over the chains."""
    chains: list[list[str]]
    """The C texts of each request."""


def recommend_with_reasons(
    recommender: GenerativeRecommender,
    histories: Sequences,
    k: int,
    config: ReasonConfig,
    *,
    seed: int = 0,
    constraints: Constraints | None = None,
    beams: int | None = None,
) -> Reasoned:
    """The `k` best items for each history by their probability over sampled chains.

    The candidates are the best items after each chain; every candidate is then scored after every chain. Caps hold for
    the candidates of each chain, and for the list, which is the walk over all candidates (`diversity`).

    Args:
        recommender: with a language model that was taught to reason.
        histories: B histories.
        k: length of the lists.
        config: how chains are sampled.
        seed: of the sampling; a request's chains depend on its place among the B.
        constraints: restrictions of the B requests.
        beams: width of the searches.

    Raises:
        ConfigError: the model knows no words.
        ValueError: no histories, or prompts longer than the model reads.
    """
    language = ItemLanguage.of(recommender.model)
    wording = language.backbone.templates.reasoning
    constraints = constraints if constraints is not None else Constraints()
    prompts = [
        reasoning_prompt(language, wording.train[0], history, recommender.config.model.max_history)
        for history in histories
    ]
    rows = np.repeat(np.arange(len(histories)), config.chains)
    chains = write(language, [prompts[row] for row in rows], wording.end, config, seed=seed)
    finished = [
        (*prompts[row], chain, wording.end, *wording.lead(None)) for row, chain in zip(rows, chains, strict=True)
    ]
    found = recommender.complete(finished, k, constraints=constraints.select(rows), beams=beams)
    # Everything that any chain of the request proposes is scored after each of its chains.
    num_items = recommender.trie.num_items
    proposed = np.zeros((len(histories), num_items), dtype=bool)
    request, place = np.nonzero(found.items >= 0)
    proposed[rows[request], found.items[request, place]] = True
    widest = max(1, int(proposed.sum(axis=1).max(initial=1)))
    scored = recommender.complete(finished, widest, constraints=Constraints(allow=proposed[rows]), beams=widest)
    total = np.full((len(histories), num_items), -np.inf)
    request, place = np.nonzero(scored.items >= 0)
    np.logaddexp.at(total, (rows[request], scored.items[request, place]), scored.scores[request, place])
    marginal = (total - np.log(config.chains)).astype(np.float32)
    return Reasoned(
        recommendations=_ranked(marginal, entries(recommender.trie.positions).cpu().numpy(), k, constraints),
        chains=[chains[begin : begin + config.chains] for begin in range(0, len(chains), config.chains)],
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Draws:
    """Texts as they were drawn, word by word; T of the longest."""

    tokens: Tensor
    """int64 [N, T]: what was drawn, with the words that end a text; the model's end of text behind them."""
    counts: Tensor
    """int64 [N]: how many draws each text took."""
    log_probs: Tensor
    """float32 [N, T]: of each draw, over the words that it could have been; 0 behind the last."""
    ended: Tensor
    """bool [N]: the text came to the words that end it."""


def write(
    language: ItemLanguage, prompts: Sequence[Sequence[Piece]], end: str, config: ReasonConfig, *, seed: int
) -> list[str]:
    """A sampled text after each prompt, up to `end`, which is left out; see `draw`."""
    return texts_of(language, draw(language, prompts, end, config, seed=seed), end)


@torch.inference_mode()
def draw(
    language: ItemLanguage, prompts: Sequence[Sequence[Piece]], end: str, config: ReasonConfig, *, seed: int
) -> Draws:
    """A sampled text after each prompt, up to `end`.

    Args:
        language: writes.
        prompts: N prompts, none empty.
        end: the words that end a text; a text also ends with the model's own end of text.
        config: how words are drawn and how many at most.
        seed: of the draws.
    """
    return draw_after(language.backbone, language.read(prompts), end, config, seed=seed)


@torch.inference_mode()
def draw_after(backbone: Backbone, prefix: Prefix, end: str, config: ReasonConfig, *, seed: int) -> Draws:
    """A sampled text after each of the N sequences of `prefix`, which stays as it is; see `draw`."""
    device = prefix.hidden.device
    generator = torch.Generator(device=device).manual_seed(seed)
    stop = torch.tensor(backbone.text_tokens(end), device=device)
    cache, lengths = caches.fork(prefix.cache), prefix.lengths
    size = cache.get_seq_length()
    visible = torch.arange(size, device=device) < lengths.unsqueeze(1)
    hidden = prefix.hidden
    written = torch.zeros((len(lengths), 0), dtype=torch.int64, device=device)
    log_probs = torch.zeros((len(lengths), 0), device=device)
    counts = torch.zeros(len(lengths), dtype=torch.int64, device=device)
    done = torch.zeros(len(lengths), dtype=torch.bool, device=device)
    ended = done
    for step in range(config.max_tokens):
        tokens, probable = _draw(backbone.text_logits(hidden).float(), config, generator)
        # What is written after the end is not read back.
        written = torch.cat([written, tokens.masked_fill(done, backbone.end_of_text).unsqueeze(1)], dim=1)
        log_probs = torch.cat([log_probs, probable.masked_fill(done, 0.0).unsqueeze(1)], dim=1)
        counts = counts + ~done
        if step + 1 >= len(stop):
            ended = ended | (~done & (written[:, -len(stop) :] == stop).all(dim=1))
        done = done | ended | (tokens == backbone.end_of_text)
        if bool(done.all()):
            break
        visible = torch.nn.functional.pad(visible, (0, 1), value=True)
        hidden = backbone.extend(
            backbone.text_embeddings(tokens).unsqueeze(1),
            cache,
            positions=(lengths + step).unsqueeze(1),
            visible=visible.unsqueeze(1),
        )[:, 0]
    return Draws(tokens=written, counts=counts, log_probs=log_probs, ended=ended)


def bodies(language: ItemLanguage, draws: Draws, end: str) -> list[list[int]]:
    """The tokens of each text, without what ended it."""
    stop = len(language.backbone.text_tokens(end))
    rows = zip(draws.tokens.tolist(), draws.counts.tolist(), draws.ended.tolist(), strict=True)
    texts = [row[: count - stop] if ended else row[:count] for row, count, ended in rows]
    return [text[:-1] if text[-1:] == [language.backbone.end_of_text] else text for text in texts]


def texts_of(language: ItemLanguage, draws: Draws, end: str) -> list[str]:
    """The N texts, without what ended them."""
    return [language.backbone.text(tokens) for tokens in bodies(language, draws, end)]


def _draw(logits: Tensor, config: ReasonConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """int64 [N] from logits float32 [N, V], and their log-probabilities: nucleus sampling (arXiv 1904.09751)."""
    probabilities, order = (logits / config.temperature).softmax(-1).sort(dim=-1, descending=True)
    # The word that reaches top_p is still in: what counts is the sum before it.
    probabilities = probabilities.masked_fill(probabilities.cumsum(-1) - probabilities >= config.top_p, 0.0)
    places = torch.multinomial(probabilities, 1, generator=generator)
    drawn = (probabilities.gather(1, places) / probabilities.sum(-1, keepdim=True)).log()
    return order.gather(1, places).squeeze(1), drawn.squeeze(1)


def reasoning_prompt(language: ItemLanguage, template: str, history: IntArray, max_history: int) -> tuple[Piece, ...]:
    """What the model is asked for the next item of a history, of which the most recent items are read."""
    recent = history[-max_history:]
    items = Items(tuple(recent.tolist())) if len(recent) else NO_HISTORY
    return language.of_user(render(template, {"history": items}), recent)


def _ranked(scores: np.ndarray, positions: np.ndarray, k: int, constraints: Constraints) -> Recommendations:
    """Lists of k from log-probabilities [B, N]; equal ones by semantic ID."""
    order = np.lexsort((np.broadcast_to(positions, scores.shape), -scores), axis=1)
    if constraints.caps:
        for row, (ranked, known) in enumerate(zip(order, np.isfinite(scores), strict=True)):
            listed = walk_one(ranked[known[ranked]], constraints.caps, k)
            # What is not listed goes to the end, and counts for nothing.
            scores[row, np.setdiff1d(ranked, listed)] = -np.inf
            order[row] = np.concatenate([listed, ranked[~np.isin(ranked, listed)]])
    order = order[:, :k]
    best = np.take_along_axis(scores, order, axis=1)
    items = np.where(np.isneginf(best), -1, order).astype(np.int64)
    missing = ((0, 0), (0, k - order.shape[1]))
    items = np.pad(items, missing, constant_values=-1)
    short = shortages(torch.from_numpy(items), constraints, scores.shape[1])
    return Recommendations(items=items, scores=np.pad(best, missing, constant_values=-np.inf), short=short)
