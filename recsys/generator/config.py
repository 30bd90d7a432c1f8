"""Settings of the generator: the model's shape and size, and the width of its search."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from recsys.config import StrictConfig


class LoraConfig(StrictConfig):
    """Low-rank adapters on the linear maps of a language model (arXiv 2106.09685)."""

    rank: int = Field(default=16, ge=1)
    """Rank of the adapters."""
    alpha: float = Field(default=32, gt=0)
    """Scale of the adapters; they are multiplied by alpha / rank."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout on the adapters' inputs while training."""


class LanguageModelConfig(StrictConfig):
    """A pretrained causal language model as the body of the generator."""

    name: str = "smollm2-135m-instruct"
    """An asset (`recsys assets list`), a directory in the format of transformers, or a name on the Hub, for example
    `Qwen/Qwen3-0.6B` with a GPU."""
    tuning: Literal["lora", "full", "frozen"] = "lora"
    """Which of the model's own weights are trained. What the catalogue brings with it (the rows of its semantic IDs, on
    the way in and on the way out) always is: adapters alone would leave new tokens as they were initialised."""
    lora: LoraConfig = LoraConfig()
    """The adapters, with `tuning: lora`."""
    load_in: Literal["float32", "8bit"] = "float32"
    """`8bit`: the model's own linear maps have 8-bit weights while adapters are fitted (LLM.int8, arXiv 2208.07339;
    extra `quantized`), a quarter of their memory. What is saved and served is float32 again, with the adapters added.
    """

    @model_validator(mode="after")
    def _eight_bits_are_frozen(self) -> LanguageModelConfig:
        if self.load_in == "8bit" and self.tuning == "full":
            raise ValueError("load_in 8bit holds weights that cannot be trained; set tuning to lora or frozen")
        return self


class ModelConfig(StrictConfig):
    """Size of a model trained from scratch (`nano`: a few million parameters), or a language model to go on from."""

    shape: Literal["nested", "flat", "any_order"] = "nested"
    """`nested`: one position an item and a depth decoder. `flat`: semantic IDs are tokens of the LM's vocabulary.
    `any_order`: as `nested`, but an item's codes are a set, emitted in the order in which the model is sure of them;
    for tokenizers with parallel codebooks."""
    body: Literal["gpt2", "llama"] = "gpt2"
    """Architecture of the causal transformer body (a transformers `model_type`)."""
    hidden_size: int = Field(default=128, ge=8)
    """Width of the body."""
    num_layers: int = Field(default=2, ge=1)
    """Transformer blocks of the body."""
    num_heads: int = Field(default=2, ge=1)
    """Attention heads of the body."""
    dropout: float = Field(default=0.4, ge=0, lt=1)
    """Dropout on inputs, attention and residual branches while training."""
    max_history: int = Field(default=50, ge=1)
    """Items of a history that the model sees: the most recent ones."""
    item_residuals: bool = True
    """Nested and any-order shapes: a learned vector an item, from zero. It is added to the item's input, and the mean
    over the items below a trie node is that node's output vector beside its code's. Codes carry what similar items
    share; residuals carry what sets an item apart once it has been seen often enough."""
    text_input: bool = True
    """Nested and any-order shapes: add a projection of the item's embedding to its input, when embeddings are given."""
    confidence_order: float = Field(default=1.0, ge=0, le=1)
    """Any-order shape: share of training targets whose codes are taken in the order of the model's confidence, as in
    decoding; the others take a random one. At 1 the loss is the likelihood that decoding uses; random orders for
    half of the targets, or for all, cost recall where it was measured (Amazon Scientific, one seed)."""

    lm: LanguageModelConfig | None = None
    """Nested and flat shapes: a pretrained language model takes the place of a body trained from scratch; `body`,
    `hidden_size`, `num_layers` and `num_heads` are then the language model's."""

    @model_validator(mode="after")
    def _language_models_read_in_order(self) -> ModelConfig:
        if self.lm is not None and self.shape == "any_order":
            raise ValueError("lm needs shape nested or flat; a language model has no any-order decoder")
        return self

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ModelConfig:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_heads={self.num_heads}; change one of them"
            )
        return self


class GeneratorConfig(StrictConfig):
    """A generator; how it is fitted is the business of `training`."""

    model: ModelConfig = ModelConfig()
    """Shape and size."""
    beams: int = Field(default=50, ge=1)
    """Beams of the search when recommending; raised to k when k is larger."""
    session_cache_mib: int = Field(default=256, ge=0)
    """Memory for histories that stay encoded between the requests of a session, so that a new event costs one short
    forward pass; the least recently used ones go first. 0 reads every history anew."""
    new_item_slots: int = Field(default=0, ge=0)
    """Places at the end of each list for the best items that joined after the fit, if it has none of them already. What
    a model never saw hardly ever wins against what it did, however well its code fits."""
