"""Tunes a writer of profiles on pairs of texts: DPO (arXiv 2305.18290) or its length-normalised form, with LoRA.

    DPO       -log sigmoid(beta * (D(chosen) - D(rejected))),   D(y) = log pi(y | x) - log pi_ref(y | x)
    LN-DPO    the same with D(y) / |y|, so that a longer text has no advantage; beta is larger, as margins are smaller

The loop is TRL's `DPOTrainer` (extra `trl`), imported only when something is tuned. Knows no users and no judges.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from scipy.stats import spearmanr
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from recsys.config import StrictConfig
from recsys.errors import ConfigError
from recsys.extras import require_extra
from recsys.files import atomic_directory
from recsys.generator.lm.backbone import load_causal_lm
from recsys.profile.pairs import TextPair
from recsys.profile.writers import chat_prompt

_LOSSES = {"dpo": "sigmoid", "ln_dpo": "sigmoid_norm"}
_BETAS = {"dpo": 0.1, "ln_dpo": 2.0}


class TuneConfig(StrictConfig):
    """How a writer is tuned."""

    loss: Literal["dpo", "ln_dpo"] = "ln_dpo"
    """`ln_dpo` suits texts of different lengths."""
    beta: float | None = Field(default=None, gt=0)
    """How close the writer stays to what it was; empty: 0.1 for `dpo`, 2 for `ln_dpo`."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Of the adapter."""
    rank: int = Field(default=16, ge=1)
    """Of the LoRA adapter."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the pairs."""
    batch_size: int = Field(default=4, ge=1)
    """Pairs of a step."""
    max_tokens: int = Field(default=1024, ge=16)
    """Of prompt and text together: what is longer loses its end. Pairs whose prompt alone is as long are left out."""
    seed: int = 0
    """Of the adapter's initial weights and of the order of the pairs."""


@dataclass(frozen=True, kw_only=True)
class Margins:
    """How a tuned writer judges pairs that it was not tuned on."""

    pairs: int
    """How many there were."""
    accuracy: float | None
    """Share of the pairs whose better text it has come to prefer; None without pairs."""
    spearman: float | None
    """Rank correlation of its margins with the gaps in utility; None where it is not defined."""


def tune_writer(
    name: str,
    pairs: Sequence[TextPair],
    config: TuneConfig,
    output: Path,
    *,
    start: Sequence[Path] = (),
    checkpoint_steps: int | None = None,
    mixed: bool = False,
    section: str = "profiles.tuning",
) -> int:
    """Tune the language model `name` and save the adapter, which `LocalWriter` reads, in `output`.

    Args:
        name: of the model.
        pairs: what is learned.
        config: how.
        output: directory to write.
        start: adapters that are added to the model first; what comes of it is the reference too.
        checkpoint_steps: keep what was learned beside `output` every so many steps, and go on from there; None: never.
        mixed: matrix products are in bfloat16.
        section: of the configuration that `config` is, for errors.

    Returns:
        How many of the pairs it was tuned on: those whose prompt leaves room for a text.

    Raises:
        ConfigError: TRL is not installed, there are no pairs, or all prompts are too long.
        AssetError: there is no such model.
    """
    if not pairs:
        raise ConfigError(f"{section}: no pair of profiles is far enough apart; add users or temperatures")
    require_extra("trl", needed_by=section)
    # Imported here: it takes seconds.
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = load_causal_lm(name, field="profiles.writer.name", adapters=start)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    fitting = [pair for pair in pairs if _prompt_length(tokenizer, pair.prompt) < config.max_tokens]
    if not fitting:
        raise ConfigError(
            f"{section}.max_tokens={config.max_tokens}: the prompts alone are as long; raise it, or name "
            "fewer items in a prompt"
        )
    rows = [_row(tokenizer, pair) for pair in fitting]
    arguments = trainer_arguments(
        output,
        learning_rate=config.learning_rate,
        epochs=config.epochs,
        batch_size=config.batch_size,
        max_tokens=config.max_tokens,
        seed=config.seed,
        checkpoint_steps=checkpoint_steps,
        mixed=mixed,
    ) | {
        "loss_type": [_LOSSES[config.loss]],
        "beta": config.beta if config.beta is not None else _BETAS[config.loss],
    }
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(**arguments),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=adapter_config(config.rank),
    )
    fit_adapter(trainer, output)
    return len(fitting)


