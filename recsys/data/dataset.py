"""The way in: a configuration, a name or a folder becomes a checked data set; and the way out, an import
folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import polars as pl
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from recsys.config import read_yaml
from recsys.data.catalog import Catalog
from recsys.data.config import AMAZON_NAME, MOVIELENS_NAMES, DataConfig, SplitConfig
from recsys.data.interactions import Interactions
from recsys.data.prepare import prepare
from recsys.data.sources import amazon, files, movielens
from recsys.data.sources.shards import Shard, find_shards
from recsys.data.spilled import scratch_directory
from recsys.errors import ConfigError, DataError
from recsys.files import atomic_directory

_IMPORT_FILES = {"items.parquet", "interactions.parquet"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A catalogue and its log, ready to be split."""

    catalog: Catalog
    interactions: Interactions
    name: str
    """The label that reports print."""
    config: DataConfig
    """What it was made with."""


def load_dataset(config: DataConfig, *, scratch: Path | None = None, threads: int | None = None) -> Dataset:
    """Fetch or read the source, check it, and prepare it as `config` says.

    Args:
        config: what, and how.
        scratch: a directory for what does not fit into memory; it is emptied before and removed afterwards. None: one
            where the system keeps temporary files.
        threads: for the part that is worked on there; None: one a processor.

    Raises:
        DataError: a table is malformed or a step leaves nothing.
        ConfigError: an Amazon category or a column of the map does not exist, or a URL needs a missing package.
        AssetError: a download failed.
    """
    only_interacted = config.catalog == "interacted"
    with scratch_directory(scratch) as directory:
        if config.source == "files":
            raw = files.load(config, directory)
        elif isinstance(config.path, Path) and files.is_import_folder(config.path):
            raw = files.load(DataConfig(source="files", path=config.path), directory)
        elif config.source == "movielens":
            raw = movielens.load(config.dataset_name, _folder(config))
        else:
            raw = amazon.load(config.dataset_name, _folder(config))
            only_interacted = config.catalog != "all"
        catalog, interactions = prepare(
            raw, config, only_interacted=only_interacted, scratch=directory / "log", threads=threads
        )
    return Dataset(catalog=catalog, interactions=interactions, name=config.dataset_name, config=config)


def source_files(config: DataConfig) -> list[Shard]:
    """The files under `config.path` that `load_dataset` reads.

    Raises:
        ConfigError, DataError: the store of a URL cannot be asked.
    """
    if config.path is None:
        return []
    if config.source == "files":
        return [shard for table in (config.items, config.interactions) for shard in find_shards(config.path, table)]
    folder = Path(config.path)
    if files.is_import_folder(folder):
        names = sorted(_IMPORT_FILES)
    else:
        names = sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    return [Shard(name=name, path=str(folder / name), store=None) for name in names]


def fingerprints(config: DataConfig) -> dict[str, str]:
    """By file, what changes with its content: know by it whether the data under `config.path` have changed.

    Raises:
        ConfigError: a URL needs a missing package.
        DataError: a file is missing, or its store does not answer.
    """
    shards = source_files(config)
    missing = [shard.path for shard in shards if not shard.is_there()]
    if missing or (config.path is not None and not shards):
        raise DataError(f"data.path: no {', '.join(missing) or f'files in {config.path}'}; check the path")
    # A table of one file goes by the file's name, unless both do and have the same.
    tables = {config.items, config.interactions}
    bare = len({PurePosixPath(table).name for table in tables}) == len(tables)
    return {
        PurePosixPath(shard.name).name if bare and shard.name in tables else shard.name: shard.fingerprint()
        for shard in shards
    }


def _folder(config: DataConfig) -> Path | None:
    return None if config.path is None else Path(config.path)


def resolve(name_or_path: str) -> DataConfig:
    """The configuration behind what a user types: a known name, a folder in the import format, or a YAML
    file.

    A YAML file is either a `data` section or a run's configuration that has one. Relative paths in it are
    relative to the working directory, as on the command line.

    Raises:
        ConfigError: nothing of that name exists, or the YAML is malformed.
    """
    if "://" in name_or_path:
        return DataConfig(source="files", path=name_or_path)
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        return _read_config(path)
    if path.is_dir():
        return DataConfig(source="files", path=path)
    if name_or_path in MOVIELENS_NAMES:
        return DataConfig(source="movielens", name=name_or_path)
    if re.fullmatch(AMAZON_NAME, name_or_path):
        # The files of 2014 and 2018 come as 5-core; the full log of 2023 is cut to the same.
        minimum = 5 if name_or_path.startswith("amazon-2023") else 1
        return DataConfig(
            source="amazon", name=name_or_path, min_user_interactions=minimum, min_item_interactions=minimum
        )
    raise ConfigError(
        f"{name_or_path!r} is neither a folder, nor a .yaml file, nor a known data set "
        f"({', '.join(MOVIELENS_NAMES)}, amazon-YEAR/CATEGORY; see `recsys data list`)"
    )


def _read_config(path: Path) -> DataConfig:
    values = read_yaml(path)
    try:
        return DataConfig.model_validate(values.get("data", values))
    except ValidationError as error:
        raise ConfigError(f"{path}: {'; '.join(map(_explain, error.errors()))}") from error


def _explain(details: ErrorDetails) -> str:
    field = ".".join(["data", *map(str, details["loc"])])
    if details["type"] == "extra_forbidden":
        model = SplitConfig if details["loc"][0] == "split" else DataConfig
        return f"unknown key {field}; the keys are {', '.join(model.model_fields)}"
    if details["type"] == "value_error":
        return f"{field}: {details['ctx']['error']}"
    return f"{field}: {details['msg']}, found {details['input']!r}"


def write_import_folder(dataset: Dataset, folder: Path) -> None:
    """Write `items.parquet` and `interactions.parquet`, whole or not at all; `resolve(folder)` reads them
    back.

    Raises:
        DataError: the folder exists and holds anything else, which would be lost.
    """
    if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - _IMPORT_FILES):
        raise DataError(f"{folder}: exists and holds other files; choose a new folder")
    frame = dataset.interactions.frame
    unknown = [name for name in ("rating", "timestamp") if frame[name].null_count() == len(frame)]
    user_ids = pl.Series(dataset.interactions.user_ids, dtype=pl.String)
    item_ids = dataset.catalog.frame["item_id"]
    events = frame.select(
        user_ids.gather(frame["user"]).alias("user_id"),
        item_ids.gather(frame["item"]).alias("item_id"),
        pl.exclude("user", "item", *unknown),
    )
    with atomic_directory(folder) as temporary:
        dataset.catalog.frame.write_parquet(temporary / "items.parquet")
        events.write_parquet(temporary / "interactions.parquet")
