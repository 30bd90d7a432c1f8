"""Pretrained causal language models as bodies: loading, adapters, text in and text out. Knows no items and no tasks.

An asset, a directory or a name on the Hub, of any architecture of transformers that keeps packed sequences apart, goes
on from a cache, and has plain logits: that is tried out at loading, and what differs is refused. Weights are read from
safetensors or GGUF; no code of a model is executed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from recsys.assets import ASSETS, fetch
from recsys.errors import ArtifactError, AssetError
from recsys.files import write_json
from recsys.generator.body import CausalBody
from recsys.generator.config import LanguageModelConfig
from recsys.generator.lm.quantized import dequantize, quantize
from recsys.generator.lm.templates import Templates

_FILES, _WORDING = "lm", "templates.json"
"""Directory of a saved generator that holds the language model's configuration and text tokenizer."""


class Backbone(CausalBody):
    """A language model that is fed with vectors and asked for hidden states, and knows words beside.

    Args:
        model: the language model; its text embeddings and its text head stay its own.
        text_tokenizer: of the same model.
    """

    def __init__(self, model: PreTrainedModel, text_tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.transformer = model.base_model
        self.input_dropout = nn.Identity()
        # Tied heads are the embeddings under another name; one tensor must not be saved twice.
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        self.text_head: nn.Module | None = None if tied else model.get_output_embeddings()
        self.text_tokenizer = text_tokenizer
        self.templates = Templates.load()
        """The wording that the model is taught with, and asked in."""

    @property
    def text_embeddings(self) -> nn.Embedding:
        """The rows of the model's own vocabulary."""
        return cast(nn.Embedding, self.transformer.get_input_embeddings())

    @property
    def end_of_text(self) -> int:
        """The token that ends a text."""
        token = self.text_tokenizer.eos_token_id
        assert token is not None, "load_backbone has looked"
        return int(token)

    def text_tokens(self, text: str) -> list[int]:
        """Token numbers of a stretch of text, with nothing added at its ends."""
        tokens: list[int] = self.text_tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens

    def text(self, tokens: Sequence[int]) -> str:
        """The text of token numbers, as it stands."""
        decoded = self.text_tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(decoded)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """float32 [..., V] over the model's own vocabulary from hidden states [..., D]."""
        head = self.text_embeddings if self.text_head is None else self.text_head
        weight = cast(Tensor, head.weight)
        with self.mixed_precision(hidden.device):
            if self.text_head is not None:
                return cast(Tensor, self.text_head(hidden.to(weight.dtype))).float()
            return nn.functional.linear(hidden.to(weight.dtype), weight).float()

    def tune(self, config: LanguageModelConfig) -> None:
        """Say which weights are trained, and put adapters in place."""
        # Imported here: it takes seconds, and a served model has no adapters left.
        from peft import LoraConfig as PeftLora
        from peft import inject_adapter_in_model

        self.requires_grad_(config.tuning == "full")
        if config.tuning == "lora":
            adapters = PeftLora(
                r=config.lora.rank,
                lora_alpha=config.lora.alpha,
                lora_dropout=config.lora.dropout,
                target_modules="all-linear",
            )
            inject_adapter_in_model(adapters, self.transformer)
            for name, parameter in self.transformer.named_parameters():
                parameter.requires_grad_("lora_" in name)

    def merge_adapters(self) -> None:
        """Add the adapters to the weights that they adapt, in float32, and drop them."""
        from peft.tuners.lora import LoraLayer

        dequantize(self.transformer)
        for name, module in list(self.transformer.named_modules()):
            if isinstance(module, LoraLayer):
                module.merge()
                self.transformer.set_submodule(name, module.get_base_layer())

    def save_description(self, directory: Path) -> None:
        """Write what `from_description` reads into `directory`: architecture, text tokenizer, wording; no weights."""
        target = directory / _FILES
        target.mkdir()
        self.transformer.config.save_pretrained(target)
        self.text_tokenizer.save_pretrained(target)
        write_json(target / _WORDING, self.templates.model_dump(mode="json"))

    @classmethod
    def from_description(cls, directory: Path) -> Backbone:
        """The model that `save_description` described, with weights yet to be loaded.

        Raises:
            ArtifactError: a file is missing or damaged.
        """
        source = directory / _FILES
        try:
            config = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
            wording = Templates.model_validate_json((source / _WORDING).read_text())
        except (OSError, ValueError) as error:
            raise ArtifactError(f"generator: cannot read {source}: {_one_line(error)}") from error
        backbone = cls(AutoModelForCausalLM.from_config(config, trust_remote_code=False), tokenizer)
        backbone.templates = wording
        return backbone


def load_backbone(config: LanguageModelConfig, *, field: str = "generator.model.lm.name") -> Backbone:
    """The language model that `config` names, tuned as it says; errors name `field`, which gave its name.

    Raises:
        AssetError: there is no such model, or it has neither safetensors nor a GGUF file, or no tokenizer.
        ConfigError: it cannot be held in 8 bits.
    """
    model, tokenizer = load_causal_lm(config.name, field=field)
    backbone = Backbone(model, tokenizer)
    _try_out(config.name, model, backbone)
    if config.load_in == "8bit":
        quantize(backbone.transformer)
    backbone.tune(config)
    return backbone


def load_causal_lm(
    name: str, *, field: str, adapters: Sequence[Path] = ()
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A language model in float32 and its tokenizer, which has an end-of-text token.

    Args:
        name: an asset, a directory, or a name of the Hub.
        field: of the configuration that gave the name, for errors.
        adapters: directories of LoRA adapters, added to the weights one after another.

    Raises:
        AssetError: there is no such model, or it has neither safetensors nor a GGUF file, or no tokenizer.
        ArtifactError: an adapter cannot be read.
    """
    source: Path | str = fetch(name) if name in ASSETS else name
    ggufs = sorted(Path(source).glob("*.gguf")) if Path(source).is_dir() else []
    weights: dict[str, Any] = {"gguf_file": ggufs[0].name} if ggufs else {}
    options: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": False}
    if not ggufs:
        options["use_safetensors"] = True
    try:
        with _no_progress_bars():
            tokenizer = AutoTokenizer.from_pretrained(str(source), **weights, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(str(source), **weights, **options)
    except (OSError, ValueError, ImportError) as error:
        raise AssetError(
            f"{field} {name!r} must be a causal language model (an asset, a directory or a name "
            f"of the Hub) with a tokenizer and with safetensors or a GGUF file: {_one_line(error)}"
        ) from error
    if tokenizer.eos_token_id is None:
        raise AssetError(f"{field} {name!r}: the tokenizer has no end-of-text token")
    if ggufs:
        # How the file was quantized is no property of the weights that were read from it, which can be trained.
        del model.config.quantization_config
        model.is_quantized = False
    for adapter in adapters:
        model = _adapted(model, adapter)
    return model, tokenizer


def _adapted(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    # Imported here: it takes seconds, and most models have no adapter.
    from peft import PeftModel

    try:
        return cast(PreTrainedModel, PeftModel.from_pretrained(model, str(adapter)).merge_and_unload())
    except (OSError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"cannot read the adapter {adapter}: {' '.join(str(error).split())[:200]}") from error


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """A bar a tensor would drown the run's own."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@torch.no_grad()
def _try_out(name: str, model: PreTrainedModel, backbone: Backbone) -> None:
    """Raise AssetError unless packing, going on from a cache and the text head are what they are taken for."""
    backbone.eval()
    rows = backbone.text_embeddings(torch.arange(6).unsqueeze(0) % backbone.text_embeddings.num_embeddings)
    whole = backbone(rows)
    try:
        packed = backbone(rows[:, [0, 1, 2, 0, 1, 2]], torch.tensor([[0, 1, 2, 0, 1, 2]]))
        _, cache = backbone.prefill(rows[:, :3])
        visible = torch.ones(3, 6, dtype=torch.bool).tril(3).unsqueeze(0)
        further = backbone.extend(rows[:, 3:], cache, torch.tensor([[3, 4, 5]]), visible)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise AssetError(f"generator.model.lm.name {name!r} cannot be a body here: {_one_line(error)}") from error
    for what, found, expected in (
        ("packed sequences see each other", packed[:, 3:], whole[:, :3]),
        ("going on from a cache differs from reading", further, whole[:, 3:]),
        ("its text head is more than one matrix", backbone.text_logits(whole), model(inputs_embeds=rows).logits),
    ):
        if not torch.allclose(found, expected, atol=1e-3 * float(expected.abs().max())):
            raise AssetError(
                f"generator.model.lm.name {name!r} cannot be a body here: {what}; take Llama, Qwen3, GPT-2 or GPT-NeoX"
            )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
