"""The tokenizers to choose from: settings by `method`, and the class that each of them builds."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from recsys.tokenizer.config import RKMeansConfig, RQVAEConfig
from recsys.tokenizer.das.config import DASConfig
from recsys.tokenizer.mpq_config import MPQConfig

TokenizerConfig = Annotated[RQVAEConfig | RKMeansConfig | MPQConfig | DASConfig, Field(discriminator="method")]
"""One of the tokenizers' settings; the key `method` says which."""
