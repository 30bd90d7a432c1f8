"""What turns texts into trainable embeddings: a linear head on cached vectors, or the model itself, chunk by chunk.

Both share one interface, so that the training loop does not know which weights it trains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys.data import IntArray, Sequences
from recsys.encoder.alignment.config import AlignmentConfig
from recsys.encoder.alignment.gradient_cache import backward_in_chunks
from recsys.encoder.alignment.masked_language import MaskedLanguageModel
from recsys.encoder.alignment.profiles import UserWriter
from recsys.errors import ConfigError
from recsys.ranks import ALONE, Ranks

FloatArray = npt.NDArray[np.float32]
Loss = Callable[[Tensor], Tensor]


class Tower(Protocol):
    """Embeds items and profile texts."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimizer takes, each with its peak learning rate `lr`."""

    def backward(
        self, items: IntArray, profiles: tuple[IntArray, Sequences] | None, rng: np.random.Generator, loss_of: Loss
    ) -> float:
        """Add gradients of `loss_of` to the weights and return it.

        Args:
            items: int64 [M] items, the first rows of the embeddings.
            profiles: users (int64 [B]) and their histories, whose texts make the last B rows; None = no such rows.
            rng: draws the phrasings.
            loss_of: scalar of float [M (+ B), D].
        """

    def item_vectors(self, items: IntArray) -> FloatArray:
        """float32 [k, D] of the plain texts, without dropout."""

    def profile_vectors(self, users: IntArray, histories: Sequences) -> FloatArray:
        """float32 [k, D] of the plain profile texts, without dropout."""

    def weights(self) -> dict[str, Tensor]:
        """A copy of everything that training changes."""

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Put back what `weights` gave."""


_HEAD_MODULES = 2
"""What `append_head` appends: the linear map and the normalization."""


def append_head(model: Any, dim: int) -> Any:
    """Append v + W v + b, with W and b zero, and a normalization to a model of width `dim`; return the linear module.

    Linear, so that what is near stays near where behaviour says nothing, and with the residual so that weight decay
    pulls towards the encoder as it was. EasyRec's own projection, tanh(W h), starts anywhere. Both modules are
    sentence-transformers' own: loading them needs nothing of ours.
    """
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize

    head = Dense(
        dim,
        dim,
        activation_function=nn.Identity(),
        init_weight=torch.zeros(dim, dim),
        init_bias=torch.zeros(dim),
        use_residual=True,
    ).to(model.device)
    model.append(head)
    model.append(Normalize())
    return head


def apply_head(directory: Path, vectors: FloatArray) -> FloatArray:
    """float32 [n, D]: what the tuned model in `directory` makes of texts that its frozen base encodes as `vectors`.

    The same as encoding the texts again, without reading them.
    """
    from sentence_transformers import SentenceTransformer

    features = {"sentence_embedding": torch.from_numpy(vectors)}
    with torch.inference_mode():
        for module in list(SentenceTransformer(str(directory), device="cpu"))[-_HEAD_MODULES:]:
            features = module(features)
    return np.asarray(features["sentence_embedding"].numpy(), dtype=np.float32)


class FrozenTower:
    """The head over vectors that were encoded once."""

    def __init__(
        self,
        head: Any,
        items: FloatArray,
        profiles: dict[int, FloatArray],
        held_profiles: dict[int, FloatArray],
        config: AlignmentConfig,
    ) -> None:
        """Take what was encoded.

        Args:
            head: see `append_head`.
            items: float32 [V, N, D], of V phrasings.
            profiles: by user float32 [V, D], of the histories that training draws; empty if no view needs them.
            held_profiles: by user float32 [D], plain, of the histories that the step is chosen by.
            config: the learning rate.
        """
        self._head = head
        self._items = torch.from_numpy(items)
        self._profiles = profiles
        self._held_profiles = held_profiles
        self._config = config

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The head's weights."""
        return [{"params": list(self._head.parameters()), "lr": self._config.head_learning_rate}]

    def backward(
        self, items: IntArray, profiles: tuple[IntArray, Sequences] | None, rng: np.random.Generator, loss_of: Loss
    ) -> float:
        """See `Tower`. A user's text is the one that was encoded."""
        num_variants = len(self._items)
        inputs = self._items[rng.integers(num_variants, size=len(items)), items]
        if profiles is not None:
            drawn = rng.integers(num_variants, size=len(profiles[0])).tolist()
            texts = [self._profiles[user][row] for user, row in zip(profiles[0].tolist(), drawn, strict=True)]
            inputs = torch.cat([inputs, torch.from_numpy(np.stack(texts))])
        loss = loss_of(self._embed(inputs))
        torch.autograd.backward(loss)
        return loss.item()

    @torch.no_grad()
    def item_vectors(self, items: IntArray) -> FloatArray:
        """See `Tower`."""
        return np.asarray(self._embed(self._items[0, items]).cpu().numpy())

    @torch.no_grad()
    def profile_vectors(self, users: IntArray, histories: Sequences) -> FloatArray:
        """See `Tower`."""
        vectors = np.stack([self._held_profiles[user] for user in users.tolist()])
        return np.asarray(self._embed(torch.from_numpy(vectors)).cpu().numpy())

    def weights(self) -> dict[str, Tensor]:
        """See `Tower`."""
        return {name: value.detach().clone() for name, value in self._head.state_dict().items()}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """See `Tower`."""
        self._head.load_state_dict(weights)

    def _embed(self, vectors: Tensor) -> Tensor:
        features = self._head({"sentence_embedding": vectors.to(self._head.linear.weight.device)})
        return functional.normalize(features["sentence_embedding"], dim=1)


