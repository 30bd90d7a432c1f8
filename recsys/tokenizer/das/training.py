"""The training of DAS: which losses a step sums, and in what order the phases come. Knows no artifacts.

    L = L_sem(items) + L_sem(users) + alpha L_CF + beta sum of the views
    L_sem = ||x - x^||^2 + sum_l beta_c ||r_l - sg(q_l)||^2           codebooks are moving averages

Sums over dimensions, means over the batch. A step draws items and users evenly, for L_sem and for the codebooks, so
that what nobody clicked is learned as well as the rest; clicks, for L_CF and four of the views; and item pairs and user
pairs, for the other two. Aligned are the sums of chosen codes with a straight-through step, not the decoder's outputs.

    one stage   warm-up: no codes, no views | codes and views together
    two stages  warm-up                     | views on latents without codes | encoders frozen, codes

In the first pass over the clicks with views on, these read behaviour vectors but do not move them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from recsys.data import IntArray
from recsys.progress import progress_bar
from recsys.tokenizer.das.alignment import Alignment, Contrast
from recsys.tokenizer.das.config import BEHAVIOUR_VIEWS, DASConfig, View
from recsys.tokenizer.das.debias import BehaviourModel, ClickBatch
from recsys.tokenizer.das.sampling import Behaviour
from recsys.tokenizer.das.side import SemanticSide
from recsys.tokenizer.networks import cosine_factor, endless_batches, squared_error
from recsys.tokenizer.quantizer import REVIVAL_SHARE, ResidualQuantizer
from recsys.tokenizer.residual import DoubleArray

Phase = Literal["warm_up", "one_stage", "align", "quantize"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingSide:
    """A side with its inputs and the quantizer that is trained on them."""

    side: SemanticSide
    inputs: Tensor
    """float32 [n, dim], standardised."""
    quantizer: ResidualQuantizer

    def parameters(self) -> list[nn.Parameter]:
        """Of the networks; the codebooks are moving averages."""
        return [*self.side.encoder.parameters(), *self.side.decoder.parameters()]

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Codebooks from k-means of all latents."""
        self.quantizer.initialise(self.side.encoder(self.inputs), seed)

    def semantic_loss(self, rows: Tensor, phase: Phase) -> Tensor:
        """Scalar: L_sem of `rows`; this is also what moves the codebooks."""
        batch = self.inputs[rows]
        with torch.set_grad_enabled(phase != "quantize"):
            latent = self.side.encoder(batch)
        if phase in ("warm_up", "align"):
            return squared_error(self.side.decoder(latent), batch)
        quantized = self.quantizer.train()(latent)
        loss: Tensor = squared_error(self.side.decoder(quantized.vector), batch) + quantized.loss
        return loss

    def vectors(self, rows: Tensor, phase: Phase) -> Tensor:
        """float [B, d]: what is aligned. These rows, popular ones above all, leave the codebooks where they are."""
        latent: Tensor = self.side.encoder(self.inputs[rows])
        vector: Tensor = latent if phase == "align" else self.quantizer.eval()(latent).vector
        return vector


