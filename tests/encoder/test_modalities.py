from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from recsys.encoder.modalities import Modality, check_modalities, modality_from_column, modality_from_file
from recsys.errors import DataError

IDS = ["a", "b", "c"]


def test_vectors_without_a_mask_are_absent_where_they_are_zero() -> None:
    modality = Modality.from_vectors("text", np.array([[1.0, 2.0], [0.0, 0.0]], dtype=np.float32))
    assert modality.present.tolist() == [True, False]
    assert (modality.num_items, modality.dim) == (2, 2)


def test_absent_rows_become_zero_and_the_caller_keeps_theirs() -> None:
    vectors = np.ones((2, 2), dtype=np.float32)
    modality = Modality.from_vectors("image", vectors, np.array([True, False]))
    assert modality.vectors.tolist() == [[1, 1], [0, 0]]
    assert (vectors == 1).all()


@pytest.mark.parametrize(
    ("vectors", "present", "message"),
    [
        ([[1.0, np.nan]], None, r"modality 'image': 1 of 1 rows hold NaN or infinity.*\[0\]"),
        ([[1.0, np.inf]], [True], "modality 'image': 1 of 1 rows hold NaN"),
        ([[0.0, 0.0]], [True], "modality 'image': 1 of 1 rows are zero although marked present"),
        ([1.0, 2.0], None, r"modality 'image': vectors must be \[num_items, dim\]"),
        ([[1.0, 2.0]], [True, False], r"modality 'image': present must be bool \[1\]"),
    ],
)
def test_broken_vectors_are_errors_that_name_the_modality(
    vectors: list[list[float]], present: list[bool] | None, message: str
) -> None:
    mask = None if present is None else np.array(present)
    with pytest.raises(DataError, match=message):
        Modality.from_vectors("image", np.array(vectors, dtype=np.float32), mask)


@pytest.mark.parametrize(
    "column",
    [
        pl.Series("v", [[1.0, 2.0], None, [3.0, 4.0]], dtype=pl.List(pl.Float64)),
        pl.Series("v", [[1, 2], [], [3, 4]], dtype=pl.List(pl.Int64)),
        pl.Series("v", [["1.0", "2"], [], ["3", "4e0"]], dtype=pl.List(pl.String)),
        pl.Series("v", [[1.0, 2.0], None, [3.0, 4.0]], dtype=pl.Array(pl.Float32, 2)),
    ],
    ids=["floats", "integers", "text", "array"],
)
def test_column_of_lists_is_a_modality_with_gaps(column: pl.Series) -> None:
    modality = modality_from_column("image", column)
    assert modality.vectors.tolist() == [[1, 2], [0, 0], [3, 4]]
    assert modality.present.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pl.Series("v", ["x", "y", "z"]), "modality 'image': column 'v' must hold lists of numbers, found String"),
        (pl.Series("v", [[], None, []], dtype=pl.List(pl.Float64)), "modality 'image' is empty: none of 3 items"),
        (pl.Series("v", [[1.0, 2.0], [1.0], [3.0, 4.0]]), "most vectors have 2 numbers, but 1 of 3 .* 1 in row 1"),
        (pl.Series("v", [[1.0, 2.0], [1.0, float("nan")]]), "1 values are not finite numbers, e.g. .* in row 1"),
        (pl.Series("v", [["1", "two"]]), '1 values are not finite numbers, e.g. "two" in row 0'),
        (pl.Series("v", [[1.0, None]]), "1 values are not finite numbers"),
    ],
)
def test_broken_column_is_an_error_that_names_the_modality(column: pl.Series, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        modality_from_column("image", column)
    assert "modality 'image'" in str(caught.value)


def write(path: Path, ids: list[str], vectors: list[list[float]]) -> Path:
    if path.suffix == ".parquet":
        pl.DataFrame({"item_id": ids, "vector": vectors}).write_parquet(path)
    else:
        rows = zip(ids, vectors, strict=True)
        save_file({item_id: np.array(vector, dtype=np.float32) for item_id, vector in rows}, path)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".safetensors"])
def test_file_by_item_id_is_put_in_the_order_of_the_catalogue(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"image{suffix}", ["c", "a"], [[3.0, 4.0], [1.0, 2.0]])
    modality = modality_from_file("image", path, IDS)
    assert modality.vectors.tolist() == [[1, 2], [0, 0], [3, 4]]
    assert modality.present.tolist() == [True, False, True]


@pytest.mark.parametrize("suffix", [".parquet", ".safetensors"])
def test_unknown_ids_and_other_widths_are_errors(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"image{suffix}", ["c", "x"], [[3.0, 4.0], [1.0, 2.0]])
    with pytest.raises(DataError, match=r"modality 'image': 1 of 2 item_ids are not in the catalogue, e.g. 'x'"):
        modality_from_file("image", path, IDS)
    path = write(tmp_path / f"image{suffix}", IDS, [[3.0, 4.0], [1.0], [1.0, 2.0]])
    with pytest.raises(DataError, match="modality 'image': most vectors have 2 numbers, but 1 of 3"):
        modality_from_file("image", path, IDS)


def test_repeated_ids_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "image.parquet", ["a", "a"], [[1.0], [2.0]])
    with pytest.raises(DataError, match=r"modality 'image': 2 rows hold 1 distinct item_ids, e.g. 'a'"):
        modality_from_file("image", path, IDS)


def test_array_file_is_in_the_order_of_the_catalogue(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", np.array([[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]]))
    modality = modality_from_file("image", tmp_path / "image.npy", IDS)
    assert modality.present.tolist() == [True, False, True]
    with pytest.raises(DataError, match=r"modality 'image': the .npy file must hold numbers \[2, dim\]"):
        modality_from_file("image", tmp_path / "image.npy", IDS[:2])


def test_unreadable_files_are_errors(tmp_path: Path) -> None:
    for name in ("image.npy", "image.parquet", "image.safetensors"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(DataError, match="modality 'image': cannot read"):
            modality_from_file("image", tmp_path / name, IDS)
    with pytest.raises(DataError, match=r"image.csv must be a .parquet, .safetensors or .npy file"):
        modality_from_file("image", tmp_path / "image.csv", IDS)
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object))
    with pytest.raises(DataError, match="modality 'image': cannot read"):
        modality_from_file("image", tmp_path / "pickled.npy", IDS)


def test_catalogue_takes_modalities_of_its_size_that_someone_has() -> None:
    text = Modality.from_vectors("text", np.ones((3, 2), dtype=np.float32))
    check_modalities([text], 3)
    with pytest.raises(DataError, match="modality 'text' has 3 rows, but the catalogue has 4 items"):
        check_modalities([text], 4)
    with pytest.raises(DataError, match="must have different names, found text, text"):
        check_modalities([text, text], 3)
    empty = Modality.from_vectors("image", np.zeros((3, 2), dtype=np.float32))
    with pytest.raises(DataError, match="modality 'image' is empty: none of 3 items has it"):
        check_modalities([text, empty], 3)
