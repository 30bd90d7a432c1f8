"""What item graphs are worth before anything is trained on them: content neighbours against who is consumed with whom.

For Beauty and Scientific, on training sequences alone: how many pairs of text neighbours anyone consumed together, how
many such pairs the text finds, and the recall of held-out companions for each blend of content and behaviour.

    recsys bench item_graphs [--data-root FOLDER] [--json]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from recsys.encoder import EncoderConfig, encode_catalog
from recsys.encoder.graph import SIGERConfig, graph_report
from recsys.encoder.modalities import Modality
from training.bench import COMPARED, compared_data


def main(arguments: list[str]) -> dict[str, Any]:
    """One `ModalityGraphReport` a data set."""
    parser = argparse.ArgumentParser(prog="recsys bench item_graphs", description=__doc__)
    parser.add_argument("--data-root", type=Path, help="folder that holds the data sets in the import format")
    options = parser.parse_args(arguments)
    return {data: _report(data, options.data_root) for data in COMPARED}


def _report(data: str, root: Path | None) -> dict[str, Any]:
    dataset, split = compared_data(data, root)
    text = Modality.from_vectors("text", encode_catalog(dataset.catalog, EncoderConfig()).vectors)
    (report,) = graph_report([text], split.train, split.num_items, SIGERConfig()).modalities
    return report.model_dump(mode="json")
