"""The claim: groups of rollouts from our decoder against those that TRL's `GRPOTrainer` generates, side by side.

The same flat model, weights, catalogue, prompts and group size in one process. Ours: `Policy.propose` of group policy
optimisation, which returns items and their log-probabilities, by beam search (`rollout: beam`) and by stochastic beam
search, a sample without replacement. TRL's: a real `GRPOTrainer` over the twin that a user would assemble
(`training.transformers_twin`), whose own batches of repeated prompts go through its own method of generation: sampling
with `generate`. That method has no place for a prefix function, so `generate` of the model is wrapped to add one, which
keeps it in the catalogue, with the probabilities of our policy. No step is trained.

    recsys bench rollout [--repeats 5] [--codes DIRECTORY] [--json]

`speedup` counts proposals a second of the beam over TRL's generation alone, which knows no log-probabilities: in TRL
they take a forward pass more, over the whole vocabulary instead of the legal children; `speedup_with_log_probs` counts
it. Ours reads a prompt once a group, `generate` once a completion. The nested shape with a body of the same size is
held against the same trainer. A sample with replacement repeats items: `distinct_items` says how many a group holds on
average.

Weights are random, and logits spread as widely as a trained model's (standard deviation 2). One thread counts CPU
seconds, which other processes disturb least; more threads count wall seconds. Every side counts with its fastest
repetition, and with its median one beside it; they take turns.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from recsys.alignment.group_policy import Policy
from recsys.data import IntArray, Sequences
from recsys.tokenizer import SemanticIds
from training.random_twins import (
    CODES,
    LEVELS,
    RandomHistories,
    clock_name,
    history_prompts,
    num_parameters,
    random_recommender,
    synthetic_codes,
    timed,
)
from training.transformers_twin import PrefixTable, causal_lm, generate, item_tokens


def main(arguments: list[str]) -> dict[str, Any]:
    """Speed-ups are proposals a second of ours over those of TRL."""
    parser = argparse.ArgumentParser(prog="recsys bench rollout", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side")
    parser.add_argument("--codes", type=Path, help="semantic IDs of a finished run instead of synthetic ones")
    parser.add_argument("--items", type=int, default=12_000, help="items of the synthetic catalogue")
    parser.add_argument("--hidden-size", type=int, default=256, help="width of the body")
    parser.add_argument("--layers", type=int, default=8, help="layers of the body")
    parser.add_argument("--prompts", type=int, default=8, help="histories of a batch")
    parser.add_argument("--group-size", type=int, default=16, help="proposals for each")
    parser.add_argument("--history", type=int, default=20, help="items of a history")
    options = parser.parse_args(arguments)

    if options.codes is None:
        codes, sizes = synthetic_codes(options.items), (CODES,) * LEVELS
    else:
        ids = SemanticIds.load(options.codes)
        codes, sizes = ids.codes, ids.codebook_sizes
    size = {
        "hidden_size": options.hidden_size,
        "num_layers": options.layers,
        "max_history": options.history,
        "beams": options.group_size,
    }
    flat = random_recommender("flat", codes, sizes, **size).model
    nested = random_recommender("nested", codes, sizes, **size).model
    table = PrefixTable(item_tokens(flat).numpy())
    draws = RandomHistories(len(codes), options.history)
    # The first batch warms up.
    batches = [draws.draw(options.prompts) for _ in range(1 + options.repeats)]
    prompts = [history_prompts(flat, batch) for batch in batches]
    levels = codes.shape[1]
    # One row more than the semantic IDs have: the token that ends and pads, never legal.
    twin = causal_lm(flat, flat.embedding.num_embeddings + 1)
    measured = {name: _Measured(len(codes)) for name in ("beam", "sample", "nested", "trl")}
    log_prob_seconds = []
    policy, nested_policy = Policy(flat), Policy(nested)
    with TemporaryDirectory() as scratch:
        trl = _Trl(twin, table, prompts, options.group_size, levels, Path(scratch))
        for turn, batch in enumerate(batches):
            seeds = options.prompts * turn + np.arange(options.prompts)
            propose = functools.partial(_propose, histories=batch, group_size=options.group_size)
            results = {
                "beam": timed(functools.partial(propose, policy)),
                "sample": timed(functools.partial(propose, policy, seeds=seeds)),
                "nested": timed(functools.partial(propose, nested_policy)),
                "trl": timed(trl.generate_next),
            }
            _, seconds = timed(trl.log_probs)
            if turn:
                for name, (items, taken) in results.items():
                    measured[name].add(items, taken)
                log_prob_seconds.append(results["trl"][1] + seconds)
    # The twin is the same model: its own beam search finds the same groups.
    found, scores = generate(twin, table, prompts[0], levels=levels, k=options.group_size, beams=options.group_size)
    assert scores is not None
    best = policy.propose(batches[0], options.group_size, futures=_no_futures(batches[0]), mask_seen=False).rollouts

    spent = {**{name: side.seconds for name, side in measured.items()}, "trl_with_log_probs": log_prob_seconds}
    proposals = options.prompts * options.group_size
    rates = {name: proposals / min(seconds) for name, seconds in spent.items()}
    medians = {name: proposals / statistics.median(seconds) for name, seconds in spent.items()}
    return {
        "speedup": rates["beam"] / rates["trl"],
        "sample_speedup": rates["sample"] / rates["trl"],
        "nested_speedup": rates["nested"] / rates["trl"],
        "median_speedup": medians["beam"] / medians["trl"],
        "speedup_with_log_probs": rates["beam"] / rates["trl_with_log_probs"],
        "proposals_per_second": rates,
        "median_proposals_per_second": medians,
        "distinct_items": {name: statistics.fmean(side.distinct) for name, side in measured.items()},
        "in_catalogue": {name: statistics.fmean(side.in_catalogue) for name, side in measured.items()},
        "identical_groups": float((found == best.items).all(1).float().mean()),
        "largest_score_difference": float((scores - best.scores).abs().max()),
        "settings": {
            "prompts": options.prompts,
            "group_size": options.group_size,
            "repeats": options.repeats,
            "levels": levels,
            "codebook_sizes": list(sizes),
            "items": len(codes),
            "history_items": options.history,
            "body_parameters": num_parameters(flat.body),
            "trl": importlib.metadata.version("trl"),
            "threads": torch.get_num_threads(),
            "clock": clock_name(),
        },
    }


class _Measured:
    """What one side took, and what it proposed."""

    def __init__(self, num_items: int) -> None:
        self.num_items = num_items
        self.seconds: list[float] = []
        self.distinct: list[int] = []
        self.in_catalogue: list[bool] = []

    def add(self, groups: Tensor, seconds: float) -> None:
        """`groups`: int64 [B, G], items of the catalogue; -1 for anything else."""
        self.seconds.append(seconds)
        self.distinct += [len(set(group)) for group in groups.tolist()]
        self.in_catalogue += ((groups >= 0) & (groups < self.num_items)).flatten().tolist()


def _no_futures(histories: Sequences) -> Tensor:
    return torch.zeros(len(histories), 0, dtype=torch.int64)


def _propose(policy: Policy, histories: Sequences, group_size: int, seeds: IntArray | None = None) -> Tensor:
    proposed = policy.propose(histories, group_size, futures=_no_futures(histories), mask_seen=False, seeds=seeds)
    return proposed.rollouts.items


class _Trl:
    """A `GRPOTrainer` that generates for one batch of prompts after another.

    Args:
        lm: the twin.
        table: of the catalogue.
        prompts: batches, int64 [B, S] each.
        group_size: completions of a prompt.
        levels: tokens of an item.
        scratch: an empty folder.
    """

    def __init__(
        self,
        lm: LlamaForCausalLM,
        table: PrefixTable,
        prompts: list[Tensor],
        group_size: int,
        levels: int,
        scratch: Path,
    ) -> None:
        prompt_length = prompts[0].shape[1]

        def legal(_: int, sequence: Tensor) -> list[int]:
            return table.legal[tuple(sequence[prompt_length:].tolist())]

        lm.generate = functools.partial(lm.generate, prefix_allowed_tokens_fn=legal)
        words = [f"<{token}>" for token in range(lm.config.vocab_size)]
        tokenizer = Tokenizer(WordLevel({word: token for token, word in enumerate(words)}, unk_token=words[-1]))
        tokenizer.pre_tokenizer = WhitespaceSplit()
        texts = [" ".join(words[token] for token in row) for batch in prompts for row in batch.tolist()]
        batch_size = len(prompts[0]) * group_size
        self._table = table
        self._group_size = group_size
        self._levels = levels
        self._expected = iter(prompts)
        self.trainer = GRPOTrainer(
            model=lm,
            reward_funcs=_no_reward,
            # Temperature 1 and no truncation of the distribution are the trainer's defaults.
            args=GRPOConfig(
                output_dir=str(scratch),
                num_generations=group_size,
                max_completion_length=levels,
                per_device_train_batch_size=batch_size,
                gradient_accumulation_steps=1,
                gradient_checkpointing=False,
                shuffle_dataset=False,
                bf16=False,
                use_cpu=True,
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({"prompt": texts}),
            processing_class=PreTrainedTokenizerFast(
                tokenizer_object=tokenizer, eos_token=words[-1], pad_token=words[-1], padding_side="left"
            ),
        )
        self.trainer.model.train()
        # Its sampler repeats each prompt of a batch `group_size` times.
        self._batches = iter(self.trainer.get_train_dataloader())

    def generate_next(self) -> Tensor:
        """int64 [B, G]: the items that it generates for its next batch; -1 for what is none."""
        prompt_ids, completion_ids, *_ = self.trainer._generate([row["prompt"] for row in next(self._batches)])
        assert torch.equal(torch.tensor(prompt_ids), next(self._expected).repeat_interleave(self._group_size, dim=0))
        self._sequences = torch.tensor(
            [[*prompt, *completion] for prompt, completion in zip(prompt_ids, completion_ids, strict=True)]
        )
        items = [self._table.item_of.get(tuple(completion), -1) for completion in completion_ids]
        return torch.tensor(items).view(-1, self._group_size)

    def log_probs(self) -> Tensor:
        """float32 [B * G, L]: of the tokens generated last, by the trainer's own method."""
        with torch.no_grad():
            found, *_ = self.trainer._get_per_token_logps_and_entropies(
                self.trainer.model, self._sequences, torch.ones_like(self._sequences), self._levels
            )
        return found


def _no_reward(completions: list[str], **_: Any) -> list[float]:
    return [0.0] * len(completions)
