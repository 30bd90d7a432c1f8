"""The claim: a catalogue of ten million items and a log of a hundred million events fit two cores and 16 GiB.

Writes synthetic worlds of rising size as sharded Parquet and takes each through `recsys run`, stage by stage, every one
in a process of its own that is ended above 16 GiB, then through an index and `recsys recommend` for 10,000 users. A
page in the folder, scale.html, shows how time and memory of each step grow with the catalogue. Then the generator
learns from all of logs of a million to a hundred million events over one catalogue of 10,000 items: what one costs.

    recsys bench scale [--sizes 10000 100000 1000000 10000000] [--logs 1000000 10000000 100000000] [--folder FOLDER]

What is finished in the folder is not done again. A world: items in categories of a hundred, with titles of a category's
words and of an item's own. Users stay in a category, go on to the one that follows it or to any; within it few items
have most of the events. The log comes in thirty files by time, in each of which a user appears at most once. The text
model is a table of random vectors of words, since a transformer would take days for ten million titles on two cores;
the generator is small for the same reason, reads a log once, and of the first part's no more than 50,000 users.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
import polars as pl
import psutil
import yaml

from feature_store import StoredItem
from recsys.bundle import Bundle
from recsys.encoder import ItemEmbeddings
from recsys.evaluation.html import figure_html, page, section
from recsys.files import write_json
from recsys.generator.filters import Eq, Equality
from recsys.generator.trie import ItemTrie
from recsys.retrieval.index import ItemIndex
from recsys.tokenizer import SemanticIds
from serving.overlay import Overlay
from serving.runtime import RecommenderRuntime
from serving.warming import warm_up

_LIMIT = 16 << 30
"""Bytes that a process may have in memory, shared ones too."""
_CORES = os.cpu_count() or 1
_STAGES = {"data": _CORES, "encode": 1, "tokenize": 1, "train": 1, "evaluate": 1, "bundle": 1}
"""With their threads. More would help some, and cost all of them where other programs want the cores too."""
_LISTED, _K = 10_000, 20
"""Users that get lists, and items of each."""
_ASKED, _CHANGED = 100, 10
"""Lists that a service makes, one by one; filters and searches that it has not had before, and items that it adds."""
_LEARNED_FROM, _LOG_ITEMS = 50_000, 10_000
"""Users whose sequences the generator of a large catalogue sees; items of the catalogue under large logs."""
_A_CATEGORY, _A_USER, _AN_ITEM = 100, 20, 10
"""Items of a category; events of a user and of an item."""
_SHARDS = 30
_WORDS, _DIM = 1 << 14, 64
_STAY, _GO_ON = 0.6, 0.25
_BLOCK = 1 << 19


def main(arguments: list[str]) -> dict[str, Any]:
    """Seconds, CPU seconds and the most MiB that a step had in memory, by size; the powers that they grow with."""
    parser = argparse.ArgumentParser(prog="recsys bench scale", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**power for power in range(4, 8)], help="items")
    parser.add_argument("--logs", type=int, nargs="+", default=[10**power for power in range(6, 9)], help="events")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/scale"), help="for worlds and runs; 20 GB at 10 million"
    )
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    write_text_model(folder / "words")
    rows = [_catalogue(folder, size) for size in sorted(options.sizes)]
    logs = [_log(folder, events) for events in sorted(options.logs)]
    growth = {
        step: {
            measure: round(_power([row["steps"][step][measure] for row in rows], [row["items"] for row in rows]), 2)
            for measure in ("cpu_seconds", "peak_mib")
        }
        for step in rows[0]["steps"]
        if len(rows) > 1
    }
    (folder / "scale.html").write_text(_page(rows))
    return {
        "limit_gib": _LIMIT >> 30,
        "largest_peak_gib": round(max(each["peak_mib"] for row in rows for each in row["steps"].values()) / 1024, 2),
        "train_microseconds_a_further_event": [
            round(
                1e6 * (log["cpu_seconds"] - before["cpu_seconds"]) / (log["train_events"] - before["train_events"]), 2
            )
            for before, log in pairwise(logs)
        ],
        "growth": growth,
        "rows": rows,
        "logs": logs,
    }


def _catalogue(folder: Path, size: int) -> dict[str, Any]:
    """All steps of a size."""
    world, run = folder / f"world-{size}", folder / f"run-{size}"
    write_world(world, size, size * _AN_ITEM // _A_USER)
    commands = _stages(folder, world, run, {"max_users": _LEARNED_FROM})
    users, lists = run / "users.parquet", run / "lists"
    commands |= {step: ["-P", __file__, step, str(run)] for step in ("trie", "index", "load")}
    recommend = ["recommend", str(run / "made"), str(lists), "--users", str(users), "--k", str(_K)]
    commands["recommend"] = ["-m", "recsys", *recommend]
    steps = {}
    for step, command in commands.items():
        if step == "recommend" and not users.exists():
            histories = pl.scan_parquet(run / "made" / "bundle" / "histories.parquet")
            histories.head(_LISTED).collect().write_parquet(users)
        steps[step] = _kept(run, step, command)
    report = json.loads((run / "made" / "evaluate" / "report.json").read_text())
    return {
        "items": size,
        "events": size * _AN_ITEM,
        "input_mib": _size_mib(world),
        "run_mib": _size_mib(run / "made"),
        "recall@10": {name: round(each["recall@10"]["value"], 4) for name, each in report["models"].items()},
        "steps": steps,
    }


def _log(folder: Path, events: int) -> dict[str, Any]:
    """What the generator's stage takes to learn from all of a log."""
    world, run = folder / f"log-{events}", folder / f"run-log-{events}"
    write_world(world, _LOG_ITEMS, events // _A_USER)
    commands = _stages(folder, world, run, {})
    steps = {stage: _kept(run, stage, commands[stage]) for stage in ("data", "encode", "tokenize", "train", "evaluate")}
    report = json.loads((run / "made" / "evaluate" / "report.json").read_text())
    return {
        "train_events": report["protocol"]["num_train_interactions"],
        **steps["train"],
        "recall@10": {name: round(each["recall@10"]["value"], 4) for name, each in report["models"].items()},
    }


def _stages(folder: Path, world: Path, run: Path, fit: Mapping[str, int]) -> dict[str, list[str]]:
    """By stage, the command that brings a run of a world to it."""
    run.mkdir(exist_ok=True)
    config = run / "scale.yaml"
    config.write_text(yaml.safe_dump(_config(folder, world, fit)))
    made = ["-m", "recsys", "run", str(config), f"run.dir={run}", "run.name=made"]
    return {stage: [*made, f"run.threads={threads}", "--until", stage] for stage, threads in _STAGES.items()}


def _kept(run: Path, step: str, command: Sequence[str]) -> dict[str, Any]:
    """What a step took; it is taken now, unless it was before."""
    file = run / f"{step}.json"
    if not file.exists():
        _discard(run, step)
        write_json(file, _measured(command, run))
        print(run.name, step, file.read_text(), file=sys.stderr, flush=True)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def _config(folder: Path, world: Path, fit: Mapping[str, int]) -> dict[str, Any]:
    return {
        "data": {
            "source": "files",
            "path": str(world),
            "items": "items/*.parquet",
            "interactions": "interactions/*.parquet",
        },
        "encoder": {"model": str(folder / "words")},
        "tokenizer": {"method": "rkmeans", "levels": 4},
        "generator": {
            "model": {
                "hidden_size": 32,
                "num_layers": 1,
                "num_heads": 1,
                "dropout": 0.0,
                "max_history": 20,
                # A learned vector for each of ten million items would be the model.
                "item_residuals": False,
            },
        },
        "fit": {"epochs": 1, "validation_users": 256, **fit},
        "evaluation": {"baselines": ["popularity"], "max_users": 1000},
    }


def _discard(run: Path, step: str) -> None:
    """What a step that was killed has left: going on from there, it would seem to take less than it does."""
    made = run / "made"
    further = {"encode": run / "cache", "recommend": run / "lists"}
    for left in (made / step, made / f"{step}.partial", further.get(step)):
        if left is not None:
            shutil.rmtree(left, ignore_errors=True)


def _measured(command: Sequence[str], run: Path) -> dict[str, Any]:
    """Run a program of Python to its end; what it printed in braces, if anything, is added."""
    environment = {**os.environ, "RECSYS_CACHE": str(run / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    started = time.monotonic()
    with (run / "output.txt").open("w+") as output:
        process = subprocess.Popen([sys.executable, *command], stdout=output, env=environment)
        status, used = _watched(process.pid)
        if status:
            raise RuntimeError(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
        output.seek(0)
        last = (output.read().splitlines() or [""])[-1]
    return {
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_mib": round(used.ru_maxrss / 1024),
        **(json.loads(last) if last.startswith("{") else {}),
    }


def _watched(pid: int) -> tuple[int, resource.struct_rusage]:
    """Wait for the end of a process, and end it when it has more than `_LIMIT` in memory."""
    program = psutil.Process(pid)
    while True:
        ended, status, used = os.wait4(pid, os.WNOHANG)
        if ended:
            return status, used
        # Ones that ended in between have nothing any more.
        with suppress(psutil.NoSuchProcess):
            processes = [program, *program.children(recursive=True)]
            if sum(each.memory_info().rss for each in processes) > _LIMIT:
                for each in processes:
                    each.kill()
        time.sleep(0.2)


def _trie(run: Path) -> dict[str, Any]:
    """The tree of the catalogue alone, which the stage `train` has built too."""
    ids = SemanticIds.load(run / "made" / "tokenize" / "semantic_ids")
    started = time.process_time()
    trie = ItemTrie(ids.codes, ids.codebook_sizes)
    built = time.process_time() - started
    trie.save(run / "trie.safetensors", ids.codes)
    return {
        "build_cpu_seconds": round(built, 2),
        "file_mib": round((run / "trie.safetensors").stat().st_size / 2**20, 1),
    }


def _index(run: Path) -> dict[str, Any]:
    """The kind that the largest catalogues take, at every size, and what it finds of the nearest vectors."""
    vectors = ItemEmbeddings.load(run / "made" / "encode" / "embeddings").vectors.copy()
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    started = time.process_time()
    index = ItemIndex(vectors, "ivf_rabitq")
    built = time.process_time() - started
    queries = vectors[np.random.default_rng(0).choice(len(vectors), 100, replace=False)]
    queries = queries + 0.02 * np.random.default_rng(1).standard_normal(queries.shape, dtype=np.float32)
    started = time.process_time()
    found = index.search(queries, 10).scores
    searched = time.process_time() - started
    best = np.stack([np.sort(vectors @ query)[-10:] for query in queries])
    # By scores: titles that are the same have the same vectors.
    recall = float((found >= best[:, :1] - 1e-4).mean())
    index.save(run)
    return {
        "build_cpu_seconds": round(built, 2),
        "search_cpu_ms": round(1000 * searched / len(queries), 3),
        "recall@10": round(recall, 3),
        "file_mib": round(sum(path.stat().st_size for path in run.glob("index-*.faiss")) / 2**20, 1),
    }


def _load(run: Path) -> dict[str, Any]:
    """What a service holds for itself once it can answer, and what it takes to answer and to change its catalogue; the
    rest of what it reads are maps of files that all processes share."""
    runtime = RecommenderRuntime.from_bundle(Bundle.load(run / "made" / "bundle"))
    warm_up(runtime)
    private = _private_mib()
    random, num_items = np.random.default_rng(0), runtime.catalog.num_items

    def history() -> list[str]:
        begin = _A_CATEGORY * random.integers(num_items // _A_CATEGORY)
        return [f"i{begin + place}" for place in random.integers(_A_CATEGORY, size=_A_USER // 2)]

    def filtered(brand: int) -> object:
        return runtime.recommend(history(), k=_K, filter=Eq(eq=Equality(column="brand", value=f"b{brand}")))

    def search() -> object:
        title = runtime.catalog.titles[int(random.integers(num_items))] or ""
        return runtime.words.find(title.split()[-1], limit=_K)

    found = {
        "items": num_items,
        "private_mib": round(private),
        "list_cpu_ms": _median_cpu_ms(lambda _: runtime.recommend(history(), k=_K), _ASKED),
        "new_filter_cpu_ms": _median_cpu_ms(filtered, _CHANGED),
        "known_filter_cpu_ms": _median_cpu_ms(lambda _: filtered(0), _ASKED),
        "search_cpu_ms": _median_cpu_ms(lambda _: search(), _CHANGED),
    }
    overlay, latest = Overlay(), runtime

    def add(number: int) -> None:
        nonlocal overlay, latest
        item = StoredItem(item_id=f"new{number}", text='{"categories": ["c0"]}', number=number, is_removed=False)
        overlay = overlay.updated(number + 1, [item])
        latest = runtime.over(overlay, {}, previous=latest)

    return {
        **found,
        "add_cpu_ms": _median_cpu_ms(add, _CHANGED),
        "added_mib": round(_private_mib() - private),
        "list_after_adding_cpu_ms": _median_cpu_ms(lambda _: latest.recommend(history(), k=_K), _ASKED),
    }


def _private_mib() -> float:
    """Of this process; maps of files count as private while nobody else has them, and are left out."""
    return sum(each.anonymous for each in psutil.Process().memory_maps()) / 2**20


def _median_cpu_ms(work: Callable[[int], object], count: int) -> float:
    milliseconds = []
    for number in range(count):
        started = time.process_time()
        work(number)
        milliseconds.append(1000 * (time.process_time() - started))
    return round(float(np.median(milliseconds)), 2)


def _size_mib(folder: Path) -> float:
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20, 1)


def _power(values: Sequence[float], sizes: Sequence[int]) -> float:
    """Of the two largest sizes: what is fixed hides how the rest grows."""
    (small, large), (first, second) = list(pairwise(sizes))[-1], list(pairwise(values))[-1]
    return float(np.log(max(second, 1e-9) / max(first, 1e-9)) / np.log(large / small))


def _page(rows: Sequence[Mapping[str, Any]]) -> str:
    titles = {"cpu_seconds": "CPU seconds", "peak_mib": "Peak memory, MiB"}
    sections = []
    for measure, title in titles.items():
        figure = go.Figure(
            [
                go.Scatter(
                    x=[row["items"] for row in rows],
                    y=[row["steps"][step][measure] for row in rows],
                    name=step,
                    mode="lines+markers",
                )
                for step in rows[0]["steps"]
            ]
        )
        figure.update_xaxes(type="log", title="items of the catalogue; ten times as many events", dtick=1)
        figure.update_yaxes(type="log", title=title, dtick=1)
        figure.update_layout(template="plotly_white", height=480, margin={"t": 20, "b": 50})
        caption = "Both axes are logarithmic: what grows with the catalogue in proportion rises one decade a decade."
        sections.append(section(title, caption, figure_html(measure, figure)))
    lead = f"Each step in a process of its own, on {_CORES} cores, with at most {_LIMIT >> 30} GiB."
    return page("From ten thousand to ten million items", lead, sections)


def write_world(folder: Path, num_items: int, num_users: int) -> None:
    """Write `items/part-*.parquet` and `interactions/part-*.parquet`, whole once `_SUCCESS` is there."""
    if (folder / "_SUCCESS").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "items").mkdir(parents=True)
    (folder / "interactions").mkdir()
    random = np.random.default_rng(num_items)
    for number, begin in enumerate(range(0, num_items, _BLOCK)):
        items = np.arange(begin, min(begin + _BLOCK, num_items))
        _items(items, random).write_parquet(folder / "items" / f"part-{number:03d}.parquet")
    num_categories = max(2, num_items // _A_CATEGORY)
    category = random.integers(num_categories, size=num_users)
    names = _names("u", np.arange(num_users))
    for number in range(_SHARDS):
        chance = random.random(num_users)
        category = np.where(
            chance < _STAY,
            category,
            np.where(
                chance < _STAY + _GO_ON,
                (category + 1) % num_categories,
                random.integers(num_categories, size=num_users),
            ),
        )
        active = random.permutation(num_users)[: num_users * _A_USER // _SHARDS]
        item = (category[active] * _A_CATEGORY + _A_CATEGORY * random.random(len(active)) ** 2).astype(np.int64)
        pl.DataFrame(
            {
                "user_id": names.gather(active),
                "item_id": _names("i", np.minimum(item, num_items - 1)),
                "timestamp": np.sort(random.integers(86_400, size=len(active))) + 1_700_000_000 + number * 86_400,
                "event_type": np.where(random.random(len(active)) < 0.8, "view", "purchase"),
            }
        ).write_parquet(folder / "interactions" / f"part-{number:03d}.parquet")
    (folder / "_SUCCESS").touch()


def write_text_model(folder: Path) -> None:
    """A sentence-transformers model that is the mean of random vectors of words, float32 [16384, 64]."""
    if folder.is_dir():
        return
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    tokenizer = Tokenizer(WordLevel({"[UNK]": 0} | {f"w{word}": word + 1 for word in range(_WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    weights = np.random.default_rng(0).standard_normal((_WORDS + 1, _DIM), dtype=np.float32)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu").save(
        str(folder), create_model_card=False
    )


def _items(items: npt.NDArray[np.int64], random: np.random.Generator) -> pl.DataFrame:
    category = items // _A_CATEGORY
    # Three words that a category has, of which neighbours share two, and two of the item's own.
    words = [category * 7919, (category // 2) * 104_729 + 1, (category // 4) * 1_299_709 + 2]
    words = [word % _WORDS for word in words] + [random.integers(_WORDS, size=len(items)) for _ in range(2)]
    frame = pl.DataFrame({f"w{place}": word for place, word in enumerate(words)})
    title = frame.select(pl.concat_str([pl.format("w{}", pl.col(name)) for name in frame.columns], separator=" "))
    return pl.DataFrame(
        {
            "item_id": _names("i", items),
            "title": title.to_series(),
            "categories": pl.Series(_names("c", category // 10)).reshape((-1, 1)).arr.to_list(),
            "brand": _names("b", random.integers(1000, size=len(items))),
        }
    )


def _names(prefix: str, numbers: npt.NDArray[np.int64]) -> pl.Series:
    return pl.DataFrame({"n": numbers}).select(pl.format(prefix + "{}", pl.col("n"))).to_series()


if __name__ == "__main__":
    steps = {"trie": _trie, "index": _index, "load": _load}
    print(json.dumps(steps[sys.argv[1]](Path(sys.argv[2]))))
