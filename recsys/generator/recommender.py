"""`GenerativeRecommender`: a trained model, its trie and its search behind one call. Knows no users, no HTTP."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from recsys.data import Examples, IntArray, Sequences
from recsys.data.rows import Rows
from recsys.errors import ArtifactError, ConfigError, DataError
from recsys.files import write_json
from recsys.generator.any_order import AnyOrderModel
from recsys.generator.batches import history_batches
from recsys.generator.calibration import Calibration, fit_temperature
from recsys.generator.config import GeneratorConfig
from recsys.generator.consistency import Consistency
from recsys.generator.constraints import Constraints
from recsys.generator.depth import DepthDecoder, split_heads
from recsys.generator.flat import FlatModel
from recsys.generator.graphs import SearchGraphs
from recsys.generator.lists import SearchPlan, find_lists, shortages
from recsys.generator.lm.backbone import Backbone, load_backbone
from recsys.generator.lm.examples import Piece
from recsys.generator.lm.language import ItemLanguage
from recsys.generator.lm.user_rows import UserRows
from recsys.generator.loading import heads_of, make_room
from recsys.generator.mask_counts import frozen
from recsys.generator.nested import NestedModel
from recsys.generator.new_items import reserve_slots
from recsys.generator.placement import place
from recsys.generator.recommendations import Recommendations, Shortage
from recsys.generator.scoring import code_log_probs, forced_steps
from recsys.generator.sessions import Sessions
from recsys.generator.set_trie import SetTrie
from recsys.generator.slates import SampledSlates, draw_slates
from recsys.generator.tree_decoding import Prefix
from recsys.generator.trie import ItemTrie, codes_sha256
from recsys.tokenizer.user_histories import HistoryIndexer

GeneratorModel: TypeAlias = NestedModel | FlatModel | AnyOrderModel
"""A model of any shape: `beam_search` decodes it, `target_log_probs` trains it."""

_FORMAT = 2
_USERS, _TRIE, _MEANS = "users", "trie.safetensors", "residual_means.safetensors"
"""In a saved generator: what gives users their codes, where it has tokens of users; the tables of its trie; means of
the residuals of many items."""
_MEANS_FROM = 50_000
"""Items from which means are saved: all processes of a service have them in memory once, and none computes them."""
_PER_ITEM = frozenset({"learned", "item_residuals.weight"})


def build_model(
    config: GeneratorConfig,
    codes: IntArray,
    codebook_sizes: tuple[int, ...],
    item_vectors: npt.NDArray[np.float32] | None,
    backbone: Backbone | None = None,
    users: HistoryIndexer | None = None,
    trie: ItemTrie | None = None,
) -> GeneratorModel:
    """A model with random weights over the catalogue of `codes` (int64 [N, L], rows unique), whose `trie` is built when
    None.

    Where `config` names a language model, `backbone` is its body; read from its source when None. With `users`, over
    the same items, it has tokens of users, which stand before histories.

    Raises:
        ConfigError: `users` without a language model, or histories longer than the language model reads.
    """
    if config.model.lm is not None and backbone is None:
        backbone = load_backbone(config.model.lm)
    if users is not None and backbone is None:
        raise ConfigError("teach.tasks.user_tokens: only a language model reads them; set generator.model.lm")
    rows = UserRows(users, backbone) if users is not None and backbone is not None else None
    if config.model.shape == "any_order":
        return AnyOrderModel(config.model, SetTrie(codes, codebook_sizes), codes, item_vectors)
    trie = ItemTrie(codes, codebook_sizes) if trie is None else trie
    model: FlatModel | NestedModel
    if config.model.shape == "flat":
        model = FlatModel(config.model, trie, codes, backbone, rows)
    else:
        model = NestedModel(config.model, trie, codes, item_vectors, backbone, rows)
    _check_length(config, model)
    return model


def _check_length(config: GeneratorConfig, model: FlatModel | NestedModel) -> None:
    if not isinstance(model.body, Backbone):
        return
    backbone = model.body
    # The search adds a row a level at most.
    beginning = len(model.instruction.tokens) if model.users is None else model.users.num_rows
    rows = beginning + config.model.max_history * model.rows_per_item + model.trie.num_levels
    if rows > backbone.max_positions:
        raise ConfigError(
            f"generator.model.max_history={config.model.max_history} takes {rows} positions, the language model reads "
            f"{backbone.max_positions}; lower it"
        )


class GenerativeRecommender:
    """Generates ranked items for histories.

    Args:
        config: the generator's settings.
        codes: int64 [N, L], the items' semantic IDs; rows unique.
        codebook_sizes: number of codes on each level.
        item_vectors: float32 [N, V] content vectors, when the model takes them as input.
        model: trained weights over the same catalogue.
    """

    def __init__(
        self,
        config: GeneratorConfig,
        codes: IntArray,
        codebook_sizes: tuple[int, ...],
        item_vectors: npt.NDArray[np.float32] | None,
        model: GeneratorModel,
    ) -> None:
        self.config = config
        self._codes = Rows.of(codes)
        self.codebook_sizes = codebook_sizes
        self.item_vectors = item_vectors
        self.model = model.eval()
        self.sessions = Sessions(config.session_cache_mib << 20)
        """Histories that stay encoded, of requests that name their session."""
        self.graphs: SearchGraphs | None = None
        """What of the work a GPU does at one go; none unless `with_graphs` has made this."""

    @property
    def codes(self) -> IntArray:
        """int64 [N, L]: the items' semantic IDs; a copy where `with_items` has added some."""
        return self._codes.whole()

    @property
    def _backbone(self) -> Backbone | None:
        return self.model.body if isinstance(self.model.body, Backbone) else None

    @property
    def _users(self) -> UserRows | None:
        return self.model.users

    @property
    def trie(self) -> ItemTrie | SetTrie:
        """The catalogue that the search is confined to."""
        return self.model.trie

    def recommend(
        self,
        histories: Sequences,
        k: int,
        *,
        constraints: Constraints | None = None,
        beams: int | None = None,
        batch_size: int = 64,
        sessions: Sequence[str | None] | None = None,
        exact: bool = False,
        max_beams: int = 4096,
        temperature: float = 1.0,
        consistency: Consistency | None = None,
    ) -> Recommendations:
        """The `k` best items for each history (item indices, oldest first; may be empty).

        Args:
            histories: B histories; the most recent `max_history` items are read.
            k: length of each list.
            constraints: restrictions of the B requests.
            beams: width of the search; the configured one when None.
            batch_size: histories decoded at a time; changes memory, not results.
            sessions: a key for each history, under which it stays encoded: the same history, or one that goes on from
                it, is then not read again. None for a history of no session. Changes time and memory, not results.
            exact: search again, with up to `max_beams` beams, what is not certified to be the list that scoring every
                permitted item gives. `Recommendations.certified` says for which lists that sufficed.
            max_beams: see `exact`.
            temperature: of every step (see `calibration`); scores are those of the tempered model.
            consistency: give up paths whose codes point to unrelated categories.

        Raises:
            ValueError: k or beams below 1, a temperature that is not positive, an item index outside the catalogue, or
                `exact` together with `consistency`, which gives up items that exact lists have.
        """
        if exact and consistency is not None:
            raise ValueError("exact lists keep every path, consistency gives some up: ask for one of them")
        plan = self._plan(k, beams, max_beams if exact else None, temperature, consistency)
        return self._with_new_items(
            lambda held, widths: self._lists(
                self._prefixes(histories, batch_size, sessions), len(histories), held, widths
            ),
            self._checked(histories, constraints, sessions),
            plan,
        )

    @property
    def nested_up_to(self) -> int:
        """Lists of at most so many items are beginnings of one another, so that one search serves several lengths.

        Longer ones are searched with more beams, and places for new items stand at the end of a list of one length.
        """
        keeps_places = self.config.new_item_slots > 0 and not bool(self.model.learned.all())
        return 1 if keeps_places else self.config.beams

    def sample(
        self,
        histories: Sequences,
        k: int,
        *,
        seeds: IntArray,
        constraints: Constraints | None = None,
        batch_size: int = 64,
        sessions: Sequence[str | None] | None = None,
        max_beams: int = 4096,
        temperature: float = 1.0,
    ) -> SampledSlates:
        """A random slate for each history: k items without replacement from the model, with their propensities.

        The arguments that `recommend` has too are explained there. A request's slate follows from its history, its
        constraints and its seed alone.

        Args:
            histories: B histories.
            k: length of each slate.
            seeds: int64 [B].
            constraints: restrictions of the B requests, without caps.
            batch_size: histories decoded at a time.
            sessions: a key for each history.
            max_beams: how wide the search may become where constraints make it necessary.
            temperature: above 1 for more even slates, below for surer ones.

        Raises:
            ValueError: as `recommend`; or seeds that are not one a history, or caps.
        """
        if len(seeds) != len(histories):
            raise ValueError(f"seeds must hold one number a history: {len(histories)}, got {len(seeds)}")
        plan = self._plan(k, k, max_beams, temperature, None)
        constraints = self._checked(histories, constraints, sessions)
        items = np.full((len(histories), k), -1, dtype=np.int64)
        scores = np.full((len(histories), k), -np.inf, dtype=np.float32)
        log_propensities = np.zeros((len(histories), k), dtype=np.float64)
        exact = np.zeros(len(histories), dtype=bool)
        short: list[Shortage | None] = [None] * len(histories)
        for rows, prefix in self._prefixes(histories, batch_size, sessions):
            drawn = draw_slates(
                self.model, self.trie, prefix, constraints.select(rows), plan, torch.from_numpy(seeds[rows])
            )
            items[rows], scores[rows] = drawn.items, drawn.scores
            log_propensities[rows], exact[rows] = drawn.log_propensities, drawn.exact
            for row, reason in zip(rows.tolist(), drawn.short, strict=True):
                short[row] = reason
        return SampledSlates(items=items, scores=scores, log_propensities=log_propensities, exact=exact, short=short)

    def score(
        self,
        histories: Sequences,
        items: Sequence[IntArray],
        *,
        batch_size: int = 64,
        sessions: Sequence[str | None] | None = None,
    ) -> list[npt.NDArray[np.float32]]:
        """How likely given items are to come next: float32 of the length of each of `items`, log-probabilities.

        Over all items their exponentials sum to 1. The arguments and errors are those of `score_codes`.
        """
        return [row.sum(axis=1) for row in self.score_codes(histories, items, batch_size=batch_size, sessions=sessions)]

    def score_codes(
        self,
        histories: Sequences,
        items: Sequence[IntArray],
        *,
        batch_size: int = 64,
        sessions: Sequence[str | None] | None = None,
    ) -> list[npt.NDArray[np.float32]]:
        """How likely each code of given items is: float32 [M, L] for the M items of each of `items`, log-probabilities.

        Column l is that of the code on level l, given those that the model emits before it. Exact, whatever the beams:
        each item's path is followed.

        Args:
            histories: B histories, as in `recommend`.
            items: B arrays of item indices.
            batch_size: histories, and paths, at a time; changes memory, not results.
            sessions: a key for each history, as in `recommend`.

        Raises:
            ValueError: an item index outside the catalogue, or not one array a history.
        """
        self._checked(histories, None, sessions)
        if len(items) != len(histories):
            raise ValueError(f"items must hold one array a history: {len(histories)}, got {len(items)}")
        if any(len(row) and not 0 <= row.min() <= row.max() < self.trie.num_items for row in items):
            raise ValueError(f"items: item indices must lie in 0..{self.trie.num_items - 1}")
        scores = [np.zeros((0, self.trie.num_levels), dtype=np.float32)] * len(items)
        for rows, prefix in self._prefixes(histories, batch_size, sessions):
            sizes = [len(items[row]) for row in rows]
            device = prefix.hidden.device
            owners = torch.from_numpy(np.repeat(np.arange(len(rows)), sizes)).to(device)
            targets = torch.from_numpy(np.concatenate([items[row] for row in rows])).to(device)
            found = code_log_probs(self.model, self.trie, prefix, owners, targets, batch_size)
            for row, part in zip(rows.tolist(), torch.split(found.cpu(), sizes), strict=True):
                scores[row] = part.numpy()
        return scores

    @property
    def beams(self) -> int:
        """Width of the search where nobody says so."""
        return self.config.beams

    def with_beams(self, beams: int) -> GenerativeRecommender:
        """The same recommender with a search of another width; the two share all weights and sessions."""
        twin = copy.copy(self)
        twin.config = self.config.model_copy(update={"beams": beams})
        return twin

    def calibrate(self, cases: Examples, *, batch_size: int = 64) -> Calibration:
        """The temperature at which the true next items of `cases`, of validation, are the most likely."""
        self._checked(cases.histories, None, None)
        steps = [
            forced_steps(self.model, self.trie, self.model.state(prefix), torch.from_numpy(cases.targets[rows]))
            for rows, prefix in self._prefixes(cases.histories, batch_size, None)
        ]
        return fit_temperature(steps)

    def _plan(
        self, k: int, beams: int | None, max_beams: int | None, temperature: float, consistency: Consistency | None
    ) -> SearchPlan:
        beams = self.config.beams if beams is None else beams
        if k < 1 or beams < 1:
            raise ValueError(f"k and beams must be at least 1, got k={k}, beams={beams}")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be positive, got {temperature}")
        return SearchPlan(k=k, beams=beams, max_beams=max_beams, temperature=temperature, consistency=consistency)

    def _checked(
        self, histories: Sequences, constraints: Constraints | None, sessions: Sequence[str | None] | None
    ) -> Constraints:
        if len(histories.items) and not 0 <= histories.items.min() <= histories.items.max() < self.trie.num_items:
            raise ValueError(f"histories: item indices must lie in 0..{self.trie.num_items - 1}")
        if sessions is not None and len(sessions) != len(histories):
            raise ValueError(f"sessions must hold one key a history: {len(histories)}, got {len(sessions)}")
        return constraints if constraints is not None else Constraints()

    def _prefixes(
        self, histories: Sequences, batch_size: int, sessions: Sequence[str | None] | None
    ) -> Iterator[tuple[IntArray, Prefix]]:
        """Row numbers and encoded histories, batch by batch."""
        device = self.model.learned.device
        for rows, batch, lengths in history_batches(histories, self.config.model.max_history, batch_size):
            with torch.inference_mode():
                if sessions is None and self.graphs is not None:
                    prefix = self.graphs.encode(self.model, batch.to(device), lengths.to(device))
                elif sessions is None:
                    prefix = self.model.encode(batch.to(device), lengths.to(device))
                else:
                    if self.graphs is not None:
                        self.graphs.pass_over("encode: sessions")
                    recent = [row[:length] for row, length in zip(batch.numpy(), lengths.tolist(), strict=True)]
                    keys = [sessions[int(row)] for row in rows]
                    prefix = self.sessions.read(self.model, keys, recent)
            yield rows, prefix

    def complete(
        self,
        prompts: Sequence[Sequence[Piece]],
        k: int,
        *,
        constraints: Constraints | None = None,
        beams: int | None = None,
        reserve_new: bool = False,
    ) -> Recommendations:
        """The `k` best items after each prompt of text and items; needs a language model as the body.

        Args:
            prompts: B prompts in the wording that the model was taught with; none may be empty.
            k: length of each list.
            constraints: restrictions of the B requests.
            beams: width of the search; the configured one when None.
            reserve_new: keep the configured places for new items, as `recommend` does.

        Raises:
            ConfigError: the model knows no words.
        """
        plan = self._plan(k, beams, None, 1.0, None)
        prefix = ItemLanguage.of(self.model).read(prompts)
        constraints = constraints if constraints is not None else Constraints()

        def search(held: Constraints, widths: SearchPlan) -> Recommendations:
            return self._lists([(np.arange(len(prompts)), prefix)], len(prompts), held, widths)

        return self._with_new_items(search, constraints, plan) if reserve_new else search(constraints, plan)

    def search(
        self, queries: Sequence[str], k: int, *, constraints: Constraints | None = None, beams: int | None = None
    ) -> Recommendations:
        """The `k` best items for each wish or title in words; needs a language model that was taught to find items.

        Args:
            queries: B texts.
            k: length of each list.
            constraints: restrictions of the B requests.
            beams: width of the search; the configured one when None.

        Raises:
            ConfigError: the model knows no words.
        """
        templates = ItemLanguage.of(self.model).backbone.templates
        prompts = [templates.search_prompt(query) for query in queries]
        return self.complete(prompts, k, constraints=constraints, beams=beams)

    def _with_new_items(
        self,
        search: Callable[[Constraints, SearchPlan], Recommendations],
        constraints: Constraints,
        plan: SearchPlan,
    ) -> Recommendations:
        """The lists of `search`, with the configured slots for what joined after the fit."""
        found = search(constraints, plan)
        slots = min(self.config.new_item_slots, plan.k)
        if slots == 0 or self.model.learned.all():
            return found
        is_new, held = self._new_items, replace(constraints, allow=self._new_items)
        if constraints.allow is not None:
            # They are few. The mask of them all is the same for all requests.
            items = np.flatnonzero(is_new)
            rows = np.broadcast_to(constraints.allow[..., items], (len(found.items), len(items)))
            held = held.deny_also([items[~row] for row in rows])
        new = search(held, replace(plan, k=slots, beams=max(plan.beams, slots)))
        return reserve_slots(found, new, is_new, constraints.caps)

    @cached_property
    def _new_items(self) -> npt.NDArray[np.bool_]:
        """bool [N], not to be written to: what joined after the fit."""
        return frozen(~self.model.learned.cpu().numpy())

    def _lists(
        self, prefixes: Iterable[tuple[IntArray, Prefix]], count: int, constraints: Constraints, plan: SearchPlan
    ) -> Recommendations:
        """The lists of `count` requests, given as row numbers and encoded requests, batch by batch."""
        items = np.full((count, plan.k), -1, dtype=np.int64)
        scores = np.full((count, plan.k), -np.inf, dtype=np.float32)
        certified = np.zeros(count, dtype=bool)
        bound = np.full(count, -np.inf, dtype=np.float32)
        short: list[Shortage | None] = [None] * count
        for rows, prefix in prefixes:
            held = constraints.select(rows)
            found = find_lists(self.model, self.trie, prefix, held, plan, graphs=self.graphs)
            items[rows], scores[rows] = found.items.numpy(), found.scores.numpy()
            certified[rows], bound[rows] = found.certified.numpy(), found.bound.numpy()
            for row, reason in zip(rows.tolist(), shortages(found.items, held, self.trie.num_items), strict=True):
                short[row] = reason
        return Recommendations(items=items, scores=scores, certified=certified, bound=bound, short=short)

    def with_graphs(self) -> GenerativeRecommender:
        """The same recommender with CUDA graphs over the same weights, not to be trained any more; see `graphs`.

        Raises:
            ConfigError: the model is not on a GPU, or of a shape that has no graphs.
        """
        kind, device = "exported" if self._body_is_exported else self.config.model.shape, self.model.learned.device
        if isinstance(self.model, AnyOrderModel) or kind == "exported" or device.type != "cuda":
            raise ConfigError(f"graphs: need a nested or flat model of PyTorch on CUDA; this is {kind}, {device}")
        twin = copy.copy(self)
        twin.graphs = SearchGraphs(self.model)
        return twin

    def with_body(self, body: nn.Module) -> GenerativeRecommender:
        """The same recommender with another body, for example an exported one (`recsys.generator.onnx`).

        This one stays as it is; the two share all weights beside the body.
        """
        model = copy.copy(self.model)
        # A shallow copy shares the very table that names the modules, in which only the body is to differ.
        model._modules = {**self.model._modules, "body": body}
        return GenerativeRecommender(self.config, self.codes, self.codebook_sizes, self.item_vectors, model)

    # --- objectives ---------------------------------------------------------------------------------------------------

    @property
    def objectives(self) -> Mapping[str, float]:
        """How much each objective's head counts in the lists; empty for a model without heads of objectives."""
        heads = heads_of(self.model)
        return {} if heads is None else dict(zip(heads.names, heads.weights, strict=True))

    def with_objectives(
        self,
        names: Sequence[str],
        *,
        weights: Mapping[str, float] | None = None,
        noise: float = 1e-3,
        seed: int = 0,
    ) -> GenerativeRecommender:
        """A copy with a depth decoder an objective, to be tuned each on its own (MAH-DPO); this one stays as it is.

        Args:
            names: the objectives.
            weights: how much each counts when lists are made, see `depth.mixture`; None: all the same.
            noise: standard deviation of what tells the heads from each other at first.
            seed: of it.

        Raises:
            ConfigError: the model is not of the nested shape, or has heads already; or weights of other objectives.
        """
        model = self.model
        if not isinstance(model, NestedModel):
            raise ConfigError(
                f"objectives: a head an objective needs generator.model.shape nested, this is {self.config.model.shape}"
            )
        if not isinstance(model.depth, DepthDecoder):
            raise ConfigError(f"objectives: the model has heads already, for {', '.join(model.depth.names)}")
        twin = copy.deepcopy(model)
        twin.depth = split_heads(model.depth, names, weights, noise=noise, seed=seed)
        return GenerativeRecommender(self.config, self.codes, self.codebook_sizes, self.item_vectors, twin)

    def weighted(self, weights: Mapping[str, float]) -> GenerativeRecommender:
        """The same recommender whose objectives count otherwise; the two share all weights and sessions.

        Args:
            weights: by objective, of any sum; those left out do not count.

        Raises:
            ConfigError: the model has no such objective, a weight is negative, or none is above 0.
        """
        heads = heads_of(self.model)
        if heads is None or not isinstance(self.model, NestedModel):
            raise ConfigError("weights: this model has one objective; make a run with align.objectives")
        twin = copy.copy(self)
        twin.model = self.model.with_depth(heads.weighted(weights))
        return twin

    # --- artifacts ----------------------------------------------------------------------------------------------------

    def with_catalog(
        self,
        codes: IntArray,
        item_vectors: npt.NDArray[np.float32] | None,
        known: IntArray,
        *,
        shares_weights: bool = False,
    ) -> GenerativeRecommender:
        """The same weights over another catalogue, with no training; this recommender stays as it is.

        A new item is read and generated through its code and its vector alone.

        Args:
            codes: int64 [N', L], semantic IDs of the same tokenizer; rows unique.
            item_vectors: float32 [N', V] of the same encoder, when the model takes them as input or names users.
            known: int64 [N], where each item of this catalogue stands in the new one; -1 for one that is gone.
            shares_weights: the two have their weights in memory once, so that neither may be trained any more.

        Raises:
            ArtifactError: codes that the tokenizer cannot have made, or that repeat.
            DataError: `known` or `item_vectors` do not fit the catalogues.
        """
        kept_at = known[known >= 0]
        if known.shape != (len(self._codes),) or known.min() < -1 or known.max() >= len(codes):
            raise DataError(
                f"known must be [{len(self._codes)}], places in the new catalogue of {len(codes)} items or -1, found "
                f"{list(known.shape)} with values from {known.min()} to {known.max()}"
            )
        if len(np.unique(kept_at)) != len(kept_at):
            raise DataError(f"known sends {len(kept_at)} items to {len(np.unique(kept_at))} places; each needs its own")
        vectors = None
        if self.item_vectors is not None:
            shape = (len(codes), self.item_vectors.shape[1])
            if item_vectors is None or item_vectors.shape != shape:
                found = "none" if item_vectors is None else str(list(item_vectors.shape))
                raise DataError(f"item_vectors must be {list(shape)}, as this model reads them; found {found}")
            vectors = item_vectors
        if self._body_is_exported and self.config.model.lm is not None:
            raise ConfigError("an exported language model reads no new catalogue; change the catalogue, then export it")
        users = None
        if self._users is not None:
            if item_vectors is None:
                raise DataError("item_vectors must be given: this model makes the codes of users from them")
            users = self._users.indexer.with_items(item_vectors, known)
        model = build_model(self.config, codes, self.codebook_sizes, vectors, self._backbone, users)
        make_room(model, self.model.state_dict(), self.objectives)
        if self._body_is_exported:
            model.body = self.model.body
        state = dict(self.model.state_dict())
        kept = known >= 0
        for name, table in model.state_dict().items():
            if name in _PER_ITEM:
                state[name] = torch.zeros_like(table)
                state[name][known[kept]] = self.model.state_dict()[name][kept]
        model.load_state_dict(state, assign=shares_weights)
        return GenerativeRecommender(self.config, codes, self.codebook_sizes, vectors, model)

    def with_items(
        self, codes: Rows[np.int64], item_vectors: Rows, *, new_item_slots: int | None = None
    ) -> GenerativeRecommender:
        """`with_catalog` for further items behind those of a bundle: the same answers, and the cost of sorting them in.

        The two share their weights, so that neither may be trained any more, nor the result saved.

        Args:
            codes: [N', L], whose first block are those of this recommender.
            item_vectors: [N', V] of the same encoder, likewise.
            new_item_slots: places for new items; the configured ones when None.

        Raises:
            ArtifactError: codes that the tokenizer cannot have made, or that repeat.
        """
        model: GeneratorModel
        if self._body_is_exported and self.config.model.lm is not None:
            raise ConfigError("an exported language model reads no new catalogue; change the catalogue, then export it")
        if self._users is not None or isinstance(self.model, AnyOrderModel):
            known = np.arange(len(self._codes))
            twin = self.with_catalog(codes.whole(), item_vectors.whole(), known, shares_weights=True)
        else:
            if isinstance(self.model, FlatModel):
                model = self.model.with_items(codes.further)
            else:
                model = self.model.with_items(codes.further, item_vectors.further)
            if model.learned.device.type != "cpu":
                place(model, model.learned.device)
            # Not made anew, which would forget what searches have computed from the weights.
            twin = copy.copy(self)
            twin._codes, twin.model = codes, model
            twin.__dict__.pop("_new_items", None)
            twin.graphs = None if self.graphs is None else SearchGraphs(model)
            twin.sessions = Sessions(self.config.session_cache_mib << 20)
        if new_item_slots is not None:
            twin.config = self.config.model_copy(update={"new_item_slots": new_item_slots})
        return twin

    def save(self, directory: Path) -> None:
        """Write weights, trie and settings into an existing directory; codes and vectors are artifacts of their own.

        The adapters of a language model are merged into it for good.

        Raises:
            ValueError: the body is an exported one, which has no weights here.
        """
        if self._body_is_exported:
            raise ValueError("an exported body has no weights to save; save the recommender that it was exported from")
        if self._backbone is not None:
            self._backbone.merge_adapters()
            self._backbone.save_description(directory)
        save_file(dict(self.model.state_dict()), directory / "model.safetensors")
        if isinstance(self.trie, ItemTrie):
            self.trie.save(directory / _TRIE, self.codes)
        model = self.model
        (directory / _MEANS).unlink(missing_ok=True)
        if isinstance(model, NestedModel) and model.item_residuals is not None and len(self._codes) >= _MEANS_FROM:
            with torch.no_grad():
                means = {f"means.{level}": model.node_means(level).cpu() for level in range(self.trie.num_levels - 1)}
            save_file(means, directory / _MEANS)
        facts = {
            "format": _FORMAT,
            "config": self.config.model_dump(mode="json"),
            "codes_sha256": codes_sha256(self.codes),
            "codebook_sizes": list(self.codebook_sizes),
            "vector_dim": None if self.item_vectors is None else self.item_vectors.shape[1],
        }
        if self._users is not None:
            self._users.indexer.save(directory / _USERS)
            facts["user_tokens"] = True
        if self.objectives:
            facts["objectives"] = self.objectives
        write_json(directory / "generator.json", facts)

    @property
    def _body_is_exported(self) -> bool:
        return next(self.model.body.parameters(), None) is None

    @classmethod
    def load(
        cls,
        directory: Path,
        codes: IntArray,
        codebook_sizes: tuple[int, ...],
        item_vectors: npt.NDArray[np.float32] | None,
    ) -> GenerativeRecommender:
        """Read what `save` wrote, over the catalogue that it was trained on.

        Raises:
            ArtifactError: a file is missing, or the catalogue is not the one of the weights.
        """
        try:
            facts = json.loads((directory / "generator.json").read_text())
            if facts["format"] != _FORMAT:
                raise ArtifactError(
                    f"generator: {directory} has format {facts['format']}, this version reads {_FORMAT}"
                )
            weights = load_file(directory / "model.safetensors")
            # Earlier versions wrote none, nor does one for few items.
            means = load_file(path) if (path := directory / _MEANS).is_file() else {}
            expected = (facts["codes_sha256"], tuple(facts["codebook_sizes"]))
            takes_vectors = facts["vector_dim"] is not None
            names_users = facts.get("user_tokens", False)
            objectives = {str(name): float(weight) for name, weight in facts.get("objectives", {}).items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise ArtifactError(f"generator: cannot read {directory}: {error}") from error
        if expected != (codes_sha256(codes), tuple(codebook_sizes)):
            raise ArtifactError(
                f"generator: the weights in {directory} were trained with other semantic IDs; "
                "load them with the ones of the same run"
            )
        config = GeneratorConfig.model_validate(facts["config"])
        vectors = item_vectors if takes_vectors else None
        backbone = Backbone.from_description(directory) if config.model.lm is not None else None
        users = None
        if names_users:
            if item_vectors is None:
                raise ArtifactError(f"generator: {directory} makes the codes of users from item vectors; give them")
            users = HistoryIndexer.load(directory / _USERS, item_vectors)
        # Earlier versions wrote none.
        trie = ItemTrie.load(path, codes, codebook_sizes) if (path := directory / _TRIE).is_file() else None
        model = build_model(config, codes, codebook_sizes, vectors, backbone, users, trie)
        make_room(model, weights, objectives)
        try:
            # Assigned, not copied: they stay maps of the file, one in memory for all processes that load it.
            model.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise ArtifactError(f"generator: the weights in {directory} do not fit its config: {reason}") from error
        if isinstance(model, NestedModel) and means:
            shapes = {f"means.{level}": (len(nodes), model.width) for level, nodes in enumerate(model.trie.codes[:-1])}
            if {name: tuple(table.shape) for name, table in means.items()} != shapes:
                raise ArtifactError(f"generator: {directory / _MEANS} is of other weights; save the generator again")
            # In training it would forget them.
            model.eval().stored_means.update({level: means[name] for level, name in enumerate(shapes)})
        return cls(config, codes, codebook_sizes, vectors, model)
