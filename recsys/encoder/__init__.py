"""Item text to vectors, optionally fused with collaborative vectors. Imports only the data room."""

from recsys.encoder.collaborative import cooccurrence_embeddings, fuse
from recsys.encoder.config import EncoderConfig
from recsys.encoder.embeddings import ItemEmbeddings, encode_catalog
from recsys.encoder.encoder import TextEncoder
from recsys.encoder.text import item_texts

__all__ = [
    "EncoderConfig",
    "ItemEmbeddings",
    "TextEncoder",
    "cooccurrence_embeddings",
    "encode_catalog",
    "fuse",
    "item_texts",
]