def adapter_config(rank: int) -> Any:
    """LoRA of every linear map, as PEFT takes it."""
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def trainer_arguments(
    output: Path,
    *,
    learning_rate: float,
    epochs: float,
    batch_size: int,
    max_tokens: int,
    seed: int,
    checkpoint_steps: int | None,
    mixed: bool,
) -> dict[str, Any]:
    """What TRL's trainers of adapters share, as they name it."""
    return {
        "output_dir": str(_scratch(output)),
        "learning_rate": learning_rate,
        "num_train_epochs": epochs,
        # One by one: the logits of a batch over a vocabulary of words would take gigabytes.
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": batch_size,
        "max_length": max_tokens,
        "seed": seed,
        "save_strategy": "no" if checkpoint_steps is None else "steps",
        "save_steps": checkpoint_steps or 1,
        "save_total_limit": 1,
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
        "bf16": mixed,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "gradient_checkpointing": False,
    }


def fit_adapter(trainer: Any, output: Path) -> None:
    """Run a trainer with `trainer_arguments`, from its last checkpoint where there is one; save the adapter."""
    from transformers.trainer_utils import get_last_checkpoint

    scratch = _scratch(output)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(scratch)) if scratch.is_dir() else None)
    with atomic_directory(output) as temporary:
        trainer.model.save_pretrained(str(temporary))
    shutil.rmtree(scratch, ignore_errors=True)


def _scratch(output: Path) -> Path:
    return output.with_name(f"{output.name}.trainer")


def _prompt_length(tokenizer: PreTrainedTokenizerBase, prompt: str) -> int:
    """Tokens as `DPOTrainer` counts them, which leaves a pair out when they fill its room, and says nothing."""
    if tokenizer.chat_template:
        return len(tokenizer(chat_prompt(tokenizer, prompt), add_special_tokens=False)["input_ids"])
    return len(tokenizer(chat_prompt(tokenizer, prompt))["input_ids"])


def _row(tokenizer: PreTrainedTokenizerBase, pair: TextPair) -> dict[str, Any]:
    """A pair as `DPOTrainer` takes it. A chat stays one: of a rendered one it would begin the text a second time."""
    if tokenizer.chat_template:
        return {
            "prompt": [{"role": "user", "content": pair.prompt}],
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
        }
    end = str(tokenizer.eos_token)
    return {
        "prompt": chat_prompt(tokenizer, pair.prompt),
        "chosen": pair.chosen + end,
        "rejected": pair.rejected + end,
    }


def held_out_margins(name: str, adapter: Path, pairs: Sequence[TextPair], config: TuneConfig) -> Margins:
    """How the tuned writer judges `pairs`, by the margin of its loss (LettinGo check L3)."""
    if not pairs:
        return Margins(pairs=0, accuracy=None, spearman=None)
    from peft import PeftModel

    model, tokenizer = load_causal_lm(name, field="profiles.writer.name")
    tuned = PeftModel.from_pretrained(model, str(adapter)).eval()
    margins = []
    for pair in pairs:
        prompt = chat_prompt(tokenizer, pair.prompt)
        better, worse = (_gain(tuned, tokenizer, prompt, text, config) for text in (pair.chosen, pair.rejected))
        margins.append(better - worse)
    gaps = [pair.gap for pair in pairs]
    defined = len(set(gaps)) > 1 and len(set(margins)) > 1
    return Margins(
        pairs=len(pairs),
        accuracy=float(np.mean(np.array(margins) > 0)),
        spearman=float(spearmanr(margins, gaps).statistic) if defined else None,
    )


@torch.inference_mode()
def _gain(model: Any, tokenizer: Any, prompt: str, text: str, config: TuneConfig) -> float:
    """D(text): how much likelier tuning made it; a token, for the length-normalised loss."""
    head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    tail = tokenizer(text + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    tokens = torch.tensor([head + tail])
    # The logits of the prompt would be a vocabulary wide each, for nothing.
    kept = len(tail) + 1
    tuned = _log_prob(model(tokens, logits_to_keep=kept).logits, tokens, len(tail))
    with model.disable_adapter():
        before = _log_prob(model(tokens, logits_to_keep=kept).logits, tokens, len(tail))
    return (tuned - before) / (len(tail) if config.loss == "ln_dpo" else 1)


def _log_prob(logits: Tensor, tokens: Tensor, count: int) -> float:
    """Log-probability of the last `count` tokens, from logits [1, S, V]."""
    log_probs = logits[0, -count - 1 : -1].log_softmax(-1)
    return float(log_probs.gather(1, tokens[0, -count:, None]).sum())
