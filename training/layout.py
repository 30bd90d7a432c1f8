"""What lies where in a run's directory. Imports nothing, so that looking into a run is quick."""

from __future__ import annotations

from pathlib import Path

RUNS = Path("runs")
"""Where runs are looked for by name, and where they are made by default."""
CONFIG_FILE = "config.yaml"
"""The resolved configuration of a run."""
STAGE_FILE = ".stage.json"
"""Inside a finished result: its key, its files, its cost. Hidden: a bundle's manifest lists every file that is not."""

DATA = "data"
ENCODE = "encode"
TOKENIZE = "tokenize"
TRAIN = "train"
RETRIEVE = "retrieve"
FUSE = "fuse"
EVALUATE = "evaluate"
BUNDLE = "bundle"
ONNX = "export/onnx"
"""Made by `recsys export`, not by a stage: the generator's body for ONNX Runtime."""

TEXT_ENCODER = "text_encoder"
"""In `encode`, and in a bundle: the text model as it was tuned; absent when it was taken as it is."""
FUSION = "fusion"
"""In `fuse`, and in a bundle: the sources beside the generator, and the ranker."""
SEMANTIC_IDS = "semantic_ids"
"""In `tokenize`."""
TOKENIZER = "tokenizer"
"""In `tokenize`."""
TOKENIZER_REPORT = "report.json"
"""In `tokenize`."""
LANGUAGE_REPORT = "language.json"
"""In `train`, where a language model was taught: what it can do of each task."""
REPORT = "report.json"
"""In `evaluate`; its names are a contract with users' scripts."""
REPORT_PAGE = "report.html"
"""In `evaluate`."""
LISTS = "lists.parquet"
"""In `evaluate`: `user`, `target`, and for each model a column with its ranked items (dense indices), a row a case."""
