from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_lm import save_tiny_lm
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from recsys.errors import ConfigError
from recsys.profile.pairs import TextPair
from recsys.profile.writers import LocalWriter, chat_prompt
from training.profile_tuning import TuneConfig, held_out_margins, tune_writer

PAIRS = [
    TextPair(user=user, prompt=f"items that user {user} chose", chosen="the quick fox", rejected="lazy dog", gap=0.1)
    for user in range(8)
]
HELD_OUT = [
    TextPair(user=9, prompt="items that user 9 chose", chosen="the quick fox", rejected="lazy dog", gap=gap)
    for gap in (0.1, 0.2)
]


def test_tuning_prefers_what_was_worth_more_also_for_users_it_never_saw(tmp_path: Path) -> None:
    lm = save_tiny_lm(tmp_path / "lm")
    config = TuneConfig(epochs=3, learning_rate=1e-2, rank=4)
    tune_writer(str(lm), PAIRS, config, tmp_path / "adapter")
    margins = held_out_margins(str(lm), tmp_path / "adapter", HELD_OUT, config)
    assert (margins.pairs, margins.accuracy) == (2, 1.0)
    before = LocalWriter(str(lm), max_tokens=8).write(["items that user 9 chose"], temperature=0, seed=0)
    after = LocalWriter(str(lm), tmp_path / "adapter", max_tokens=8).write(
        ["items that user 9 chose"], temperature=0, seed=0
    )
    assert before != after


def test_tuning_that_was_killed_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trl = pytest.importorskip("trl")
    lm = str(save_tiny_lm(tmp_path / "lm"))
    config = TuneConfig(rank=2, batch_size=4, learning_rate=1e-2)
    tune_writer(lm, PAIRS, config, tmp_path / "whole")
    step = trl.DPOTrainer.training_step
    steps: list[int] = []

    def killed(self: Any, *arguments: Any, **options: Any) -> Any:
        if self.state.global_step == 1:
            raise KeyboardInterrupt
        return step(self, *arguments, **options)

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        steps.append(self.state.global_step)
        return step(self, *arguments, **options)

    monkeypatch.setattr(trl.DPOTrainer, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        tune_writer(lm, PAIRS, config, tmp_path / "parts", checkpoint_steps=1)
    monkeypatch.setattr(trl.DPOTrainer, "training_step", counted)
    tune_writer(lm, PAIRS, config, tmp_path / "parts", checkpoint_steps=1)
    assert set(steps) == {1}
    assert not (tmp_path / "parts.trainer").exists()
    whole, parts = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "parts"))
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor)


def test_without_pairs_there_is_nothing_to_tune(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no pair of profiles is far enough apart"):
        tune_writer("anything", [], TuneConfig(), tmp_path)
    assert held_out_margins("anything", tmp_path, [], TuneConfig()).accuracy is None


def test_without_trl_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ConfigError, match=r"profiles\.tuning: needs .*pip install 'recsys\[trl\]'"):
        tune_writer("anything", PAIRS, TuneConfig(), tmp_path)


def test_losses_are_those_of_trl_with_a_beta_of_their_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trl = pytest.importorskip("trl")
    asked: list[tuple[list[str], float]] = []

    class Recorder:
        def __init__(self, *, args: Any, **_: Any) -> None:
            asked.append((args.loss_type, args.beta))
            raise KeyboardInterrupt

    monkeypatch.setattr(trl, "DPOTrainer", Recorder)
    lm = save_tiny_lm(tmp_path / "lm")
    for settings in ({"loss": "dpo"}, {"loss": "ln_dpo"}, {"loss": "ln_dpo", "beta": 5.0}):
        with pytest.raises(KeyboardInterrupt):
            tune_writer(str(lm), PAIRS, TuneConfig.model_validate(settings), tmp_path / "adapter")
    assert asked == [(["sigmoid"], 0.1), (["sigmoid_norm"], 2.0), (["sigmoid_norm"], 5.0)]


CHAT = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_a_chat_model_reads_in_tuning_what_it_is_asked_in_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trl = pytest.importorskip("trl")
    lm = save_tiny_lm(tmp_path / "lm")
    tokenizer = AutoTokenizer.from_pretrained(str(lm))
    begin, end = "<|end|>", tokenizer.eos_token_id
    tokenizer.bos_token, tokenizer.chat_template = begin, CHAT
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, end)])
    tokenizer.save_pretrained(str(lm))
    read: list[list[int]] = []

    def watched(self: Any, **_: Any) -> None:
        read.extend(row["prompt_ids"] for row in self.train_dataset)
        raise KeyboardInterrupt

    monkeypatch.setattr(trl.DPOTrainer, "train", watched)
    with pytest.raises(KeyboardInterrupt):
        tune_writer(str(lm), PAIRS[:1], TuneConfig(), tmp_path / "adapter")
    asked = chat_prompt(tokenizer, PAIRS[0].prompt)
    assert read == [tokenizer(asked, add_special_tokens=False)["input_ids"]]


def test_pairs_whose_prompt_leaves_no_room_are_left_out_and_counted(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    lm = save_tiny_lm(tmp_path / "lm")
    long = replace(PAIRS[0], prompt="fox " * 60)
    assert tune_writer(str(lm), [*PAIRS[:2], long], TuneConfig(max_tokens=60), tmp_path / "adapter") == 2
    with pytest.raises(ConfigError, match=r"profiles\.tuning\.max_tokens=60: the prompts alone are as long"):
        tune_writer(str(lm), [long], TuneConfig(max_tokens=60), tmp_path / "adapter")
