from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from toy_bundle import NUM_ITEMS, NUM_USERS, REPORT, write_toy_bundle

from recsys.bundle import Bundle
from recsys.data import Sequences
from recsys.errors import ArtifactError
from recsys.retrieval import index, load_fused
from serving.runtime import RecommenderRuntime
from serving.warming import warm_up


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_toy_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_bundle_is_read_back_as_it_was_written(path: Path) -> None:
    bundle = Bundle.load(path)
    assert bundle.catalog.num_items == NUM_ITEMS
    assert bundle.item_counts.dtype == np.int64
    assert bundle.item_counts.sum() == 72
    assert bundle.report == REPORT
    assert bundle.manifest.metrics == REPORT["models"]["generator"]
    assert bundle.manifest.libraries["recsys"]
    histories = dict(bundle.histories())
    assert len(histories) == 12
    assert all(len(items) == 6 for items in histories.values())
    raw = bundle.tokenizer.encode_raw(bundle.embeddings.vectors)
    np.testing.assert_array_equal(raw, bundle.semantic_ids.raw_codes)


def test_the_loaded_model_recommends_what_the_written_one_did(path: Path, tmp_path: Path) -> None:
    write_toy_bundle(tmp_path / "again")
    history = Sequences.from_lists([[1, 2, 3]])
    first, second = (Bundle.load(p).recommender.recommend(history, 5) for p in (path, tmp_path / "again"))
    np.testing.assert_array_equal(first.items, second.items)
    np.testing.assert_array_equal(first.scores, second.scores)
    answer = RecommenderRuntime.from_bundle(Bundle.load(path)).recommend(["i1", "i2", "i3"], k=5, exclude_seen=False)
    assert [pick.item for pick in answer.picks] == first.items[0].tolist()


def test_a_bundle_with_a_fusion_serves_the_fused_list(tmp_path: Path) -> None:
    write_toy_bundle(tmp_path / "bundle", fusion=tmp_path / "fusion")
    bundle = Bundle.load(tmp_path / "bundle")
    made = load_fused(tmp_path / "fusion", bundle.recommender, bundle.embeddings.vectors)
    expected = made.recommend(Sequences.from_lists([[1, 2, 3]]), 5)
    runtime = RecommenderRuntime.from_bundle(bundle)
    assert not vars(bundle.catalog).keys() & {"_index", "titles"}
    warm_up(runtime)
    assert vars(bundle.catalog).keys() >= {"_index", "titles"}
    answer = runtime.recommend(["i1", "i2", "i3"], k=5, exclude_seen=False)
    assert (answer.source, answer.fallback_reason) == ("fusion", None)
    assert [pick.item for pick in answer.picks] == expected.items[0].tolist()
    assert [pick.score for pick in answer.picks] == pytest.approx(expected.scores[0].tolist(), abs=1e-5)
    generated = bundle.recommender.recommend(Sequences.from_lists([[1, 2, 3]]), 5)
    assert expected.items[0].tolist() != generated.items[0].tolist()
    filtered = runtime.recommend(["i1", "i2"], k=20, categories=["Noir"])
    assert sorted(pick.item for pick in filtered.picks) == list(range(3, 40, 4))
    assert runtime.recommend([], k=3).source == "popularity"


def test_a_bundle_without_a_fusion_has_none(path: Path) -> None:
    assert Bundle.load(path).fused is None
    answer = RecommenderRuntime.from_bundle(Bundle.load(path)).recommend(["i1"], k=3)
    assert answer.source == "generator"


def test_a_large_catalogue_brings_the_index_of_its_content(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not (path / "content").exists()
    built = Bundle.load(path).content.index
    monkeypatch.setattr(index, "_FLAT_UP_TO", NUM_ITEMS - 1)
    write_toy_bundle(path)
    with monkeypatch.context() as patched:
        patched.setattr(index, "make_shards", lambda *_: pytest.fail("builds the index at the start of a service"))
        bundle = Bundle.load(path)
        assert bundle.content.index.kind == "hnsw"
    assert bundle.content is bundle.content
    np.testing.assert_array_equal(bundle.content.index.vectors, built.vectors)
    queries = built.vectors[:4]
    np.testing.assert_array_equal(bundle.content.index.search(queries, 5).items, built.search(queries, 5).items)
    assert RecommenderRuntime.from_bundle(bundle).recommend(["i1"], k=3).source == "generator"
    for file in ("index-00000.faiss", "unit_vectors.safetensors"):
        write_toy_bundle(path)
        (path / "content" / file).write_bytes(b"other")
        _refuses(path, rf"content/{re.escape(file)} was changed")


def test_a_model_without_words_says_why_it_gives_no_reasons(path: Path) -> None:
    assert Bundle.load(path).no_reasons == (
        "the model of toy knows no words; reasons need a run with generator.model.lm"
    )


def test_a_damaged_fusion_is_refused(tmp_path: Path) -> None:
    write_toy_bundle(tmp_path / "bundle", fusion=tmp_path / "fusion")
    (tmp_path / "bundle" / "fusion" / "ranker.json").unlink()
    _refuses(tmp_path / "bundle", r"fusion/ranker\.json is missing")


def test_the_version_names_the_content(path: Path, tmp_path: Path) -> None:
    version = Bundle.load(path).manifest.model_version
    assert write_toy_bundle(tmp_path / "same").model_version == version
    assert write_toy_bundle(tmp_path / "other", seed=1).model_version != version


def test_histories_are_the_same_piece_by_piece(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(Bundle.load(path).histories())
    monkeypatch.setattr("recsys.data.sequences._BLOCK", 9)
    write_toy_bundle(tmp_path / "pieces")
    assert list(Bundle.load(tmp_path / "pieces").histories()) == whole
    assert len(whole) == NUM_USERS


def test_nothing_in_a_bundle_can_execute(path: Path) -> None:
    suffixes = {file.suffix for file in path.rglob("*") if file.is_file()}
    assert suffixes == {".json", ".parquet", ".safetensors"}


@pytest.mark.parametrize("name", ["model", "trie"])
def test_a_changed_missing_or_foreign_file_is_refused_in_one_line(path: Path, name: str) -> None:
    weights = path / "generator" / f"{name}.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    _refuses(path, rf"generator/{name}\.safetensors was changed")
    weights.unlink()
    _refuses(path, rf"generator/{name}\.safetensors is missing")
    write_toy_bundle(path)
    (path / "extra.pkl").write_bytes(b"x")
    _refuses(path, r"extra\.pkl is not in the manifest")


def test_a_directory_that_is_no_bundle_is_refused_in_one_line(path: Path, tmp_path: Path) -> None:
    _refuses(tmp_path / "nothing", "manifest.json is missing")
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    _refuses(path, "format 99")
    (path / "manifest.json").write_text(json.dumps(manifest | {"files": 3}))
    _refuses(path, "build the bundle again")
    (path / "manifest.json").write_text("[")
    _refuses(path, "build the bundle again")


def test_writing_again_replaces_the_whole(path: Path) -> None:
    (path / "stale").write_text("")
    write_toy_bundle(path, seed=1)
    assert not (path / "stale").exists()
    Bundle.load(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["bundle"]


def _refuses(path: Path, pattern: str) -> None:
    with pytest.raises(ArtifactError, match=pattern) as caught:
        Bundle.load(path)
    assert "\n" not in str(caught.value)
