"""MPQ: parallel codebooks under a mixture of experts; an item is a set of codes (REG4Rec, arXiv 2508.15308).

The structure (experts with a codebook each, a router, one decoder) is the paper's as secondary sources report it; its
formulas were not at hand, so the losses are ours. With x an item, e_r = E_r(x) the output of expert r of M,
Z_r[c_r] its nearest code and h the router:

    h    = M softmax(W x)                             the mean weight is 1, so that codewords keep a sensible norm
    x^   = Dec( sum_r h_r (e_r + sg(Z_r[c_r] - e_r)) )                            a straight-through step an expert
    loss = ||x^ - x||^2 + beta mean_r ||e_r - sg(Z_r[c_r])||^2
         + decorrelation  mean over pairs r < s of ||C_rs||_F^2 / d,  C_rs = corr(e_r, e_s) over the batch
         + orthogonality  mean over pairs r < s of cos^2(e_r, e_s) of an item, outputs centred over the batch
         + balance        M sum_r (mean over the batch of softmax(W x)_r)^2

Decorrelation is in the manner of Barlow Twins (arXiv 2103.03230) across experts. Squared errors are sums over
dimensions and means over the batch. Codebooks are moving averages that start from k-means of the whole catalogue.
Once fitted, everything is arrays in double precision: an item gets the same codes alone and in company.

The router reads the item, which codes do not tell: `reconstruct` uses its mean over the catalogue.

Shapes: n items, B a batch, M experts, K codes of each, d their width.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from recsys.data import IntArray, Sequences
from recsys.errors import ArtifactError, DataError
from recsys.progress import progress_bar
from recsys.tokenizer.artifact import load_network, load_tensors, save_tokenizer
from recsys.tokenizer.collisions import resolve_sets
from recsys.tokenizer.mpq_config import MPQConfig
from recsys.tokenizer.networks import cosine_factor, endless_batches, mlp, squared_error
from recsys.tokenizer.quantizer import DEAD_CODE_SHARE, REVIVAL_SHARE, Quantized, ResidualQuantizer
from recsys.tokenizer.residual import DoubleArray, FloatArray, nearest_code, squared_distances
from recsys.tokenizer.semantic_ids import SemanticIds, check_codes
from recsys.tokenizer.validation import (
    check_embeddings,
    check_shape,
    check_taken,
    effective_codebook_size,
    num_codes,
    warn_about_usage,
)

_PARTS = ("experts", "router", "decoder")


class MPQTokenizer:
    """Experts in parallel: warm-up without codes, k-means of every expert's outputs, then joint training.

    Implements `SemanticIdTokenizer`; its semantic IDs are not `ordered`.
    """

    def __init__(self, config: MPQConfig) -> None:
        self.config = config
        self._codebooks: list[FloatArray] = []
        self._mean: DoubleArray = np.zeros(0)
        self._scale = 1.0
        self._gate: DoubleArray = np.zeros(0)
        self._experts = nn.ModuleList()
        self._router: nn.Module = nn.Identity()
        self._decoder: nn.Module = nn.Identity()

    @property
    def codebooks(self) -> list[FloatArray]:
        """One float32 [K, code_dim] an expert; empty before `fit`."""
        return self._codebooks

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K of each expert; empty before `fit`."""
        return tuple(len(codebook) for codebook in self._codebooks)

    def fit(self, embeddings: FloatArray, train: Sequences | None = None) -> SemanticIds:
        """Train on float32 [n, dim] and name these items. Leaves torch's global random state as it was."""
        check_embeddings(embeddings)
        _view_slices(self.config, embeddings.shape[1])
        self._mean = embeddings.mean(axis=0, dtype=np.float64)
        centred = embeddings - self._mean
        # Unit mean square norm: the losses, and so the settings, do not depend on the encoder's scale.
        self._scale = float(np.sqrt((centred**2).sum(axis=1).mean())) or 1.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            self._train(torch.from_numpy((centred / self._scale).astype(np.float32)))
        with torch.no_grad():
            gate = _gate(self._router(torch.from_numpy(centred / self._scale))).mean(dim=0)
        self._gate = np.asarray(gate.numpy(), dtype=np.float64)
        latents = self.latents(embeddings)
        raw_codes = self._nearest(latents)
        warn_about_usage(
            raw_codes,
            len(self._codebooks[0]),
            "lower tokenizer.codebook_size or tokenizer.decorrelation_weight, or raise tokenizer.steps",
        )
        return SemanticIds(
            codes=resolve_sets(raw_codes, lambda rows: self._distances(latents[rows])),
            raw_codes=raw_codes,
            codebook_sizes=self.codebook_sizes,
            ordered=False,
        )

    def latents(self, embeddings: FloatArray) -> DoubleArray:
        """float64 [n, M, code_dim]: the experts' outputs, each in the space of its own codebook."""
        inputs = torch.from_numpy((embeddings - self._mean) / self._scale)
        with torch.no_grad():
            return np.asarray(torch.stack(self._outputs(inputs), dim=1).numpy(), dtype=np.float64)

    def encode_raw(self, embeddings: FloatArray) -> IntArray:
        """int64 [k, M]: each expert's nearest code. Tuples may collide."""
        check_embeddings(embeddings, dim=len(self._mean))
        return self._nearest(self.latents(embeddings))

    def encode(self, embeddings: FloatArray, taken: IntArray) -> IntArray:
        """int64 [k, M]: codes for new items, unlike each other and unlike all of `taken`: see `resolve_sets`."""
        check_embeddings(embeddings, dim=len(self._mean))
        check_taken(taken, self.codebook_sizes)
        latents = self.latents(embeddings)
        return resolve_sets(self._nearest(latents), lambda rows: self._distances(latents[rows]), taken)

    def reconstruct(self, codes: IntArray) -> FloatArray:
        """float32 [n, dim]: the embeddings that int64 [n, depth <= M] codes of the first experts stand for.

        Experts beyond `depth` are left out of the sum. The router's weights are its mean over the catalogue.
        """
        return self.reconstruct_from(codes, tuple(range(codes.shape[1])))

    def reconstruct_from(self, codes: IntArray, experts: tuple[int, ...]) -> FloatArray:
        """float32 [n, dim] from the codes int64 [n, len(experts)] of some experts, the others left out."""
        check_codes(codes, tuple(self.codebook_sizes[expert] for expert in experts), "reconstruct")
        total = np.zeros((len(codes), self._codebooks[0].shape[1]))
        for column, expert in enumerate(experts):
            total += self._gate[expert] * self._codebooks[expert][codes[:, column]].astype(np.float64)
        with torch.no_grad():
            decoded = self._decoder(torch.from_numpy(total)).numpy()
        return np.asarray(decoded * self._scale + self._mean, dtype=np.float32)

    def save(self, directory: Path) -> None:
        """Write the directory, whole or not at all."""
        tensors = {"mean": self._mean, "scale": np.asarray([self._scale]), "gate": self._gate}
        for part in _PARTS:
            tensors |= {f"{part}.{name}": value.numpy() for name, value in self._part(part).state_dict().items()}
        save_tokenizer(directory, self.config, self._codebooks, tensors)

    @classmethod
    def load(cls, directory: Path, config: MPQConfig) -> MPQTokenizer:
        """Read what `save` wrote; `load_tokenizer` finds the config.

        Raises:
            ArtifactError: an array is missing, or its shape is not what the config says.
        """
        tokenizer = cls(config)
        tokenizer._codebooks, tensors = load_tensors(directory, {"mean", "scale", "gate"})
        dim = tensors["mean"].size
        check_shape(tensors["mean"], (dim,), "mean", directory)
        check_shape(tensors["scale"], (1,), "scale", directory)
        check_shape(tensors["gate"], (config.num_experts,), "gate", directory)
        if len(tokenizer._codebooks) != config.num_experts:
            raise ArtifactError(
                f"{directory}: {len(tokenizer._codebooks)} codebooks, but its config needs {config.num_experts}; "
                "fit the tokenizer again"
            )
        # A catalogue smaller than the codebook had cut it.
        size = min(num_codes(tokenizer._codebooks[0]), config.codebook_size)
        for expert, codebook in enumerate(tokenizer._codebooks):
            check_shape(codebook, (size, min(config.code_dim, dim)), f"codebook.{expert}", directory)
        tokenizer._mean, tokenizer._scale = tensors["mean"], float(tensors["scale"][0])
        tokenizer._gate = tensors["gate"]
        tokenizer._build(dim)
        for part in _PARTS:
            load_network(tokenizer._part(part), tensors, part, directory)
        return tokenizer

    def _part(self, name: str) -> nn.Module:
        return {"experts": self._experts, "router": self._router, "decoder": self._decoder}[name]

    def _build(self, dim: int) -> None:
        config = self.config
        views = _view_slices(config, dim)
        self._experts = nn.ModuleList(
            mlp([view.stop - view.start, *config.hidden, min(config.code_dim, dim)]) for view in views
        )
        self._router = nn.Linear(dim, config.num_experts)
        # From even weights: what the experts are for is not known before they have learned something.
        nn.init.zeros_(self._router.weight)
        nn.init.zeros_(self._router.bias)
        self._decoder = mlp([min(config.code_dim, dim), *config.decoder_hidden, dim])

    def _outputs(self, inputs: Tensor) -> list[Tensor]:
        """M times [n, d] from centred and scaled inputs [n, dim]."""
        views = _view_slices(self.config, inputs.shape[1])
        return [expert(inputs[:, view]) for expert, view in zip(self._experts, views, strict=True)]

    def _nearest(self, latents: DoubleArray) -> IntArray:
        return np.stack([nearest_code(latents[:, r], book) for r, book in enumerate(self._codebooks)], axis=1)

    def _distances(self, latents: DoubleArray) -> DoubleArray:
        return np.stack([squared_distances(latents[:, r], book) for r, book in enumerate(self._codebooks)], axis=1)

    def _train(self, inputs: Tensor) -> None:
        """Fit networks and codebooks to float32 [n, dim] inputs of unit mean square norm."""
        config = self.config
        num_items, dim = inputs.shape
        batch_size = min(config.batch_size, num_items)
        codebook_size = effective_codebook_size(config.codebook_size, num_items)
        self._build(dim)
        parameters = [parameter for part in _PARTS for parameter in self._part(part).parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
        quantizers = [
            ResidualQuantizer(
                dim=min(config.code_dim, dim),
                levels=1,
                codebook_size=codebook_size,
                commitment_weight=config.commitment_weight,
                decay=config.codebook_decay,
                dead_code_threshold=DEAD_CODE_SHARE * batch_size / codebook_size,
                kmeans_iterations=config.kmeans_iterations,
            )
            for _ in range(config.num_experts)
        ]
        total_steps = config.warmup_steps + config.steps
        with progress_bar("tokenizer: MPQ steps", total_steps) as advance:
            for step, rows in zip(range(total_steps), endless_batches(num_items, batch_size), strict=False):
                progress = (step - config.warmup_steps) / config.steps  # below 0 in the warm-up
                if step == config.warmup_steps:
                    with torch.no_grad():
                        for quantizer, output in zip(quantizers, self._outputs(inputs), strict=True):
                            quantizer.initialise(output, config.seed)
                if progress >= REVIVAL_SHARE:
                    for quantizer in quantizers:
                        quantizer.stop_reviving()
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate * cosine_factor(progress)
                loss = self._loss(inputs[rows], quantizers if step >= config.warmup_steps else None)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                advance(1, f"loss {loss.item():.4f}")
        self._codebooks = [quantizer.codebook(0).detach().clone().numpy() for quantizer in quantizers]
        for part in _PARTS:
            self._part(part).double().requires_grad_(False)

    def _loss(self, batch: Tensor, quantizers: list[ResidualQuantizer] | None) -> Tensor:
        """Scalar: the module's formula for float32 [B, dim]; without quantizers the outputs stand for themselves."""
        config = self.config
        outputs = self._outputs(batch)
        router = self._router(batch)
        loss = torch.zeros((), device=batch.device)
        vectors = outputs
        if quantizers is not None:
            quantized: list[Quantized] = [q(output) for q, output in zip(quantizers, outputs, strict=True)]
            vectors = [one.vector for one in quantized]
            loss = loss + torch.stack([one.loss for one in quantized]).mean()
        weights = _gate(router)
        mixture = (torch.stack(vectors, dim=1) * weights.unsqueeze(-1)).sum(dim=1)
        loss = loss + squared_error(self._decoder(mixture), batch)
        if config.decorrelation_weight:
            loss = loss + config.decorrelation_weight * decorrelation(outputs)
        if config.orthogonality_weight:
            loss = loss + config.orthogonality_weight * orthogonality(outputs)
        return loss + config.balance_weight * imbalance(router)


def _gate(router: Tensor) -> Tensor:
    """Weights [B, M] with mean 1 from the router's outputs [B, M]."""
    return router.shape[1] * router.softmax(dim=1)


def decorrelation(outputs: list[Tensor]) -> Tensor:
    """Scalar: ||corr(e_r, e_s)||_F^2 / d, the mean over pairs of experts; correlations over the batch."""
    # The small constant keeps an expert that says nothing at all from dividing by zero.
    standard = [(output - output.mean(0)) / (output.std(0, correction=0) + 1e-5) for output in outputs]
    pairs = itertools.combinations(standard, 2)
    return torch.stack([((a.T @ b) / len(a)).square().sum() / a.shape[1] for a, b in pairs]).mean()


def orthogonality(outputs: list[Tensor]) -> Tensor:
    """Scalar: cos^2 of two experts' outputs for the same item, the mean over items and pairs of experts."""
    unit = [nn.functional.normalize(output - output.mean(0), dim=1) for output in outputs]
    return torch.stack([(a * b).sum(1).square().mean() for a, b in itertools.combinations(unit, 2)]).mean()


def imbalance(router: Tensor) -> Tensor:
    """Scalar from the router's outputs [B, M]: 1 when experts weigh the same on average, M when only one does."""
    return router.shape[1] * router.softmax(dim=1).mean(dim=0).square().sum()


def _view_slices(config: MPQConfig, dim: int) -> list[slice]:
    """The part of an embedding of width `dim` that each expert reads. Raises DataError when it cannot be parted."""
    if config.views == "shared":
        return [slice(0, dim)] * config.num_experts
    if config.view_widths is None:
        bounds = [dim * part // config.num_experts for part in range(config.num_experts + 1)]
    else:
        bounds = [0, *itertools.accumulate(config.view_widths)]
    parts = [slice(start, end) for start, end in itertools.pairwise(bounds)]
    if bounds[-1] != dim or any(part.start == part.stop for part in parts):
        raise DataError(
            f"embeddings have {dim} dimensions, which views=split with view_widths={config.view_widths} cannot part "
            f"among {config.num_experts} experts; the widths must add up to {dim}"
        )
    return [parts[expert % len(parts)] for expert in range(config.num_experts)]
