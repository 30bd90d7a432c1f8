"""One item per full code: what to do with items whose nearest codes are the same."""

from recsys.tokenizer.collisions.ordinal import ordinal_codebook
from recsys.tokenizer.collisions.resolve import resolve_collisions
from recsys.tokenizer.collisions.sets import Distances, resolve_sets

__all__ = ["Distances", "ordinal_codebook", "resolve_collisions", "resolve_sets"]
