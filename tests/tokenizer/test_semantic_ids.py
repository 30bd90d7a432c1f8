from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from recsys.errors import ArtifactError
from recsys.tokenizer import SemanticIds

CODES = np.array([[0, 1], [1, 0], [1, 1]])


@pytest.mark.parametrize(("ordered", "ordinal"), [(True, False), (False, False), (True, True)])
def test_what_the_codes_mean_survives_the_disk(ordered: bool, ordinal: bool, tmp_path: Path) -> None:
    ids = SemanticIds(codes=CODES, raw_codes=CODES[::-1], codebook_sizes=(2, 3), ordered=ordered, ordinal=ordinal)
    ids.save(tmp_path / "ids")
    loaded = SemanticIds.load(tmp_path / "ids")
    np.testing.assert_array_equal(loaded.codes, ids.codes)
    np.testing.assert_array_equal(loaded.raw_codes, ids.raw_codes)
    assert (loaded.codebook_sizes, loaded.ordered, loaded.ordinal) == ((2, 3), ordered, ordinal)


def test_codes_are_ordered_unless_said_otherwise() -> None:
    ids = SemanticIds(codes=CODES, raw_codes=CODES, codebook_sizes=(2, 2))
    assert ids.ordered
    assert not ids.ordinal


def test_equal_ids_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        SemanticIds(codes=CODES, raw_codes=CODES, codebook_sizes=(2, 2), ordered=False).save(tmp_path / name)
    first, second = ((tmp_path / name / "semantic_ids.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second
    with safe_open(tmp_path / "a" / "semantic_ids.safetensors", framework="numpy") as file:
        assert list(file.metadata()) == ["facts"]


def test_ids_of_before_there_were_facts_are_read(tmp_path: Path) -> None:
    path = tmp_path / "semantic_ids.safetensors"
    save_file({"codes": CODES, "raw_codes": CODES}, path, metadata={"codebook_sizes": json.dumps([2, 2])})
    loaded = SemanticIds.load(tmp_path)
    assert (loaded.codebook_sizes, loaded.ordered, loaded.ordinal) == ((2, 2), True, False)


def test_ids_without_facts_are_one_error(tmp_path: Path) -> None:
    for metadata in (None, {"other": "1"}, {"facts": "{}"}, {"facts": "damaged"}):
        save_file({"codes": CODES, "raw_codes": CODES}, tmp_path / "semantic_ids.safetensors", metadata=metadata)
        with pytest.raises(ArtifactError, match="cannot read semantic ids"):
            SemanticIds.load(tmp_path)
