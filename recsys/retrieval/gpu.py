"""Indexes on GPUs, where the installed Faiss has them: flat ones, and graphs of cuVS (CAGRA, arXiv 2308.15136).

faiss-cpu, faiss-gpu and faiss-gpu-cuvs install the same module; only the last can build a graph on a GPU. A graph that
was built is stored as one that the CPU searches too, and any Faiss reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from recsys.errors import ConfigError

_faiss: Any = faiss  # whose types know nothing of graphs on GPUs
LONGEST_LIST = 2048
"""Of what Faiss gives on a GPU."""


def has_cuvs() -> bool:
    """Whether the installed Faiss is built with cuVS."""
    return "CUVS" in str(faiss.get_compile_options())


def require_cuvs(*, needed_by: str) -> None:
    """Return if the installed Faiss builds graphs on a GPU that it finds.

    Raises:
        ConfigError: it is built without cuVS, or there is no GPU; says what to do.
    """
    if not has_cuvs():
        raise ConfigError(
            f"{needed_by}: needs the extra 'cuvs' (this Faiss is built without cuVS); "
            "install it with: make install-cuvs, or put faiss-gpu-cuvs in the place of faiss-cpu"
        )
    if faiss.get_num_gpus() == 0:
        raise ConfigError(
            f"{needed_by}: is built on a GPU, and Faiss finds none here; choose hnsw, or build it elsewhere"
        )


def build_cagra(vectors: npt.NDArray[np.float32], number: int, index: Any) -> None:
    """Build the graph of vectors (float32 [N, D]) on the GPU that the `number` falls to, and copy both into an empty
    IndexHNSWCagra, which gets the upper levels that the CPU enters it by."""
    require_cuvs(needed_by="an index of kind cagra")
    config = _faiss.GpuIndexCagraConfig()
    config.device = number % faiss.get_num_gpus()
    config.graph_degree = index.hnsw.nb_neighbors(0)
    config.intermediate_graph_degree = 2 * config.graph_degree
    on_gpu = _faiss.GpuIndexCagra(faiss.StandardGpuResources(), index.d, faiss.METRIC_INNER_PRODUCT, config)
    # Faiss keeps no copy of them on this side: they must outlive the graph.
    on_gpu.train(vectors)
    on_gpu.copyTo(index)


def copy_to_gpus(shards: Sequence[Any], kind: str) -> Any:
    """The index of all shards on GPUs, or None where Faiss has none, or nothing for the kind.

    A flat index is divided over all of them, the shards of a graph are laid on them in turn.
    """
    gpus = faiss.get_num_gpus()
    if gpus == 0 or kind not in ("flat", "cagra") or (kind == "cagra" and not has_cuvs()):
        return None
    if kind == "flat" and gpus > 1:
        options = faiss.GpuMultipleClonerOptions()
        options.shard = True
        return faiss.index_cpu_to_all_gpus(shards[0], co=options)
    resources = faiss.StandardGpuResources()
    copies = [faiss.index_cpu_to_gpu(resources, number % gpus, shard) for number, shard in enumerate(shards)]
    if len(copies) == 1:
        return copies[0]
    # Each shard has a thread that waits for its GPU.
    whole = _faiss.IndexShards(copies[0].d, True, True)
    for copy in copies:
        whole.add_shard(copy)
    return whole


def search_graph(
    index: Any, queries: npt.NDArray[np.float32], depth: int, *, breadth: int, num_vectors: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The best scores of each query and their items, float32 and int64 [B, depth], by a graph on GPUs.

    Args:
        index: of `copy_to_gpus`, of kind cagra.
        queries: float32 [B, D].
        depth: length of the lists, `LONGEST_LIST` at most.
        breadth: candidates that a search keeps, at least; never fewer than it lists, which cuVS refuses.
        num_vectors: in the index.
    """
    kept = _faiss.SearchParametersCagra(itopk_size=max(breadth, depth))
    scores, items = index.search(queries, depth, params=kept)
    items[items >= num_vectors] = -1  # cuVS has a number beyond all others for none
    return scores, items
