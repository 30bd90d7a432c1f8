"""Real sentence-transformers models, tiny and random, built on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pytest
import torch
from planted_topics import NOISE_WORDS, TOPIC_WORDS
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizerFast


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny-encoder")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghijklmnopqrstuvwxyz",
        "red",
        "blue",
        "polish",
        "lipstick",
    ]
    (root / "vocab.txt").write_text("\n".join(words))
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(root / "bert")
    BertTokenizerFast(vocab_file=str(root / "vocab.txt")).save_pretrained(root / "bert")
    body = Transformer(str(root / "bert"), max_seq_length=32)
    pooling = Pooling(16)
    SentenceTransformer(modules=[body, pooling, Normalize()], device="cpu").save(str(root / "model"))
    return root / "model"


@pytest.fixture(scope="session")
def word_model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence encoder that tells the words of the planted catalogue apart, and knows nothing about them."""
    return build_word_model(tmp_path_factory.mktemp("word-encoder"), [*chain.from_iterable(TOPIC_WORDS), *NOISE_WORDS])


def build_word_model(root: Path, words: Sequence[str]) -> Path:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", ";", ":", *words]
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(config)
    with torch.no_grad():
        # Words far apart, as in a trained model: the default spread drowns them in the position's vector.
        model.embeddings.word_embeddings.weight.mul_(20)
    model.save_pretrained(root / "bert")
    tokenizer = BertTokenizerFast(vocab={word: number for number, word in enumerate(vocabulary)})
    tokenizer.save_pretrained(root / "bert")
    body = Transformer(str(root / "bert"), max_seq_length=48)
    assert body.tokenizer.tokenize(f"{words[0]} {words[-1]}") == [words[0], words[-1]]
    SentenceTransformer(modules=[body, Pooling(32), Normalize()], device="cpu").save(str(root / "model"))
    return root / "model"
