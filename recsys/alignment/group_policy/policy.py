"""The generator as a policy: it proposes through the product's own decoder, and says how probable proposals are.

Shapes: B histories, G proposals each, T items of the longest history.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recsys.alignment.candidates import candidate_log_probs, log_probs_from, policy_model
from recsys.alignment.rollouts import Rollouts
from recsys.data import IntArray, Sequences
from recsys.data.windows import pad_right
from recsys.generator.constraints import Constraints
from recsys.generator.decoder import beam_search
from recsys.generator.gumbel import GumbelNoise
from recsys.generator.likelihood import target_mask
from recsys.generator.nested import NestedModel
from recsys.generator.recommender import GeneratorModel


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampled:
    """Proposals and what they stand for."""

    rollouts: Rollouts
    weights: Tensor
    """float32 [B, G], rows summing to 1: the share of the policy that a proposal stands for, within its group."""

    def first(self, count: int) -> Sampled:
        """The first `count` groups."""
        return Sampled(rollouts=self.rollouts.first(count), weights=self.weights[:count])


@dataclass(frozen=True, kw_only=True, eq=False)
class Likelihoods:
    """Log-probabilities with gradients, from one reading of the histories."""

    proposals: Tensor
    """float32 [B, G]; 0 where there is no proposal."""
    history: Tensor
    """float32 [Q]: of the histories' own items, each given those before it; empty unless asked for."""


class Policy:
    """A generator that is asked for proposals; see the module.

    Raises:
        ConfigError: an any-order model, whose paths are no sequences of legal children.
    """

    def __init__(self, model: GeneratorModel) -> None:
        self.model = policy_model(model)

    @property
    def rounds(self) -> bool:
        """Whether what a search and `likelihoods` say of an item differ by more than float32 rounds.

        In bfloat16 they do, by as much as a step changes: no ratio may be of the two.
        """
        return self.model.body.precision != torch.float32

    def propose(
        self,
        histories: Sequences,
        group_size: int,
        *,
        futures: Tensor,
        mask_seen: bool,
        seeds: IntArray | None = None,
    ) -> Sampled:
        """The policy's `group_size` best items for each history, or a sample of as many.

        Args:
            histories: B histories, none empty.
            group_size: G.
            futures: int64 [B, N], see `Rollouts`.
            mask_seen: leave out the items of each history.
            seeds: int64 [B], for a sample without replacement (Gumbel top-k; Kool et al. 2019, arXiv 1903.06059). None:
                the best ones.
        """
        model = self.model.eval()
        items, lengths = self.padded(histories)
        with torch.inference_mode():
            state = model.state(model.encode(items, lengths))
            found = beam_search(
                model,
                model.trie,
                state,
                batch_size=len(histories),
                # One more than the sample: where it stands is the sample's threshold.
                k=group_size + (seeds is not None),
                beams=group_size,
                constraints=Constraints(deny=list(histories)) if mask_seen else Constraints(),
                noise=None if seeds is None else GumbelNoise(torch.from_numpy(seeds).to(items.device)),
            )
        scores = found.scores[:, :group_size].clone()
        weights = scores.exp()
        if seeds is not None:
            weights = sample_weights(scores, found.ranks[:, group_size:])
        return Sampled(
            rollouts=Rollouts(
                histories=histories,
                futures=futures.to(items.device),
                items=found.items[:, :group_size].clone(),
                scores=scores,
            ),
            weights=weights / weights.sum(1, keepdim=True).clamp(min=1e-30),
        )

    def likelihoods(self, rollouts: Rollouts, *, with_history: bool, over_vocabulary: bool = False) -> Likelihoods:
        """How probable the model as it stands finds the proposals, over legal children, with gradients.

        Args:
            rollouts: what was proposed.
            with_history: the histories' own items too.
            over_vocabulary: normalise over all codes of a level instead of the legal children.
        """
        model = self.model
        items, lengths = self.padded(rollouts.histories)
        proposals = rollouts.items.clamp(min=0)
        rows = torch.arange(len(items), device=items.device)
        kept = torch.zeros(0, device=items.device)
        if isinstance(model, NestedModel):
            # One reading serves the proposals and the histories' own items.
            hidden = model.hidden_states(items)
            if over_vocabulary:
                repeated = hidden[rows, lengths].repeat_interleave(proposals.shape[1], dim=0)
                found = model.item_log_probs(repeated.unsqueeze(1), proposals.flatten(), over_vocabulary=True)
            else:
                found = log_probs_from(model, hidden[rows, lengths].unsqueeze(1), proposals)
            if with_history:
                is_item = target_mask(items, lengths, None)
                kept = model.item_log_probs(hidden[:, :-1][is_item].unsqueeze(1), items[is_item])
        else:
            if over_vocabulary:
                # Without a trie no step is certain, so that every proposal is read whole behind its history.
                widened = torch.cat([items, items[:, :1]], dim=1).repeat_interleave(proposals.shape[1], dim=0)
                ends = lengths.repeat_interleave(proposals.shape[1])
                widened[torch.arange(len(widened), device=items.device), ends] = proposals.flatten()
                found = model.target_log_probs(widened, ends + 1, ends, over_vocabulary=True)
            else:
                found = candidate_log_probs(model, items, lengths, proposals)
            if with_history:
                kept = model.target_log_probs(items, lengths)
        shaped = found.view(proposals.shape)
        return Likelihoods(proposals=torch.where(rollouts.is_real, shaped, 0.0), history=kept)

    def history_log_probs(self, histories: Sequences) -> Tensor:
        """float32 [Q]: of the histories' own items, each given those before it, with gradients."""
        return self.model.target_log_probs(*self.padded(histories))

    def padded(self, histories: Sequences) -> tuple[Tensor, Tensor]:
        """int64 [B, T] and [B]: the most recent items of each history, on the model's device."""
        lengths = histories.lengths.clip(max=self.model.config.max_history)
        items = pad_right(histories.items, histories.offsets[1:] - lengths, lengths)
        device = self.model.learned.device
        return torch.from_numpy(items).to(device), torch.from_numpy(lengths).to(device)


def sample_weights(scores: Tensor, threshold: Tensor) -> Tensor:
    """float32 [B, G]: weights w of a Gumbel top-k sample with E[sum w f] = sum p f for every function f of the items.

    w = p / (1 - exp(-exp(log p - threshold))) (Kool et al. 2019, section 4.2).

    Args:
        scores: float32 [B, G], log-probabilities of the sampled items; -inf for none.
        threshold: float64 [B, 1], the perturbed log-probability of the best item that is not in the sample; -inf when
            the sample holds all items.
    """
    inclusion = -torch.expm1(-(scores.double() - threshold).exp())
    weights = scores.double().exp() / inclusion
    return torch.where(scores == -torch.inf, 0.0, weights).float()
