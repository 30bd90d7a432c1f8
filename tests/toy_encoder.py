"""A real sentence encoder of one layer and random weights, made in a test: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write_toy_encoder(folder: Path, words: Sequence[str], hidden_size: int) -> Path:
    """The directory of the model, in `folder`; it knows these words, and vectors of `hidden_size` numbers."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ":", ".", "##s", "categories", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden_size,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder / "bert")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"))
    SentenceTransformer(modules=[transformer, Pooling(hidden_size)], device="cpu").save(str(folder / "model"))
    return folder / "model"