class LiveTower:
    """A sentence-transformers model, of which the top layers and the head are trained."""

    def __init__(
        self,
        model: Any,
        item_texts: Sequence[Sequence[str]],
        writer: UserWriter,
        config: AlignmentConfig,
        ranks: Ranks = ALONE,
    ) -> None:
        """`item_texts` holds the texts of all items, by phrasing; `writer` writes those of users.

        `ranks` read the chunks of a batch together.

        Raises:
            ConfigError: the model has no transformer layers, or fewer than are to be trained, or `mlm_weight` is above
                0 and the model cannot guess words.
        """
        self._model = model
        self._item_texts = item_texts
        self._writer = writer
        self._config = config
        self._ranks = ranks
        self._layers = trainable_parameters(model, config.trainable_layers)
        for parameter in model.parameters():
            parameter.requires_grad = False
        self._head = list(model[-2].parameters())
        for parameter in [*self._layers, *self._head]:
            parameter.requires_grad = True
        self._language = MaskedLanguageModel(model[0].model, model.tokenizer) if config.mlm_weight > 0 else None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Layers at their rate; the head, and the language head if there is one, at the head's."""
        new = self._head + (self._language.new_parameters() if self._language is not None else [])
        return [
            {"params": self._layers, "lr": self._config.learning_rate},
            {"params": new, "lr": self._config.head_learning_rate},
        ]

    def backward(
        self, items: IntArray, profiles: tuple[IntArray, Sequences] | None, rng: np.random.Generator, loss_of: Loss
    ) -> float:
        """See `Tower`. With `mlm_weight` one chunk of the texts, drawn at random, is masked and guessed as well."""
        num_variants = len(self._item_texts)
        texts = [
            self._item_texts[variant][item]
            for item, variant in zip(items.tolist(), rng.integers(num_variants, size=len(items)), strict=True)
        ]
        if profiles is not None:
            users, histories = profiles
            drawn = rng.integers(num_variants, size=len(users)).tolist()
            texts += [
                self._writer.write(history.tolist(), user, variant)
                for history, user, variant in zip(histories, users.tolist(), drawn, strict=True)
            ]
        self._model.train()
        # Texts of similar length share a chunk; the embeddings are put back in order before the loss.
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        size = self._config.chunk_size
        chunks = [self._features([texts[row] for row in order[at : at + size]]) for at in range(0, len(order), size)]
        place = torch.empty(len(order), dtype=torch.int64)
        place[order] = torch.arange(len(order))
        place = place.to(self._model.device)
        loss = backward_in_chunks(
            chunks, self._embed, lambda rows: loss_of(functional.embedding(place, rows)), self._ranks
        ).item()
        if self._language is not None:
            guessed, guess = int(rng.integers(len(chunks))), 0.0
            if guessed % self._ranks.size == self._ranks.rank:
                masked = self._config.mlm_weight * self._language(chunks[guessed])
                torch.autograd.backward(masked)
                guess = masked.item()
            loss += self._ranks.sums([guess])[0]
        self._ranks.add_gradients(weight for group in self.parameter_groups() for weight in group["params"])
        return loss

    def item_vectors(self, items: IntArray) -> FloatArray:
        """See `Tower`."""
        return self._encode([self._item_texts[0][item] for item in items.tolist()])

    def profile_vectors(self, users: IntArray, histories: Sequences) -> FloatArray:
        """See `Tower`."""
        return self._encode(self._writer.write_all(histories, users, 0))

    def weights(self) -> dict[str, Tensor]:
        """See `Tower`."""
        return {
            name: parameter.detach().clone()
            for name, parameter in self._model.named_parameters()
            if parameter.requires_grad
        }

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """See `Tower`."""
        self._model.load_state_dict(weights, strict=False)

    def _features(self, texts: list[str]) -> dict[str, Any]:
        features = self._model.preprocess(texts)
        device = self._model.device
        return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in features.items()}

    def _embed(self, features: dict[str, Any]) -> Tensor:
        embeddings: Tensor = self._model(dict(features))["sentence_embedding"]
        return embeddings

    def _encode(self, texts: list[str]) -> FloatArray:
        self._model.eval()
        vectors = self._model.encode(
            texts, batch_size=self._config.chunk_size, show_progress_bar=False, convert_to_numpy=True
        )
        return np.asarray(vectors, dtype=np.float32)


def trainable_parameters(model: Any, num_layers: int | None) -> list[nn.Parameter]:
    """Weights of the top `num_layers` transformer layers; None = of the whole transformer.

    Raises:
        ConfigError: the model's first module is no transformer, its layers cannot be told, or there are fewer.
    """
    backbone = getattr(model[0], "model", None)
    if backbone is None:
        raise ConfigError(
            "encoder.alignment.trainable_layers is not 0, but the encoder has no transformer; set it to 0"
        )
    if num_layers is None:
        return list(backbone.parameters())
    count = backbone.config.num_hidden_layers
    stacks = [module for module in _module_lists(backbone) if len(module) == count]
    if len(stacks) != 1:
        raise ConfigError(
            f"encoder.alignment.trainable_layers is {num_layers}, but the layers of {backbone.config.model_type} "
            "cannot be told; set it to 0 or null"
        )
    if num_layers > count:
        raise ConfigError(f"encoder.alignment.trainable_layers is {num_layers}, but the encoder has {count} layers")
    return [parameter for layer in stacks[0][count - num_layers :] for parameter in layer.parameters()]


def _module_lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    """The outermost lists of modules."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _module_lists(child)
