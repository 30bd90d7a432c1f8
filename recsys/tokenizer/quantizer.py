"""Residual codebooks while they are being trained. Knows latents, not items; encoders and losses are the caller's.

Three ways to keep a codebook:

    ema       moving averages of the latents assigned to each code (van den Oord et al., arXiv 1711.00937), by
              vector-quantize-pytorch, with k-means at the start and dead codes moved onto items of the batch
    gradient  free parameters under ||q - sg(r)||^2 (LC-Rec, LETTER); regularisers of the codes need this one
    simvq     a frozen basis times one trained matrix (SimVQ, arXiv 2411.02038): a step moves all codes together, so
              none is left behind. The basis is k-means of the latents rather than the paper's Gaussian

and one convention of gradients, whatever the codebook (r_l the residual that enters level l, q_l its code):

    r_l  = z - sg(q_1 + ... + q_(l-1))
    loss = sum_l  beta ||r_l - sg(q_l)||^2  [ + ||q_l - sg(r_l)||^2  unless ema ]
    z^   = z + sg(sum_l q_l - z), or the rotation of z onto sum_l q_l (arXiv 2410.06424): one estimator, on the sum

Shapes: B items, L levels, K codes, d their width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import ResidualVQ
from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

from recsys.tokenizer.config import CodebookKind, Estimator
from recsys.tokenizer.networks import squared_error
from recsys.tokenizer.residual import fit_codebooks, row_blocks
from recsys.tokenizer.sinkhorn import uniform_assignment

REVIVAL_SHARE = 0.8
"""Share of the quantized steps in which dead codes are moved: moved ones then need time to find their place."""
DEAD_CODE_SHARE = 0.25
"""A code is dead below this share of the count per batch that even usage would give."""

# A larger catalogue starts from a sample of this size: the library's k-means holds all distances at once.
_KMEANS_ROWS = 1 << 17
# Singleton clusters have residuals of zero, which rotate with enormous gradients.
_ROTATION_FLOOR = 1e-3
_RESTART_NOISE = 1e-2


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantized:
    """A batch after quantization."""

    codes: Tensor
    """int64 [B, L]."""
    vector: Tensor
    """float [B, d]: the sum of the codes, with the estimator's gradient to the latent."""
    levels: Tensor
    """float [L, B, d]: the chosen codewords; they carry gradient to codebooks that are trained by it."""
    loss: Tensor
    """Scalar: commitment, and the codebook term where there is one; sums over dimensions, means over the batch."""


