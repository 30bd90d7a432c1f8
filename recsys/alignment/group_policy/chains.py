"""A language model that reasons as a policy: chains by the product's own sampler, answers by its own decoder.

A rollout is a prompt, the words of a chain, the words that lead to the answer, and items under the trie. The words that
were drawn are what is read, token by token: a text that is tokenised again may have other tokens.

Shapes: B histories, C chains each, N = B * C, T words of the longest chain, S rows, A answers a chain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recsys.alignment.candidates import log_probs_from
from recsys.alignment.group_policy.config import ChainsConfig
from recsys.alignment.group_policy.policy import Policy, Sampled, sample_weights
from recsys.alignment.rollouts import Rollouts
from recsys.data import IntArray, Sequences
from recsys.errors import ConfigError
from recsys.generator.constraints import Constraints
from recsys.generator.decoder import beam_search
from recsys.generator.gumbel import GumbelNoise
from recsys.generator.lm.language import ItemLanguage
from recsys.generator.lm.reason import ReasonConfig, bodies, draw, reasoning_prompt
from recsys.generator.lm.reasoning import Chain
from recsys.generator.lm.rows import Written, rectangle
from recsys.generator.recommender import GeneratorModel
from recsys.generator.tree_decoding import Prefix, read


@dataclass(frozen=True, kw_only=True, eq=False)
class Chains:
    """Chains of reasons, with all that stands before their answers."""

    rows: Tensor
    """int64 [2, N, S]: tokens and items (see `rows.Written`) of prompt, chain and lead; -1 is padding."""
    lengths: Tensor
    """int64 [N]: rows of each."""
    begins: Tensor
    """int64 [N]: rows of each prompt, at least 1."""
    words: Tensor
    """int64 [N, T]: what was drawn, with what ended the chain; anything behind `counts`."""
    counts: Tensor
    """int64 [N]: how many were drawn."""
    log_probs: Tensor
    """float32 [N, T]: of each when it was drawn; 0 where there is none."""
    ended: Tensor
    """bool [N]: the chain ended by itself; the others were ended."""
    well_formed: Tensor
    """bool [N]: it did, and has the form of the reasons that were taught."""

    @property
    def is_word(self) -> Tensor:
        """bool [N, T]."""
        return torch.arange(self.words.shape[1], device=self.words.device) < self.counts.unsqueeze(1)

    def first(self, count: int) -> Chains:
        """The first `count` chains."""
        tables = {name: table[:count] for name, table in vars(self).items() if name != "rows"}
        return Chains(rows=self.rows[:, :count], **tables)


@dataclass(frozen=True, kw_only=True, eq=False)
class SampledChains(Sampled):
    """`Sampled` with a row a chain: those of one history stand together."""

    chains: Chains
    prompts: Sequences
    """The B histories."""

    def first(self, count: int) -> SampledChains:
        """The first `count` chains."""
        return SampledChains(
            rollouts=self.rollouts.first(count),
            weights=self.weights[:count],
            chains=self.chains.first(count),
            prompts=self.prompts,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ChainLikelihoods:
    """Log-probabilities of some of the chains, n of the N; with gradients where they are enabled."""

    numbers: Tensor
    """int64 [n]: which ones."""
    words: Tensor
    """float32 [n, T]; 0 where there is no word."""
    answers: Tensor
    """float32 [n, A]; 0 where there is no answer."""


class ChainPolicy:
    """A generator that is asked for reasons and then for items; see the module.

    Args:
        model: with a language model as its body.
        config: how many, and how chains are drawn.

    Raises:
        ConfigError: the model knows no words, or reads too little for a history with a chain.
    """

    def __init__(self, model: GeneratorModel, config: ChainsConfig) -> None:
        self.direct = Policy(model)
        self.model = self.direct.model
        self.config = config
        self.language = ItemLanguage.of(model)
        self._wording = self.language.backbone.templates.reasoning
        backbone = self.language.backbone
        self._end = backbone.text_tokens(self._wording.end)
        lead = self._wording.lead(None)
        assert all(isinstance(piece, str) for piece in lead), "without a rewritten history it is words"
        self._lead = [token for piece in lead if isinstance(piece, str) for token in backbone.text_tokens(piece)]
        longest = self.model.config.max_history
        prompt = reasoning_prompt(self.language, self._wording.train[0], np.zeros(longest, dtype=np.int64), longest)
        rows = self.language.writer(backbone.max_positions).read(prompt).shape[1]
        need = rows + config.max_tokens + len(self._end) + len(self._lead) + self.model.rows_per_item
        if need > backbone.max_positions:
            raise ConfigError(
                f"align.group_policy.reasoning.max_tokens={config.max_tokens} with generator.model.max_history="
                f"{longest} needs {need} rows, and the language model reads {backbone.max_positions}; lower one of them"
            )

    def propose(
        self,
        histories: Sequences,
        *,
        futures: Tensor,
        mask_seen: bool,
        random: np.random.Generator,
        stochastic: bool = False,
    ) -> SampledChains:
        """Chains for each history, and answers after each chain.

        Args:
            histories: B histories.
            futures: int64 [B, N'], see `Rollouts`.
            mask_seen: leave out the items of each history.
            random: of the words, and of sampled answers.
            stochastic: answers are a sample without replacement, as in `Policy.propose`; the best ones otherwise.
        """
        self.model.eval()
        config, numbers = self.config, np.repeat(np.arange(len(histories)), self.config.chains)
        longest = self.model.config.max_history
        asked = [reasoning_prompt(self.language, self._wording.train[0], history, longest) for history in histories]
        how = ReasonConfig(
            chains=config.chains, max_tokens=config.max_tokens, temperature=config.temperature, top_p=1.0
        )
        prompts = [asked[number] for number in numbers]
        drawn = draw(self.language, prompts, self._wording.end, how, seed=int(random.integers(2**62)))
        seeds = random.integers(2**62, size=len(numbers)) if stochastic else None
        texts = bodies(self.language, drawn, self._wording.end)
        writer = self.language.writer(self.language.backbone.max_positions)
        begun = [writer.read(prompt) for prompt in asked]
        whole = [
            np.concatenate([begun[number], _words([*text, *self._end, *self._lead])], axis=1)
            for number, text in zip(numbers, texts, strict=True)
        ]
        device = self.language.device
        lengths = np.array([rows.shape[1] for rows in whole])
        padded = np.full((2, len(whole), lengths.max()), -1, dtype=np.int64)
        for row, values in enumerate(whole):
            padded[:, row, : values.shape[1]] = values
        written = [self.language.backbone.text(text) for text in texts]
        formed = [Chain.read(text, self._wording.steps) is not None for text in written]
        chains = Chains(
            rows=torch.from_numpy(padded).to(device),
            lengths=torch.from_numpy(lengths).to(device),
            begins=torch.tensor([begun[number].shape[1] for number in numbers], device=device),
            words=drawn.tokens.clone(),
            counts=drawn.counts.clone(),
            log_probs=drawn.log_probs.clone(),
            ended=drawn.ended.clone(),
            well_formed=drawn.ended.clone() & torch.tensor(formed, device=device),
        )
        repeated = histories.select(numbers)
        items, scores, weights = self._answers(chains, repeated if mask_seen else None, seeds)
        return SampledChains(
            rollouts=Rollouts(
                histories=repeated,
                futures=futures.to(device)[torch.from_numpy(numbers).to(device)],
                items=items,
                scores=scores,
                texts=[[text] * config.answers for text in written],
            ),
            weights=weights,
            chains=chains,
            prompts=histories,
        )

    def _answers(self, chains: Chains, seen: Sequences | None, seeds: IntArray | None) -> tuple[Tensor, Tensor, Tensor]:
        """Items, scores and weights [N, A] after each chain."""
        model, count = self.model, self.config.answers
        with torch.inference_mode():
            prefix = read(self.language.backbone, self.language.inputs(*chains.rows), chains.lengths)
            found = beam_search(
                model,
                model.trie,
                model.state(prefix),
                batch_size=len(chains.lengths),
                k=count + (seeds is not None),
                beams=count,
                constraints=Constraints() if seen is None else Constraints(deny=list(seen)),
                noise=None if seeds is None else GumbelNoise(torch.from_numpy(seeds).to(chains.rows.device)),
            )
        scores = found.scores[:, :count].clone()
        weights = scores.exp() if seeds is None else sample_weights(scores, found.ranks[:, count:].clone())
        return found.items[:, :count].clone(), scores, weights / weights.sum(1, keepdim=True).clamp(min=1e-30)

    def likelihoods(self, sampled: SampledChains) -> Iterator[ChainLikelihoods]:
        """How probable the model as it stands finds words and answers, some chains at a time.

        Words over the whole text vocabulary at the temperature that they were drawn at, items over legal children.
        """
        chains, items = sampled.chains, sampled.rollouts.items
        # Chains of similar length together, so that little is padding.
        order = chains.lengths.argsort(stable=True)
        begin = 0
        while begin < len(order):
            sizes = chains.lengths[order[begin:]]
            fits = sizes * torch.arange(1, len(sizes) + 1, device=sizes.device) <= self.config.batch_rows
            numbers = order[begin : begin + max(1, int(fits.sum()))]
            yield self._likelihoods(chains, items, numbers)
            begin += len(numbers)

    def _likelihoods(self, chains: Chains, items: Tensor, numbers: Tensor) -> ChainLikelihoods:
        backbone, longest = self.language.backbone, int(chains.lengths[numbers].max())
        tokens, others = chains.rows[:, numbers, :longest]
        hidden, cache = backbone.prefill(self.language.inputs(tokens, others))
        is_word = chains.is_word[numbers]
        row, place = is_word.nonzero(as_tuple=True)
        # The state of the row before a word predicts it. Not an index: its gradient is summed in no fixed order.
        states = row * longest + chains.begins[numbers][row] + place - 1
        logits = backbone.text_logits(torch.nn.functional.embedding(states, hidden.flatten(0, 1)))
        drawn = chains.words[numbers][is_word]
        found = -torch.nn.functional.cross_entropy(logits.float() / self.config.temperature, drawn, reduction="none")
        words = torch.zeros(is_word.shape, device=found.device).masked_scatter(is_word, found)
        ends = torch.arange(len(numbers), device=hidden.device) * longest + chains.lengths[numbers] - 1
        prefix = Prefix(
            hidden=torch.nn.functional.embedding(ends, hidden.flatten(0, 1)),
            cache=cache,
            lengths=chains.lengths[numbers],
        )
        chosen = items[numbers]
        answers = log_probs_from(self.model, self.model.state(prefix), chosen.clamp(min=0))
        return ChainLikelihoods(numbers=numbers, words=words, answers=torch.where(chosen >= 0, answers, 0.0))

    @torch.no_grad()
    def frozen_likelihoods(self, sampled: SampledChains) -> tuple[Tensor, Tensor]:
        """float32 [N, T] and [N, A]: of all words and answers, without gradients and dropout."""
        self.model.eval()
        words = torch.zeros_like(sampled.chains.log_probs)
        answers = torch.zeros_like(sampled.rollouts.scores)
        for part in self.likelihoods(sampled):
            words[part.numbers], answers[part.numbers] = part.words, part.answers
        return words, answers

    @torch.no_grad()
    def answers_over_vocabulary(self, sampled: SampledChains, *, over_vocabulary: bool = True) -> Tensor:
        """float32 [N, A]: log-probabilities of the answers with all codes of a level in the denominator, legal or not.

        Every answer is read whole; without `over_vocabulary` it is the slow twin of `likelihoods`.
        """
        self.model.eval()
        chains, rollouts = sampled.chains, sampled.rollouts
        codes = self.model.rows_per_item
        found = torch.zeros_like(rollouts.scores)
        for number, length in enumerate(chains.lengths.tolist()):
            before = chains.rows[:, number, :length].cpu().numpy()
            sequences = [_with_answer(before, item, codes) for item in rollouts.items[number].clamp(min=0).tolist()]
            packed = rectangle(sequences, [[place] for place in range(len(sequences))])
            scored = self.language.target_log_probs(packed.to(found.device), over_vocabulary=over_vocabulary)
            found[number] = scored.items
        return torch.where(rollouts.is_real, found, 0.0)


def _words(tokens: Sequence[int]) -> IntArray:
    """int64 [2, n]: rows of words, see `rows.SequenceWriter.read`."""
    rows = np.array(tokens, dtype=np.int64)
    return np.stack([rows, np.full_like(rows, -1)])


def _with_answer(before: IntArray, item: int, codes: int) -> Written:
    answer = np.full((2, codes), -1, dtype=np.int64)
    answer[1, 0] = item
    tokens, items = np.concatenate([before, answer], axis=1)
    return Written(tokens=tokens, items=items, is_target=np.arange(len(tokens)) == before.shape[1])
