"""Settings of what a language model is taught with: tasks, texts, reasoning and its teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from recsys.config import StrictConfig


class TextConfig(StrictConfig):
    """How intentions and preferences are put into words."""

    table: Path | None = None
    """A Parquet or JSONL file of written texts (see `TextTable`); empty: the offline ones, which say less."""
    keyphrases: int = Field(default=3, ge=1)
    """Phrases that stand for an item: those of the highest TF-IDF."""
    top: int = Field(default=3, ge=1)
    """Categories, brands and phrases, of each at most so many, that a preference names."""
    recent_items: int = Field(default=3, ge=1)
    """Latest items of a history that make up the short-term preference; the long-term one is of those before."""
    max_words: int = Field(default=32, ge=1)
    """Words of a text; what is longer is cut."""


class TaskShare(StrictConfig):
    """How much of a task an epoch holds."""

    passes: float = Field(default=1, ge=0)
    """How often an epoch goes through the task's samples; a fraction is a random part, 0 leaves the task out."""
    limit: int | None = Field(default=None, ge=1)
    """At most so many samples an epoch, drawn anew each time."""


class TaskShares(StrictConfig):
    """How much of each task an epoch holds. As in LC-Rec (arXiv 2311.09049) all tasks are complete but the asymmetric
    ones, whose samples are as many as there are interactions; together they are capped near 50,000, as in GREAM."""

    next_item: TaskShare = TaskShare()
    """A sample a window; every item of it is a target once."""
    title_to_item: TaskShare = TaskShare()
    """A sample an item that has a title."""
    description_to_item: TaskShare = TaskShare()
    """A sample an item that has a description."""
    both_to_item: TaskShare = TaskShare()
    """A sample an item that has a title and a description."""
    item_to_title: TaskShare = TaskShare()
    """A sample an item that has a title."""
    item_to_description: TaskShare = TaskShare()
    """A sample an item that has a description."""
    item_to_both: TaskShare = TaskShare()
    """A sample an item that has a title and a description."""
    history_to_title: TaskShare = TaskShare(limit=16_000)
    """A sample an interaction that has another before it."""
    history_to_description: TaskShare = TaskShare(limit=16_000)
    """A sample an interaction that has another before it."""
    titles_to_item: TaskShare = TaskShare(limit=16_000)
    """A sample an interaction that has one with a title before it."""
    intention_to_item: TaskShare = TaskShare()
    """A sample an item that somebody may ask for in words."""
    history_and_intention_to_item: TaskShare = TaskShare()
    """A sample a user, whose last training item is asked for."""
    history_to_preference: TaskShare = TaskShare()
    """A sample a user, without the last training item; one horizon of taste is drawn."""
    reasoning: TaskShare = TaskShare(passes=0)
    """A sample a case that the teacher explained."""
    user_to_preference: TaskShare = Field(default=TaskShare(), exclude_if=lambda share: bool(share == TaskShare()))
    """A sample a user, as of `history_to_preference`, with the user's tokens in place of the history; only with
    `user_tokens`. Left out of what is written while it is the default: settings of earlier runs stay as they were."""


class ChatTeacherConfig(StrictConfig):
    """A chat model behind a URL that speaks OpenAI's protocol."""

    base_url: str
    """Up to and with the version, for example `http://127.0.0.1:8000/v1`; `/chat/completions` is added."""
    model: str
    """Name of the model there."""
    api_key_env: str | None = None
    """The environment variable that holds the key; empty where none is needed."""
    cache: Path
    """JSONL file of the answers. What stands there is not asked again, so a run that broke off goes on."""
    temperature: float = Field(default=0.0, ge=0)
    """Temperature of the answers."""
    max_tokens: int = Field(default=512, ge=1)
    """Tokens of an answer."""
    concurrency: int = Field(default=4, ge=1)
    """Requests under way at once."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Seconds to wait for an answer."""
    retries: int = Field(default=4, ge=0)
    """Further attempts after a timeout, a lost connection, or the statuses 408, 429 and 5xx."""
    backoff_s: float = Field(default=1.0, ge=0)
    """Seconds before the first further attempt; they double each time. A `Retry-After` that is longer is heeded,
    up to `timeout_s`."""
    give_up_after: int = Field(default=8, ge=1)
    """Requests in a row that fail with all their attempts before the run ends with an error."""
    max_description_words: int = Field(default=40, ge=0)
    """Words of each item's description that the teacher reads."""


class ReasoningConfig(StrictConfig):
    """Which cases are explained, by whom, and what stands between the reasons and the answer (GREAM, arXiv
    2510.20815)."""

    min_history: int = Field(default=4, ge=1)
    """Items before the target that a case needs."""
    cases_per_user: int = Field(default=1, ge=1)
    """Latest training interactions of a user that become cases."""
    max_cases: int | None = Field(default=None, ge=1)
    """At most so many cases, drawn at random: each costs a request to a chat model."""
    max_words: int = Field(default=40, ge=1)
    """Words of each of the three steps; what is longer is cut."""
    rewriting: Literal["denoised", "copy", "none"] = "none"
    """The history once more before the answer: what is near the target or the preference, all of it, or nothing. The
    reasoning mode (`reason`) asks for an answer without it."""
    min_kept: int = Field(default=3, ge=1)
    """Items that `denoised` keeps at least."""
    chat: ChatTeacherConfig | None = None
    """The chat model that explains; empty: rules over categories, brands and phrases, which say less."""


class TaskMixConfig(StrictConfig):
    """What a language model is taught with."""

    shares: TaskShares = TaskShares()
    """How much of each task."""
    max_history: int = Field(default=20, ge=1)
    """Items of a history in a prompt: the most recent ones. A run takes `generator.model.max_history` instead."""
    max_title_words: int = Field(default=16, ge=1)
    """Words of a title; what is longer is cut."""
    max_description_words: int = Field(default=48, ge=1)
    """Words of a description; what is longer is cut, where a sentence ends if one does."""
    templates: Path | None = None
    """A YAML file with one's own wording of some tasks; empty: the packaged one."""
    user_tokens: bool = False
    """Begin prompts about a user with the semantic ID of the user (ULMRec, arXiv 2412.05543), made of the items that
    stand before every target. Of a window of next items, a random beginning then names the user, and only the items
    after it are targets: a name made of targets would tell them, in training only."""
    texts: TextConfig = TextConfig()
    """What users look for and like, in words."""
    reasoning: ReasoningConfig = ReasoningConfig()
    """What the reasoning task is made of."""
