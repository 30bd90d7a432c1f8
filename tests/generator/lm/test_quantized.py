"""8-bit weights beside adapters: near what they stand for, trained around, gone from what is saved."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from random_codes import random_codes
from tiny_lm import save_tiny_lm
from torch import nn
from transformers import GPT2Config, GPT2Model

from recsys.assets import fetch
from recsys.data.sequences import Sequences
from recsys.errors import AssetError, ConfigError
from recsys.generator.config import GeneratorConfig, LanguageModelConfig, ModelConfig
from recsys.generator.lm.backbone import load_backbone
from recsys.generator.lm.quantized import Int8Linear, quantize
from recsys.generator.recommender import GenerativeRecommender, build_model
from training.config import load_config
from training.fit import FitConfig, fit_generator
from training.stages import train

pytest.importorskip("bitsandbytes")

SIZES = (4, 8)
HISTORIES = Sequences.from_lists([[1, 2, 3], [4], [5, 6]])


@pytest.fixture(scope="module")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_lm(tmp_path_factory.mktemp("lm"), hidden_size=32)


def make(source: Path, tuning: str = "lora") -> GenerativeRecommender:
    lm = {"name": str(source), "tuning": tuning, "lora": {"rank": 2}, "load_in": "8bit"}
    config = GeneratorConfig(model=ModelConfig.model_validate({"shape": "flat", "max_history": 8, "lm": lm}))
    codes = random_codes(20, SIZES)
    torch.manual_seed(0)
    return GenerativeRecommender(config, codes, SIZES, None, build_model(config, codes, SIZES, None))


def test_the_product_is_that_of_the_rounded_weights_and_inputs() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(32, 8)
    rounded = Int8Linear(linear)
    assert rounded.weight.dtype == torch.int8
    exact = rounded.dequantized()
    assert (exact.weight - linear.weight).abs().max() <= linear.weight.abs().max() / 127
    inputs = torch.randn(5, 32)
    # Inputs are rounded too: each of the 32 terms is off by half a step of either side at most.
    assert (rounded(inputs) - linear(inputs)).norm() < 0.02 * linear(inputs).norm()
    inputs[2, 7] = 60.0
    # What is large stays in 16 bits and takes nothing from the others.
    assert (rounded(inputs) - linear(inputs)).norm() < 0.02 * linear(inputs).norm()


@pytest.mark.parametrize("tuning", ["lora", "frozen"])
def test_adapters_learn_around_frozen_weights_and_what_is_saved_is_float32(
    tiny_lm: Path, tmp_path: Path, tuning: str
) -> None:
    recommender = make(tiny_lm, tuning)
    body = recommender.model.body
    int8 = {name: module.weight.clone() for name, module in body.named_modules() if isinstance(module, Int8Linear)}
    assert len(int8) == 14
    assert not any(parameter.requires_grad for name, parameter in body.named_parameters() if "lora_" not in name)
    sequences = Sequences.from_lists([[item % 20 for item in range(user, user + 6)] for user in range(20)])
    validations = iter([0.1, 0.2, 0.3])
    result = fit_generator(
        recommender.model,
        sequences,
        FitConfig(epochs=3, batch_positions=32, learning_rate=1e-2, device="cpu"),
        seed=0,
        validate=lambda: next(validations),
        checkpoint_dir=tmp_path / "resume",
    )
    assert result.curve[-1]["loss"] < result.curve[0]["loss"]
    for name, weight in int8.items():
        assert torch.equal(body.get_submodule(name).weight, weight)
    before = recommender.recommend(HISTORIES, 20)
    (tmp_path / "saved").mkdir()
    recommender.save(tmp_path / "saved")
    loaded = GenerativeRecommender.load(tmp_path / "saved", recommender.codes, SIZES, None)
    assert {parameter.dtype for parameter in loaded.model.body.parameters()} == {torch.float32}
    after = loaded.recommend(HISTORIES, 20)
    spread = before.scores.std()
    order = np.argsort(before.items, axis=1), np.argsort(after.items, axis=1)
    scores = [np.take_along_axis(side.scores, rows, 1) for side, rows in zip((before, after), order, strict=True)]
    assert np.abs(scores[0] - scores[1]).max() < 0.1 * spread


def test_eight_bits_are_refused_where_they_cannot_be() -> None:
    with pytest.raises(ValidationError, match="cannot be trained; set tuning to lora or frozen"):
        LanguageModelConfig(load_in="8bit", tuning="full")
    body = GPT2Model(GPT2Config(vocab_size=1, n_embd=8, n_layer=1, n_head=1, bos_token_id=None, eos_token_id=None))
    with pytest.raises(ConfigError, match="no linear maps"):
        quantize(body)


def test_without_the_package_the_fix_is_named(tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"pip install 'recsys\[quantized\]'"):
        load_backbone(LanguageModelConfig(name=str(tiny_lm), load_in="8bit"))


def test_runs_from_before_the_choice_stay_up_to_date(tiny_lm: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("data: {name: ml-100k}\ntokenizer: {method: rkmeans}\n")
    lm = f"generator.model.lm={{name: {tiny_lm}}}"
    without, default, eight = (
        train.stage(load_config(tmp_path / "run.yaml", overrides)).settings
        for overrides in ([], [lm], [lm, "generator.model.lm.load_in=8bit"])
    )
    assert without["generator"]["model"]["lm"] is None
    assert set(default["generator"]["model"]["lm"]) == {"name", "tuning", "lora"}
    assert eight["generator"]["model"]["lm"]["load_in"] == "8bit"


@pytest.mark.slow
def test_smollm2_reads_in_8_bits_nearly_as_in_float32() -> None:
    try:
        fetch("smollm2-135m-instruct")
    except AssetError as error:
        pytest.skip(str(error))
    exact, rounded = (
        load_backbone(LanguageModelConfig.model_validate({"tuning": "frozen", "load_in": kind})).eval()
        for kind in ("float32", "8bit")
    )
    tokens = torch.tensor([exact.text_tokens("A user who liked science fiction films will also like")])
    with torch.no_grad():
        expected, found = (side.text_logits(side(side.text_embeddings(tokens))) for side in (exact, rounded))
    assert (
        torch.nn.functional.kl_div(
            found.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="batchmean"
        )
        < 0.05 * tokens.shape[1]
    )
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() > 0.7
