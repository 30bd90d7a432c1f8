"""Catalogue, interactions, sources and splits. Imports no other room of the library."""

from recsys.data.catalog import Catalog
from recsys.data.config import DataConfig, SplitConfig
from recsys.data.dataset import Dataset, fingerprints, load_dataset, resolve, write_import_folder
from recsys.data.describe import describe
from recsys.data.interactions import Interactions
from recsys.data.sequences import Examples, IntArray, Sequences
from recsys.data.split import Split, SplitProtocol, make_split

__all__ = [
    "Catalog",
    "DataConfig",
    "Dataset",
    "Examples",
    "IntArray",
    "Interactions",
    "Sequences",
    "Split",
    "SplitConfig",
    "SplitProtocol",
    "describe",
    "fingerprints",
    "load_dataset",
    "make_split",
    "resolve",
    "write_import_folder",
]
