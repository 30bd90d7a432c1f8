"""Who writes the texts of generated profiles: a language model on this machine, or a chat model behind a URL.

Both take finished prompts and give texts. Knows no users and no items.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerBase

from recsys.generator.lm.backbone import load_causal_lm
from recsys.generator.lm.chat_client import ChatClient
from recsys.generator.lm.config import ChatTeacherConfig
from recsys.progress import progress_bar


class TextWriter(Protocol):
    """Answers prompts."""

    def write(self, prompts: Sequence[str], *, temperature: float, seed: int) -> list[str]:
        """A text for each prompt, empty where there is none. At temperature 0 the likeliest."""
        ...

    def count_tokens(self, text: str) -> int:
        """Length of a text that is read."""
        ...


class LocalWriter:
    """Any causal language model, asked through its chat template where it has one.

    Args:
        name: an asset, a directory or a name of the Hub.
        adapter: directory of a LoRA adapter of that model (see `training.profile_tuning`).
        max_tokens: of a text; a longer one is cut.
        batch_size: prompts at a time.
        precision: of the weights; `bfloat16` writes in about half the time where the processor has it.

    Raises:
        AssetError: there is no such model.
        ArtifactError: the adapter cannot be read.
    """

    def __init__(
        self,
        name: str,
        adapter: Path | None = None,
        *,
        max_tokens: int = 80,
        batch_size: int = 8,
        precision: torch.dtype = torch.float32,
    ) -> None:
        self._model, self.tokenizer = load_causal_lm(
            name, field="profiles.writer.name", adapters=[] if adapter is None else [adapter]
        )
        self._model.eval().to("cuda" if torch.cuda.is_available() else "cpu", precision)
        self._max_tokens = max_tokens
        self._batch_size = batch_size
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def count_tokens(self, text: str) -> int:
        """See `TextWriter.count_tokens`."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def write(self, prompts: Sequence[str], *, temperature: float, seed: int) -> list[str]:
        """See `TextWriter.write`. A text depends on the prompts beside it too, by rounding and by the draws."""
        rendered = [chat_prompt(self.tokenizer, prompt) for prompt in prompts]
        # Prompts of like lengths go together: what pads them is read in vain.
        order = sorted(range(len(rendered)), key=lambda row: self.count_tokens(rendered[row]))
        texts = [""] * len(rendered)
        sampling = (
            {"do_sample": True, "temperature": temperature, "top_p": 0.95} if temperature > 0 else {"do_sample": False}
        )
        with torch.random.fork_rng(), progress_bar("profiles", len(rendered)) as advance:
            torch.manual_seed(seed)
            for begin in range(0, len(rendered), self._batch_size):
                rows = order[begin : begin + self._batch_size]
                batch = self.tokenizer(
                    [rendered[row] for row in rows],
                    return_tensors="pt",
                    padding=True,
                    padding_side="left",
                    add_special_tokens=False,
                ).to(self._model.device)
                with torch.inference_mode():
                    written = self._model.generate(
                        **batch, max_new_tokens=self._max_tokens, pad_token_id=self.tokenizer.pad_token_id, **sampling
                    )
                new = written[:, batch["input_ids"].shape[1] :]
                decoded = self.tokenizer.batch_decode(new, skip_special_tokens=True)
                for row, text in zip(rows, decoded, strict=True):
                    texts[row] = text.strip()
                advance(len(rows), "")
        return texts


def chat_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """A prompt as the user's turn of a chat; as it stands, and a line break, for models without a chat template."""
    if not tokenizer.chat_template:
        return f"{prompt}\n"
    messages = [{"role": "user", "content": prompt}]
    rendered: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return rendered


class ChatWriter:
    """A chat model behind a URL that speaks OpenAI's protocol. Tokens are words, as its tokenizer is not here.

    Args:
        config: the model and how to ask it; its temperature is not used.
        section: of the configuration that `config` is, for errors.
        label: of progress bars; None for none.

    Raises:
        ConfigError: the environment variable of the key is not set.
        ArtifactError: the file of answers cannot be read.
    """

    def __init__(
        self, config: ChatTeacherConfig, section: str = "profiles.chat", label: str | None = "profiles"
    ) -> None:
        self._client = ChatClient(config, section)
        self._label = label and f"{label} from {config.model}"

    def count_tokens(self, text: str) -> int:
        """See `TextWriter.count_tokens`."""
        return len(text.split())

    def write(self, prompts: Sequence[str], *, temperature: float, seed: int) -> list[str]:
        """See `TextWriter.write`.

        Raises:
            ChatError: the server refuses, or too many requests fail in a row, or all do.
        """
        asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
        answers = self._client.ask(asked, self._label, temperature=temperature, seed=seed)
        return [answer or "" for answer in answers]