class ResidualQuantizer(nn.Module):
    """L codebooks of K codes, trained with the latents.

    Args:
        dim: width of the codes.
        levels: how many codebooks.
        codebook_size: codes in each.
        kind: how they are kept.
        estimator: how gradients pass.
        commitment_weight: beta of the loss.
        decay: of the moving averages (`ema`).
        dead_code_threshold: a code whose moving-average count per batch is below this is moved (`ema`); 0 for never.
        kmeans_iterations: of the start.
        uniform_last_level: assign the last level by `uniform_assignment` over the batch while training (not `ema`).
    """

    def __init__(
        self,
        *,
        dim: int,
        levels: int,
        codebook_size: int,
        kind: CodebookKind = "ema",
        estimator: Estimator = "straight_through",
        commitment_weight: float = 0.25,
        decay: float = 0.99,
        dead_code_threshold: float = 0.0,
        kmeans_iterations: int = 30,
        uniform_last_level: bool = False,
    ) -> None:
        super().__init__()
        assert not (uniform_last_level and kind == "ema"), "the library assigns by itself"
        self.dim, self.num_levels, self.codebook_size = dim, levels, codebook_size
        self.kind: CodebookKind = kind
        self.estimator: Estimator = estimator
        self.commitment_weight = commitment_weight
        self.kmeans_iterations = kmeans_iterations
        self.uniform_last_level = uniform_last_level
        if kind == "ema":
            self.averages = ResidualVQ(
                dim=dim,
                num_quantizers=levels,
                codebook_size=codebook_size,
                decay=decay,
                threshold_ema_dead_code=dead_code_threshold,
                kmeans_init=True,
                kmeans_iters=kmeans_iterations,
                rotation_trick=False,
                # Processes that train together all see the whole batch.
                sync_codebook=False,
            )
        elif kind == "gradient":
            self.codewords = nn.Parameter(torch.zeros(levels, codebook_size, dim))
        else:
            self.register_buffer("basis", torch.zeros(levels, codebook_size, dim))
            self.basis: Tensor
            self.transforms = nn.Parameter(torch.eye(dim).repeat(levels, 1, 1))

    @torch.no_grad()
    def initialise(self, latents: Tensor, seed: int) -> None:
        """Start from residual k-means of `latents` (float [n, d]), which should be the whole catalogue's."""
        if self.kind == "ema":
            # The library runs k-means once, on the first batch it sees in training mode.
            self.averages(latents[torch.randperm(len(latents))[:_KMEANS_ROWS]])
            return
        books = fit_codebooks(
            latents.numpy(),
            levels=self.num_levels,
            codebook_size=self.codebook_size,
            iterations=self.kmeans_iterations,
            seed=seed,
        )
        (self.codewords if self.kind == "gradient" else self.basis).copy_(
            torch.stack([torch.from_numpy(b) for b in books])
        )

    def codebook(self, level: int) -> Tensor:
        """float [K, d], with gradient unless it is a moving average."""
        if self.kind == "ema":
            return cast(Tensor, self.averages.layers[level].codebook)
        if self.kind == "gradient":
            return self.codewords[level]
        return self.basis[level] @ self.transforms[level]

    def forward(self, latent: Tensor) -> Quantized:
        """Quantize float [B, d]; in training mode this also updates moving averages."""
        if self.kind == "ema":
            # The library would take a straight-through step per level, and the encoder the gradient L times: it sees
            # a detached latent, and the gradients are made below.
            _, codes, _, levels = self.averages(latent.detach(), return_all_codes=True)
        else:
            codes, levels = self._assign(latent)
        before = levels.detach().cumsum(dim=0) - levels.detach()
        loss = torch.zeros((), device=latent.device)
        for start, chosen in zip(before, levels, strict=True):
            residual = latent - start
            loss = loss + self.commitment_weight * squared_error(residual, chosen.detach())
            if self.kind != "ema":
                loss = loss + squared_error(chosen, residual.detach())
        return Quantized(
            codes=codes, vector=self._estimate(latent, levels.detach().sum(dim=0)), levels=levels, loss=loss
        )

    def _assign(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        codes, levels = [], []
        residual = latent.detach()
        for level in range(self.num_levels):
            codebook = self.codebook(level)
            with torch.no_grad():
                distances = torch.cdist(residual, codebook).square()
                if self.training and self.uniform_last_level and level == self.num_levels - 1:
                    chosen = uniform_assignment(distances).argmax(dim=1)
                else:
                    chosen = distances.argmin(dim=1)
            codes.append(chosen)
            levels.append(nn.functional.embedding(chosen, codebook))
            residual = residual - levels[-1].detach()
        return torch.stack(codes, dim=1), torch.stack(levels)

    def _estimate(self, latent: Tensor, total: Tensor) -> Tensor:
        straight = latent + (total - latent).detach()
        if self.estimator == "straight_through":
            return straight
        safe = (latent.norm(dim=1, keepdim=True) > _ROTATION_FLOOR) & (
            total.norm(dim=1, keepdim=True) > _ROTATION_FLOOR
        )
        return torch.where(safe, cast(Tensor, rotate_to(latent, total)), straight)

    def stop_reviving(self) -> None:
        """From now on leave dead codes where they are (`ema`), so that revived ones can settle."""
        if self.kind == "ema":
            for layer in self.averages.layers:
                layer._codebook.threshold_ema_dead_code = 0.0

    @torch.no_grad()
    def restart_dead_codes(self, latents: Tensor, optimizer: torch.optim.Optimizer) -> int:
        """Move every code that no row of `latents` (the whole catalogue's, [n, d]) uses onto a badly served residual.

        For `gradient` codebooks; the moved rows' optimizer moments start again from zero.

        Returns:
            How many codes were moved.
        """
        if self.kind != "gradient":
            return 0
        moved = 0
        residual = latents
        for level in range(self.num_levels):
            book = self.codewords[level]
            distances, chosen = _nearest(residual, book)
            dead = torch.bincount(chosen, minlength=self.codebook_size) == 0
            count = min(int(dead.sum()), len(residual))
            if count:
                rows = dead.nonzero().squeeze(1)[:count]
                worst = residual[distances.topk(count).indices]
                self.codewords[level, rows] = worst + _RESTART_NOISE * residual.std() * torch.randn_like(worst)
                for moment in optimizer.state.get(self.codewords, {}).values():
                    if moment.shape == self.codewords.shape:
                        moment[level, rows] = 0.0
                moved += count
            residual = residual - book[chosen]
        return moved


def _nearest(vectors: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """float [n] distances to, and int64 [n] indices of, the nearest rows of `codebook`; in blocks."""
    parts = [torch.cdist(vectors[part], codebook).min(dim=1) for part in row_blocks(len(vectors), len(codebook))]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])
