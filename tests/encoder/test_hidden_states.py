"""Item vectors out of causal language models, built on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from planted_topics import planted
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from recsys.encoder import EncoderConfig, TextEncoder
from recsys.encoder.alignment.config import AlignmentConfig
from recsys.encoder.alignment.tuning import tune_encoder
from recsys.encoder.cache import encode_cached
from recsys.encoder.hidden_states import pool
from recsys.errors import AssetError, ConfigError, DataError

WORDS = ["<s>", "red", "blue", "polish", "lipstick", "of", "the", "sea"]
TEXTS = ["red polish", "blue lipstick of the sea", "red", "the sea of red lipstick the sea", ""]


def save_tokenizer(directory: Path, side: str, bos: bool = True) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>"} if bos else {}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side=side, **special).save_pretrained(directory)


def save_gpt2(directory: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=8, n_embd=16, n_layer=2, n_head=2, n_positions=12)
        model = GPT2LMHeadModel(config)
        for parameter in model.transformer.parameters():
            if parameter.ndim == 2:
                parameter.data.mul_(5)  # far from the near-identity of the default start
        model.save_pretrained(directory)
    return directory


def save_llama(directory: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=8,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=32,
        )
        LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module", params=["gpt2-right", "gpt2-left", "llama-left"])
def language_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, side = request.param.split("-")
    directory = tmp_path_factory.mktemp(request.param)
    save_tokenizer(directory, side)
    return save_gpt2(directory) if family == "gpt2" else save_llama(directory)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_batches_give_what_single_texts_give(language_model: Path, pooling: str) -> None:
    """Also with positions learned one by one (GPT-2), and for a tokenizer that would pad on the left."""
    config = EncoderConfig(model=str(language_model), pooling=pooling, batch_size=3, max_tokens=10)
    encoder = TextEncoder(config)
    together = encoder.encode(TEXTS)
    assert together.shape == (5, 16)
    assert together.dtype == np.float32
    for row, text in enumerate(TEXTS):
        np.testing.assert_allclose(together[row], encoder.encode([text])[0], atol=1e-5)
    assert np.abs(together[0] - together[2]).max() > 1e-2


def test_vectors_are_the_last_hidden_states(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, "right")
    model = GPT2LMHeadModel.from_pretrained(save_gpt2(tmp_path)).eval()
    with torch.no_grad():
        states = model(torch.tensor([[2, 4, 5]]), output_hidden_states=True).hidden_states[-1][0].numpy()
    for pooling, expected in (("mean", states.mean(axis=0)), ("last", states[2])):
        encoder = TextEncoder(EncoderConfig(model=str(tmp_path), pooling=pooling))
        np.testing.assert_allclose(encoder.encode(["blue lipstick of"])[0], expected, atol=1e-5)


def test_long_texts_are_cut_at_the_limit_of_config_and_model(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, "right")
    save_gpt2(tmp_path)
    long = " ".join(["red blue"] * 20)
    wide = TextEncoder(EncoderConfig(model=str(tmp_path), pooling="last", max_tokens=500))
    np.testing.assert_array_equal(wide.encode([long]), wide.encode([" ".join(["red blue"] * 6)]))
    narrow = TextEncoder(EncoderConfig(model=str(tmp_path), pooling="last", max_tokens=8))
    np.testing.assert_array_equal(narrow.encode([long]), narrow.encode([" ".join(["red blue"] * 4)]))


def test_pooling_does_not_care_where_the_padding_is() -> None:
    states = torch.tensor([[[1.0], [3.0], [float("nan")]], [[float("nan")], [5.0], [7.0]]])
    attention = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert pool(states, attention, "mean").tolist() == [[2.0], [6.0]]
    assert pool(states, attention, "last").tolist() == [[3.0], [7.0]]


def test_cache_tells_poolings_apart(tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "lm", "right")
    save_gpt2(tmp_path / "lm")
    found = {}
    for pooling in ("mean", "last"):
        encoder = TextEncoder(EncoderConfig(model=str(tmp_path / "lm"), pooling=pooling))
        found[pooling] = encode_cached(encoder, TEXTS, tmp_path)
        np.testing.assert_array_equal(encode_cached(encoder, TEXTS, tmp_path), found[pooling])
    assert np.abs(found["mean"] - found["last"]).max() > 1e-2


def test_damaged_weights_are_one_error(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, "right")
    file = save_gpt2(tmp_path) / "model.safetensors"
    tensors = load_file(file)
    tensors["transformer.wte.weight"][1] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    encoder = TextEncoder(EncoderConfig(model=str(tmp_path), pooling="mean"))
    with pytest.raises(DataError, match="gives values that are not finite for 3 of 5 texts; its weights are damaged"):
        encoder.encode(TEXTS)


def test_text_less_items_need_a_token_that_stands_for_nothing(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, "right", bos=False)
    encoder = TextEncoder(EncoderConfig(model=str(save_gpt2(tmp_path)), pooling="mean"))
    assert encoder.encode(["red"]).shape == (1, 16)
    with pytest.raises(DataError, match="neither a begin nor an end token"):
        encoder.encode(["red", ""])


def test_models_that_read_ahead_are_refused(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, "right")
    config = BertConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="reads texts in both directions, it is no causal language model"):
        TextEncoder(EncoderConfig(model=str(tmp_path), pooling="last")).encode(["red"])


def test_directory_without_a_language_model_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(AssetError, match="pooling 'last' must be a causal language model"):
        TextEncoder(EncoderConfig(model=str(tmp_path), pooling="last")).encode(["red"])


def test_language_model_cannot_be_tuned(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, "right")
    catalog, train = planted(0)
    encoder = EncoderConfig(model=str(save_gpt2(tmp_path)), pooling="last")
    with pytest.raises(ConfigError, match="pooling is last, but only a sentence-transformers model can be tuned"):
        tune_encoder(encoder, catalog, train, AlignmentConfig(), tmp_path / "out", tmp_path)
