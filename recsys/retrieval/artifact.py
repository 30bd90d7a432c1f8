"""A fusion as files: everything but the generator and the item vectors, which are artifacts of their own.

fusion.json      settings
ranker.json      weights, and how the ranker was chosen
items.safetensors    int64 item_counts [num_items] in training; int64 fitted [M], what SASRec and the counter know
sasrec/  skip_gram/  sasrec_index/  content_index/     each in the format of its module; the last with unit vectors too
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from recsys.data.sequences import IntArray
from recsys.errors import ArtifactError
from recsys.evaluation.baselines import SkipGram
from recsys.files import write_json
from recsys.generator import Recommender
from recsys.retrieval.config import FusionConfig
from recsys.retrieval.fusion import FusedRecommender
from recsys.retrieval.index import ItemIndex
from recsys.retrieval.pool import Pool
from recsys.retrieval.ranker import ConditionalLogit
from recsys.retrieval.sources import (
    GENERATOR,
    CounterSource,
    FloatArray,
    GeneratorSource,
    PopularitySource,
    Source,
    TowerSource,
)
from recsys.retrieval.towers import ContentTower, SasRecTower

_FORMAT = 1
_TOWER, _CONTENT = "sasrec_index", "content_index"


@dataclass(frozen=True, kw_only=True, eq=False)
class Retrieval:
    """The sources beside the generator, ready to propose.

    Args:
        config: depth and decay.
        item_counts: int64 [num_items], interactions in training.
        fitted: int64 [M], ascending: the items that `tower` and `counter` were fitted on.
        tower: SASRec.
        counter: the skip-gram counter.
        content: over the vectors of all items.
        tower_index: over the tower's vectors.
        content_index: over the content vectors.
    """

    config: FusionConfig
    item_counts: IntArray
    fitted: IntArray
    tower: SasRecTower
    counter: SkipGram
    content: ContentTower
    tower_index: ItemIndex
    content_index: ItemIndex

    @classmethod
    def build(
        cls,
        config: FusionConfig,
        *,
        item_counts: IntArray,
        fitted: IntArray,
        tower: SasRecTower,
        counter: SkipGram,
        vectors: FloatArray,
        work: Path | None = None,
    ) -> Retrieval:
        """Build the indices; `vectors` is float32 [num_items, D], the items' embeddings.

        With `work` they are built in that directory, where one that was killed goes on, and stay maps of its files.
        """
        kind = None if config.index == "auto" else config.index

        def index(name: str, of: FloatArray) -> ItemIndex:
            if work is None:
                return ItemIndex(of, kind)
            (work / name).mkdir(parents=True, exist_ok=True)
            return ItemIndex.build(work / name, of, kind)

        content = ContentTower(vectors, config.content_decay)
        return cls(
            config=config,
            item_counts=item_counts,
            fitted=fitted,
            tower=tower,
            counter=counter,
            content=content,
            tower_index=index(_TOWER, tower.item_vectors),
            content_index=index(_CONTENT, content.item_vectors),
        )

    def pool(self, generator: Recommender) -> Pool:
        """All sources together."""
        num_items = len(self.item_counts)
        sources: dict[str, Source] = {
            GENERATOR: GeneratorSource(generator),
            "sasrec": TowerSource(self.tower, self.fitted, num_items, self.tower_index),
            "skip_gram": CounterSource(self.counter, self.fitted, num_items),
            "content": TowerSource(self.content, num_items, num_items, self.content_index),
            "popularity": PopularitySource(self.item_counts),
        }
        return Pool(sources, self.item_counts == 0, self.config.depth)

    def save(self, directory: Path, ranker: ConditionalLogit, report: dict[str, Any]) -> None:
        """Write the retrieval and a ranker over it, with the report of its fit, into an existing directory."""
        write_json(directory / "fusion.json", {"format": _FORMAT, "config": self.config.model_dump(mode="json")})
        save_file({"item_counts": self.item_counts, "fitted": self.fitted}, directory / "items.safetensors")
        self.tower.save(directory / "sasrec")
        self.counter.save(directory / "skip_gram")
        for name, index in ((_TOWER, self.tower_index), (_CONTENT, self.content_index)):
            (directory / name).mkdir()
            index.save(directory / name)
        self.content.save(directory / _CONTENT)
        ranker.save(directory, report)

    @classmethod
    def load(cls, directory: Path, vectors: FloatArray) -> Retrieval:
        """Read what `save` wrote, over the item embeddings of the same run.

        Raises:
            ArtifactError: a file is missing or damaged, or the vectors are others.
        """
        try:
            facts = json.loads((directory / "fusion.json").read_text())
            if facts["format"] != _FORMAT:
                raise ArtifactError(f"fusion: {directory} has format {facts['format']}, this version reads {_FORMAT}")
            config = FusionConfig.model_validate(facts["config"])
            tensors = load_file(directory / "items.safetensors")
            item_counts, fitted = tensors["item_counts"], tensors["fitted"]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise ArtifactError(f"fusion: cannot read {directory}: {reason}; make it again") from error
        tower = SasRecTower.load(directory / "sasrec")
        is_saved = ContentTower.is_saved(directory / _CONTENT)  # not by earlier versions
        decay = config.content_decay
        content = ContentTower.load(directory / _CONTENT, vectors, decay) if is_saved else ContentTower(vectors, decay)
        return cls(
            config=config,
            item_counts=item_counts,
            fitted=fitted,
            tower=tower,
            counter=SkipGram.load(directory / "skip_gram"),
            content=content,
            tower_index=ItemIndex.load(directory / _TOWER, tower.item_vectors),
            content_index=ItemIndex.load(directory / _CONTENT, content.item_vectors),
        )


def load_fused(directory: Path, generator: Recommender, vectors: FloatArray) -> FusedRecommender:
    """The fused recommender of a saved retrieval over a generator and the item embeddings of the same run."""
    pool = Retrieval.load(directory, vectors).pool(generator)
    return FusedRecommender(pool, ConditionalLogit.load(directory))


def load_report(directory: Path) -> dict[str, Any]:
    """How the ranker of a saved fusion was chosen, and how well calibrated it was."""
    report: dict[str, Any] = json.loads((directory / "ranker.json").read_text())["report"]
    return report