class DASTraining:
    """Trains both sides, the behaviour model and the projections together.

    Draws from torch's global generator, which the caller seeds.
    """

    def __init__(self, items: TrainingSide, users: TrainingSide, behaviour: Behaviour, config: DASConfig) -> None:
        self.items, self.users, self.behaviour, self.config = items, users, behaviour, config
        self.alignment = Alignment(
            user_dim=users.quantizer.dim,
            item_dim=items.quantizer.dim,
            behaviour_dim=config.behaviour_dim,
            temperature=config.temperature,
        )
        self.model: BehaviourModel | None = None
        if config.behaviour_weight:
            self.model = BehaviourModel(behaviour.user_popularity(), np.log1p(behaviour.item_clicks), config)
        self._rng = np.random.default_rng(config.seed)

    def run(self) -> None:
        """All phases."""
        config = self.config
        networks = [*self.items.parameters(), *self.users.parameters(), *self.alignment.parameters()]
        groups = [{"params": networks, "lr": config.learning_rate}]
        behaviour = list(self.model.parameters()) if self.model is not None else []
        if self.model is not None:
            tables = self.model.tables
            heads = [parameter for parameter in behaviour if not any(parameter is table for table in tables)]
            for parameters, decay in ((tables, config.id_weight_decay), (heads, 0.0)):
                groups.append({"params": parameters, "lr": config.id_learning_rate, "weight_decay": decay})
        optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
        peaks = [group["lr"] for group in optimizer.param_groups]

        sizes = (len(self.items.inputs), len(self.users.inputs), len(self.behaviour.clicks))
        batches = [endless_batches(size, min(config.batch_size, size)) for size in sizes]
        click_pass = -(-sizes[2] // config.batch_size)
        total_steps = config.warmup_steps + config.steps
        with progress_bar("tokenizer: DAS steps", total_steps) as advance:
            for step, item_rows, user_rows, clicks in zip(range(total_steps), *batches, strict=False):
                phase, done, length = self._phase(step)
                progress = done / length
                if done == 0 and phase in ("one_stage", "quantize"):
                    self.items.initialise(config.seed)
                    self.users.initialise(config.seed)
                if phase in ("one_stage", "quantize") and progress >= REVIVAL_SHARE:
                    self.items.quantizer.stop_reviving()
                    self.users.quantizer.stop_reviving()
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * (1.0 if phase == "warm_up" else cosine_factor(progress))
                loss = self._loss(item_rows, user_rows, clicks, phase, stop_behaviour=done < click_pass)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                for parameters in (networks, behaviour):
                    nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                advance(1, f"loss {loss.item():.4f}")

    def _phase(self, step: int) -> tuple[Phase, int, int]:
        """The phase of a step, how many of its steps are done, and how many it has."""
        config = self.config
        if step < config.warmup_steps:
            return "warm_up", step, config.warmup_steps
        done = step - config.warmup_steps
        if config.stages == "one":
            return "one_stage", done, config.steps
        half = config.steps // 2
        return ("align", done, half) if done < half else ("quantize", done - half, config.steps - half)

    def _loss(
        self, item_rows: Tensor, user_rows: Tensor, click_rows: Tensor, phase: Phase, *, stop_behaviour: bool
    ) -> Tensor:
        config = self.config
        loss = self.items.semantic_loss(item_rows, phase) + self.users.semantic_loss(user_rows, phase)
        if phase == "quantize":
            return loss
        users, items = self.behaviour.clicks[click_rows.numpy()].T
        known = torch.from_numpy(self.behaviour.clicked(users, items))
        if self.model is not None:
            negatives, is_negative = self.behaviour.draw_unclicked(users, self._rng)
            batch = ClickBatch(
                users=torch.from_numpy(users),
                items=torch.from_numpy(items),
                known=known,
                negatives=torch.from_numpy(negatives),
                is_negative=torch.from_numpy(is_negative),
            )
            loss = loss + config.behaviour_weight * self.model(batch, user_rows, item_rows)
        if phase != "warm_up" and config.views and config.alignment_weight:
            contrasts = self._contrasts(users, items, known, phase, stop_behaviour)
            loss = loss + config.alignment_weight * self.alignment(contrasts)
        return loss

    def _contrasts(
        self, users: IntArray, items: IntArray, known: Tensor, phase: Phase, stop_behaviour: bool
    ) -> dict[View, Contrast]:
        """The views that are on, for a batch of clicks and fresh pairs."""
        views = set(self.config.views)
        behaviour, size = self.behaviour, len(users)
        contrasts: dict[View, Contrast] = {}
        item_rows, user_rows = [], []
        if views & {"dual_item", "self_item"}:
            item_rows.append(items)
        if views & {"dual_user", "self_user"}:
            user_rows.append(users)
        if "co_item" in views:
            item_rows.extend(behaviour.draw_item_pairs(size, self._rng).T)
        if "co_user" in views:
            user_rows.extend(behaviour.draw_user_pairs(size, self._rng).T)
        item_vectors = self._projected(self.items, self.alignment.item_projection, item_rows, phase)
        user_vectors = self._projected(self.users, self.alignment.user_projection, user_rows, phase)
        if "co_item" in views:
            a, b = item_rows[-2:]
            contrasts["co_item"] = self._contrast(
                item_vectors[-2:], behaviour.items_together(a, b), (behaviour.item_pair_frequency,) * 2, (a, b)
            )
        if "co_user" in views:
            a, b = user_rows[-2:]
            contrasts["co_user"] = self._contrast(
                user_vectors[-2:], behaviour.users_together(a, b), (behaviour.user_pair_frequency,) * 2, (a, b)
            )
        if not views & BEHAVIOUR_VIEWS:
            return contrasts
        assert self.model is not None, "the config asks for behaviour_weight above 0 with these views"
        interest = self.model.interest(torch.from_numpy(users))
        properties = self.model.property(torch.from_numpy(items))
        if stop_behaviour:
            interest, properties = interest.detach(), properties.detach()
        by_user, by_item = behaviour.user_frequency, behaviour.item_frequency
        if "dual_user" in views:
            contrasts["dual_user"] = self._contrast(
                [user_vectors[0], properties], known.numpy(), (by_user, by_item), (users, items)
            )
        if "dual_item" in views:
            contrasts["dual_item"] = self._contrast(
                [item_vectors[0], interest], known.numpy().T, (by_item, by_user), (items, users)
            )
        if "self_user" in views:
            contrasts["self_user"] = self._contrast(
                [user_vectors[0], interest], users[:, None] == users, (by_user, by_user), (users, users)
            )
        if "self_item" in views:
            contrasts["self_item"] = self._contrast(
                [item_vectors[0], properties], items[:, None] == items, (by_item, by_item), (items, items)
            )
        return contrasts

    def _projected(self, side: TrainingSide, projection: nn.Linear, rows: list[IntArray], phase: Phase) -> list[Tensor]:
        """Projected vectors of each batch in `rows`, in one pass of the encoder."""
        if not rows:
            return []
        vectors = projection(side.vectors(torch.from_numpy(np.concatenate(rows)), phase))
        return list(vectors.split([len(part) for part in rows]))

    def _contrast(
        self,
        vectors: list[Tensor],
        known: np.ndarray[tuple[int, ...], np.dtype[np.bool]],
        frequency: tuple[DoubleArray, DoubleArray],
        rows: tuple[IntArray, IntArray],
    ) -> Contrast:
        logs: list[Tensor | None] = [None, None]
        if self.config.frequency_correction:
            logs = [torch.from_numpy(np.log(f[r]).astype(np.float32)) for f, r in zip(frequency, rows, strict=True)]
        return Contrast(
            anchors=vectors[0],
            positives=vectors[1],
            known=torch.from_numpy(np.ascontiguousarray(known)),
            anchor_log_frequency=logs[0],
            positive_log_frequency=logs[1],
        )
