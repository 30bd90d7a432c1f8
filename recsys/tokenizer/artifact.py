"""How a fitted tokenizer lies on disk: `tokenizer.json` (config) and `tokenizer.safetensors` (arrays)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from recsys.config import StrictConfig
from recsys.errors import ArtifactError
from recsys.files import atomic_directory, write_json
from recsys.tokenizer.choice import TokenizerConfig
from recsys.tokenizer.residual import FloatArray
from recsys.tokenizer.validation import check_shape

if TYPE_CHECKING:
    from torch import nn

_CONFIG_FILE = "tokenizer.json"
_TENSOR_FILE = "tokenizer.safetensors"
_FORMAT = 1


def save_tokenizer(
    directory: Path,
    config: StrictConfig,
    codebooks: list[FloatArray],
    tensors: Mapping[str, np.ndarray[Any, Any]],
) -> None:
    """Write the directory, whole or not at all."""
    arrays = {f"codebook.{level}": codebook for level, codebook in enumerate(codebooks)} | dict(tensors)
    with atomic_directory(directory) as temporary:
        write_json(temporary / _CONFIG_FILE, {"format": _FORMAT, "config": config.model_dump(mode="json")})
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary / _TENSOR_FILE)


def load_config(directory: Path) -> TokenizerConfig:
    """The config of a saved tokenizer. Raises ArtifactError when it is missing, damaged or of another format."""
    path = directory / _CONFIG_FILE
    try:
        content = json.loads(path.read_text())
        if content["format"] != _FORMAT:
            raise ArtifactError(f"{path} has format {content['format']}, this version reads {_FORMAT}; fit it again")
        adapter: TypeAdapter[TokenizerConfig] = TypeAdapter(TokenizerConfig)
        return adapter.validate_python(content["config"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise ArtifactError(f"cannot read the tokenizer's config {path}: {error}") from error


def load_tensors(directory: Path, required: set[str]) -> tuple[list[FloatArray], dict[str, np.ndarray[Any, Any]]]:
    """The codebooks and the other arrays; raises ArtifactError when a required one or a codebook between is missing."""
    path = directory / _TENSOR_FILE
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"cannot read the tokenizer's arrays {path}: {error}") from error
    codebooks = take_codebooks(arrays, "", directory)
    if missing := required - arrays.keys():
        raise ArtifactError(f"{path} lacks {', '.join(sorted(missing))}; fit the tokenizer again")
    return codebooks, arrays


def take_codebooks(tensors: dict[str, np.ndarray[Any, Any]], prefix: str, directory: Path) -> list[FloatArray]:
    """The arrays `{prefix}codebook.0`, `.1`, ..., taken out of `tensors`.

    Raises:
        ArtifactError: a number is left out.
    """
    count = sum(name.startswith(f"{prefix}codebook.") for name in tensors)
    names = [f"{prefix}codebook.{level}" for level in range(count)]
    if missing := [name for name in names if name not in tensors]:
        raise ArtifactError(f"{directory} lacks {', '.join(missing)}; fit the tokenizer again")
    return [tensors.pop(name) for name in names]


def load_network(network: nn.Module, tensors: Mapping[str, np.ndarray[Any, Any]], prefix: str, directory: Path) -> None:
    """Fill `network` with the arrays `{prefix}.{parameter}`, in double precision and frozen.

    Raises:
        ArtifactError: an array is missing, has another shape than the parameter, or holds NaN or infinity.
    """
    import torch  # here, because configs are read without the seconds that it takes

    state = {}
    for name, value in network.state_dict().items():
        if (array := tensors.get(f"{prefix}.{name}")) is None:
            raise ArtifactError(f"{directory} lacks {prefix}.{name}; fit the tokenizer again")
        check_shape(array, tuple(value.shape), f"{prefix}.{name}", directory)
        state[name] = torch.from_numpy(array)
    network.double().requires_grad_(False).load_state_dict(state)
