"""Packages that only some of the program's abilities need, and the one line that says so where they are absent."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from recsys.errors import ConfigError

Extra = Literal["gcs", "onnx", "otel", "quantized", "ray", "ray-serve", "s3", "trl"]

MODULES: dict[Extra, tuple[str, ...]] = {
    "gcs": ("gcsfs",),
    "onnx": ("onnx", "onnxscript"),
    "otel": ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http"),
    "quantized": ("bitsandbytes",),
    "ray": ("ray",),
    "ray-serve": ("ray", "grpc_reflection"),
    "s3": ("s3fs",),
    "trl": ("trl", "datasets"),
}
"""What is imported of each extra of pyproject.toml that something refuses to work without."""


def require_extra(extra: Extra, *, needed_by: str) -> None:
    """Return if the packages of an extra are installed; imports none of them.

    Args:
        extra: its name.
        needed_by: the setting, option or command that cannot do without, for the error.

    Raises:
        ConfigError: one is absent; says how to install it.
    """
    absent = [module for module in MODULES[extra] if not _is_there(module)]
    if absent:
        raise ConfigError(
            f"{needed_by}: needs the extra '{extra}' ({', '.join(absent)} not found); "
            f"install it with: pip install 'recsys[{extra}]'"
        )


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a package above it is absent
        return False
