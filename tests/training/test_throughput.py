"""How fast a fit is said to be: what a step costs, and of which share of which peak."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_fit import cycles, fresh
from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaModel

from recsys.generator.body import CausalBody
from recsys.generator.lm.rows import Written, rectangle
from training.objectives import WindowObjective, causal_pairs
from training.throughput import StepCost, Throughput, peak_tflops


def body(transformer: object) -> CausalBody:
    made = CausalBody()
    made.transformer = transformer
    return made


def test_a_step_costs_six_operations_a_weight_and_twelve_a_pair_and_component() -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    llama = body(LlamaModel(LlamaConfig(**sizes, vocab_size=5, num_key_value_heads=1)))
    # Queries and output 8 x 8, keys and values 8 x 4, three maps 8 x 12, two norms; one more norm at the end.
    weights = 2 * (2 * 64 + 2 * 32 + 3 * 96 + 2 * 8) + 8
    assert StepCost.of(llama) == StepCost(per_row=6 * weights, per_pair=12 * 2 * 8)
    llama.transformer.layers.requires_grad_(False)
    assert StepCost.of(llama).per_row == 4 * (weights - 8) + 6 * 8
    # Heads that are wider than their share of the width.
    wide = body(LlamaModel(LlamaConfig(**sizes, vocab_size=5, head_dim=16)))
    assert StepCost.of(wide).per_pair == 12 * 2 * 2 * 16
    gpt2 = body(GPT2Model(GPT2Config(vocab_size=5, n_embd=8, n_layer=3, n_head=2)))
    assert StepCost.of(gpt2).per_pair == 12 * 3 * 8


def test_pairs_are_those_that_causal_attention_looks_at() -> None:
    assert causal_pairs(torch.tensor([1, 3])) == 1 + (1 + 2 + 3)
    packed = rectangle(
        [
            Written(tokens=np.zeros(n, dtype=np.int64), items=np.full(n, -1), is_target=np.zeros(n, dtype=bool))
            for n in (2, 3, 4)
        ],
        [[0, 1], [2]],
    )
    assert packed.num_rows == 9
    assert packed.num_pairs == (1 + 2) + (1 + 2 + 3) + (1 + 2 + 3 + 4)
    model = fresh("flat").model
    objective = WindowObjective(model, cycles(), 64, 0.0)
    (batch, *_) = objective.epoch(0, np.random.default_rng(0))
    found = objective.loss(batch)
    lengths = objective._windows.lengths[batch] * model.rows_per_item
    assert found.num_pairs == sum(length * (length + 1) // 2 for length in lengths)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40", 181.0),
        ("NVIDIA L4", 121.0),
        ("Tesla T4", 65.0),
        ("NVIDIA Something 9000", None),
    ],
)
def test_a_share_is_stated_of_known_devices_only(
    name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    assert peak_tflops() == peak
    said: dict[str, float] = {}
    meter = Throughput(StepCost(per_row=1e12, per_pair=1e11), lambda tag, value, step: said.update({tag: value}))
    objective = WindowObjective(fresh("nested").model, cycles(), 64, 0.0)
    done = objective.loss(objective.epoch(0, np.random.default_rng(0))[0])
    meter.count(done, 0)
    meter.report(0)
    assert said["train/tflops"] > said["train/rows_per_s"]
    assert said.get("train/mfu") == (None if peak is None else pytest.approx(said["train/tflops"] / peak))
