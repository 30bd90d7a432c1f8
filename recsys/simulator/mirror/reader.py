"""A language model reads scenes, and the probabilities of its options are read from the letters of its next token.

All that prompts have in common is read once: orders of one scene share its history, decision processes share the scene.

Shapes: P prompts, S options, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.errors import AssetError
from recsys.generator import caches
from recsys.generator.lm.backbone import Backbone
from recsys.generator.lm.reason import ReasonConfig, draw_after
from recsys.generator.tree_decoding import Prefix, read, stack
from recsys.profile.writers import chat_prompt
from recsys.simulator.mirror.prompts import Mode, ScenePrompts, letters
from recsys.simulator.mirror.scenes import MAX_OPTIONS, Scene

DoubleArray = npt.NDArray[np.float64]


class OptionReader:
    """Reads scenes with one model, which stays as it is.

    Args:
        backbone: a language model.
        prompts: puts scenes into words.

    Raises:
        AssetError: letters after the cue are not one token each.
    """

    def __init__(self, backbone: Backbone, prompts: ScenePrompts) -> None:
        self.backbone = backbone.eval().requires_grad_(False)
        self.prompts = prompts
        written = [backbone.text_tokens(f"{prompts.cue} {letter}") for letter in letters(MAX_OPTIONS)]
        # With some tokenizers the blank is a token of its own, with others a part of the letter's.
        self._cue = written[0][: _common(written)]
        if any(len(tokens) != len(self._cue) + 1 for tokens in written):
            raise AssetError(
                f"mirror: the tokenizer makes more than one token of a letter after {prompts.cue!r}; change "
                "`answer` of the wording, or take another model"
            )
        self._letters = torch.tensor([tokens[-1] for tokens in written], device=self._device)

    @torch.inference_mode()
    def direct(self, scenes: Sequence[Scene]) -> list[DoubleArray]:
        """float64 [S] a scene: the probability of each place, from the letters alone."""
        sequences = [self._tokens(scene, "direct") + self._cue for scene in scenes]
        return self._chances(self._read_all(sequences).hidden, scenes)

    @torch.inference_mode()
    def weigh(self, scene: Scene, rationales: Sequence[str]) -> DoubleArray:
        """float64 [R, S]: the probability of each place after each decision process."""
        prompt = self._tokens(scene, "reasoned")
        hidden = self._read_all([prompt + self._closing(rationale) for rationale in rationales]).hidden
        return np.stack(self._chances(hidden, [scene] * len(rationales)))

    @torch.inference_mode()
    def reasoned(
        self, groups: Sequence[Sequence[Scene]], config: ReasonConfig, *, seed: int
    ) -> tuple[list[DoubleArray], list[str]]:
        """The probability of each place after a decision process of the model's own.

        Args:
            groups: scenes; those of one group, such as orders of one scene, are read together.
            config: how decision processes are drawn, one a scene.
            seed: of the draws.

        Returns:
            float64 [S] for each scene of all groups, and its decision process.
        """
        lead = self.prompts.wording.lead
        opening = self.backbone.text_tokens(lead)
        sequences = [[self._tokens(scene, "reasoned") + opening for scene in group] for group in groups]
        prefix = stack([self._read_all(group) for group in sequences])
        drawn = draw_after(self.backbone, prefix, f"\n{self.prompts.cue}", config, seed=seed)
        texts = [
            lead + self.backbone.text(tokens).partition(self.prompts.cue)[0].rstrip()
            for tokens in drawn.tokens.tolist()
        ]
        closings = [self._closing(text)[len(opening) :] for text in texts]
        scenes = [scene for group in groups for scene in group]
        return self._chances(self._append(prefix, closings).hidden, scenes), texts

    def _closing(self, rationale: str) -> list[int]:
        """A decision process and the cue, as the beginning of an answer."""
        lead = self.prompts.wording.lead
        # The beginning is what the model is given, so it is cut into tokens by itself.
        opening = self.backbone.text_tokens(lead) if rationale.startswith(lead) else []
        rest = rationale.removeprefix(lead) if opening else rationale
        return opening + self.backbone.text_tokens(f"{rest}\n") + self._cue

    def _tokens(self, scene: Scene, mode: Mode) -> list[int]:
        return self.backbone.text_tokens(chat_prompt(self.backbone.text_tokenizer, self.prompts.prompt(scene, mode)))

    def _chances(self, hidden: Tensor, scenes: Sequence[Scene]) -> list[DoubleArray]:
        """From hidden states [P, D]."""
        logits = self.backbone.text_logits(hidden)[:, self._letters].double()
        return [row[: len(scene.options)].softmax(-1).cpu().numpy() for row, scene in zip(logits, scenes, strict=True)]

    def _read_all(self, sequences: Sequence[list[int]]) -> Prefix:
        """P sequences; what all begin with is read once."""
        # At least one token of each is left to be read by itself.
        common = min(_common(sequences), min(map(len, sequences)) - 1)
        if common == 0:
            rows, lengths = self._padded(sequences)
            return read(self.backbone, rows, lengths)
        rows, lengths = self._padded([sequences[0][:common]])
        shared = read(self.backbone, rows, lengths)
        everyone = torch.zeros(len(sequences), dtype=torch.int64, device=self._device)
        repeated = Prefix(
            hidden=shared.hidden[everyone], cache=caches.select(shared.cache, everyone), lengths=lengths[everyone]
        )
        return self._append(repeated, [sequence[common:] for sequence in sequences])

    def _append(self, prefix: Prefix, sequences: Sequence[Sequence[int]]) -> Prefix:
        """`prefix` with P further sequences. Where its own ones differ in length, only `hidden` is of use."""
        rows, counts = self._padded(sequences)
        size, width = prefix.cache.get_seq_length(), rows.shape[1]
        steps = torch.arange(width, device=self._device)
        before = (torch.arange(size, device=self._device) < prefix.lengths.unsqueeze(1)).unsqueeze(1)
        causal = steps <= steps.unsqueeze(1)
        visible = torch.cat(
            [before.expand(-1, width, -1), causal.expand(len(rows), -1, -1)],
            dim=-1,
        )
        cache = caches.fork(prefix.cache)
        positions = prefix.lengths.unsqueeze(1) + steps
        hidden = self.backbone.extend(rows, cache, positions=positions, visible=visible)
        last = hidden[torch.arange(len(rows), device=self._device), counts - 1]
        return Prefix(hidden=last, cache=cache, lengths=prefix.lengths + counts)

    def _padded(self, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """float32 [P, Q, D] rows of sequences, padded at the end, and int64 [P] their lengths."""
        lengths = torch.tensor([len(sequence) for sequence in sequences], device=self._device)
        tokens = torch.full(
            (len(sequences), int(lengths.max())), self.backbone.end_of_text, dtype=torch.int64, device=self._device
        )
        for row, sequence in enumerate(sequences):
            tokens[row, : len(sequence)] = torch.tensor(list(sequence), device=self._device)
        return self.backbone.text_embeddings(tokens), lengths

    @property
    def _device(self) -> torch.device:
        return self.backbone.text_embeddings.weight.device


def _common(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all begin with."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False)))
