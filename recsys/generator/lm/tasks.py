"""The mix of tasks that a language model is taught with: which examples an epoch holds, and what each says.

The alignment tasks of LC-Rec (arXiv 2311.09049, section 3.3), the user tokens of ULMRec (arXiv 2412.05543) and the
reasoning of GREAM (arXiv 2510.20815). Where LC-Rec makes a sample of every prefix of a history, the next-item task here
has the whole window as response: each item is a target given those before it, at the cost of one sequence.

Only training sequences come in, so nothing of validation and test can come out. Where a task has one target, the target
is not among the items of its prompt. Knows no tokens and no models; what is written of items and users, and the reasons
of a case, come from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar, get_args

import numpy as np
import numpy.typing as npt

from recsys.data import Catalog, IntArray, Sequences
from recsys.data.windows import cut_windows
from recsys.generator.lm.config import TaskMixConfig, TaskShare
from recsys.generator.lm.examples import Example, Items, Piece, UserTokens, for_user
from recsys.generator.lm.histories import Histories, latest_places
from recsys.generator.lm.reasoning import Reasons
from recsys.generator.lm.templates import NO_HISTORY, PLACEHOLDERS, TaskName, Templates, render
from recsys.generator.lm.texts import TextSource, column_texts, first_words
from recsys.tokenizer.user_histories import HistoryIndexer

TASKS: tuple[TaskName, ...] = get_args(TaskName)
"""All tasks, in the order of their numbers."""
_ORDER = 14
"""Number of the generator that orders an epoch, between those of tasks: the order is that of before the later tasks."""
_HISTORIES: Mapping[str, str | Items] = {"history": NO_HISTORY, "titles": NO_HISTORY}

T = TypeVar("T")


class TaskMix:
    """The examples of every epoch, as a function of the seed and the epoch's number."""

    def __init__(
        self,
        config: TaskMixConfig,
        catalog: Catalog,
        train: Sequences,
        texts: TextSource,
        *,
        seed: int,
        items: IntArray | None = None,
        reasons: Mapping[int, Reasons] | None = None,
        users: HistoryIndexer | None = None,
    ) -> None:
        """Find the samples of all tasks; what lacks the text that a task needs is none.

        Args:
            config: how much of each task, and how long.
            catalog: the whole catalogue.
            train: training sequences. Their items are the ones that examples speak of.
            texts: intentions and preferences, over rows of `catalog`.
            seed: of all that is random.
            items: int64 [n], the row in `catalog` of each item of `train`, where held-out items were left out of the
                numbering (`Split.fitted_items`, with `Split.fitted_index`); every row in order when not given.
            reasons: the reasoning of `find_cases`' cases, by place and for this `train` and `max_history`; without
                them, the task has no samples.
            users: gives users their codes, by the items of `train`; read where `config.user_tokens` asks for it.

        Raises:
            ValueError: `train` has an item that `items` has no row for, or `config.user_tokens` lacks `users`.
            ConfigError: the file of templates does not fit.
        """
        rows = np.arange(catalog.num_items) if items is None else items
        if train.items.max(initial=-1) >= len(rows):
            raise ValueError(f"train: item {train.items.max()} is not among the {len(rows)} items of the catalogue")
        if config.user_tokens and users is None:
            raise ValueError("user_tokens: pass `users`, which gives users their codes")
        self.config = config
        self.templates = Templates.load(config.templates)
        self._train = train
        self._texts = texts
        self._seed = seed
        self._rows: list[int] = rows.tolist()
        self._titles = _cut(column_texts(catalog, "title"), self._rows, config.max_title_words)
        self._descriptions = _cut(column_texts(catalog, "description"), self._rows, config.max_description_words)
        self._windows = cut_windows(train, config.max_history + 1)
        self._histories = Histories(train, config.max_history)
        self._reasons = reasons or {}
        self._intentions: list[Sequence[str]] = [texts.intentions(row) for row in self._rows]
        self._preferences: dict[int, Sequence[tuple[str, str]]] = {}
        self._user_codes = self._window_codes = None
        if config.user_tokens and users is not None:
            self._user_codes, self._window_codes = self._name_users(users)
        self._samples = self._find_samples()

    @property
    def num_samples(self) -> dict[TaskName, int]:
        """What there is of each task, whatever its share."""
        return {task: len(samples) for task, samples in self._samples.items()}

    def samples(self, task: TaskName) -> IntArray:
        """int64: what `write` takes for `task`. Items; numbers of windows; or places in the training items."""
        return self._samples[task]

    def epoch(self, epoch: int, *, held_out: bool = False) -> Epoch:
        """The examples of epoch number `epoch` >= 0, shuffled; with `held_out`, in the phrasing kept for testing."""
        tasks, samples, draws = [], [], []
        for number, task in enumerate(TASKS):
            # A generator a task: to change the share of one leaves the draws of the others as they are.
            random = np.random.default_rng([self._seed, epoch, number + (number >= _ORDER)])
            chosen = _choose(self.samples(task), self.share(task), random)
            samples.append(chosen)
            tasks.append(np.full(len(chosen), number, dtype=np.int8))
            draws.append(random.random((len(chosen), 2)))
        order = np.random.default_rng([self._seed, epoch, _ORDER]).permutation(sum(map(len, samples)))
        return Epoch(
            self,
            np.concatenate(tasks)[order],
            np.concatenate(samples)[order],
            np.concatenate(draws)[order],
            held_out=held_out,
        )

    def share(self, task: TaskName) -> TaskShare:
        """How much of `task` an epoch holds."""
        share: TaskShare = getattr(self.config.shares, task)
        return share

    def write(self, task: TaskName, sample: int, phrasing: float, text: float, *, held_out: bool) -> Example:
        """One example.

        Args:
            task: the task.
            sample: one of `samples(task)`.
            phrasing: in [0, 1), which phrasing.
            text: in [0, 1), which of several texts; with tokens of users, how much of a window names the user.
            held_out: whether to use the phrasing kept for testing instead.
        """
        wording = self.templates.of(task)
        prompt = wording.held_out if held_out else _pick(wording.train, phrasing)
        if task == "next_item":
            return self._window(prompt, wording.response, sample, text)
        if task == "user_to_preference":
            values = self._about_preference(sample, text)
            return Example(
                task=task,
                prompt=self._of_user(sample, render(prompt, values)),
                response=render(wording.response, values),
            )
        if PLACEHOLDERS[task][0].isdisjoint(_HISTORIES):
            values = self._about_item(sample, text)
            return Example(task=task, prompt=render(prompt, values), response=render(wording.response, values))
        values = self._about_history(task, sample, text)
        return Example(
            task=task,
            prompt=self._of_user(sample, render(prompt, values)),
            response=self._reasoned(sample) if task == "reasoning" else render(wording.response, values),
            without_history=render(prompt, {**values, **_HISTORIES}),
        )

    def _window(self, prompt: str, response: str, window: int, draw: float) -> Example:
        start, first_target, end = (
            int(bounds[window]) for bounds in (self._windows.start, self._windows.first_target, self._windows.end)
        )
        if self._window_codes is not None:
            # The user is named by what stands before the targets.
            first_target += int(draw * (end - first_target))
        context, targets = (
            Items(tuple(self._train.items[begin:stop].tolist()))
            for begin, stop in ((start, first_target), (first_target, end))
        )
        given = render(prompt, {}) + ((context,) if context.indices else ())
        return Example(
            task="next_item",
            prompt=_named(given, self._window_codes, first_target),
            response=render(response, {"items": targets}),
        )

    def _about_item(self, item: int, text: float) -> dict[str, str | Items]:
        asked = self._intentions[item]
        return {
            "item": Items((item,)),
            "title": self._titles[item],
            "description": self._descriptions[item],
            "query": _pick(asked, text) if asked else "",
        }

    def _about_history(self, task: TaskName, place: int, text: float) -> dict[str, str | Items]:
        history = self._histories.before(place)
        values = self._about_item(self._histories.target(place), text)
        values["history"] = Items(history)
        if task == "titles_to_item":
            values["titles"] = "; ".join(filter(None, (self._titles[item] for item in history)))
        if task == "history_to_preference":
            values |= self._about_preference(place, text)
        return values

    def _about_preference(self, place: int, text: float) -> dict[str, str | Items]:
        horizon, preference = _pick(self._preferences[place], text)
        return {"horizon": horizon, "preference": preference}

    def _reasoned(self, place: int) -> tuple[Piece, ...]:
        wording, reasons, history = self.templates.reasoning, self._reasons[place], self._histories.before(place)
        kept = None if reasons.kept is None else Items(tuple(history[number] for number in reasons.kept))
        answer = wording.answer(Items((self._histories.target(place),)), kept)
        return (reasons.chain.write(wording.steps), wording.end, *answer)

    def _of_user(self, place: int, prompt: tuple[Piece, ...]) -> tuple[Piece, ...]:
        return _named(prompt, self._user_codes, place)

    def _name_users(self, users: HistoryIndexer) -> tuple[IntArray, IntArray]:
        """int64 [places, L] twice: the codes of each place's user, by the items before it; -1 where there are none.

        The first are of histories as prompts show them, without the place's item. Windows show it where the user has
        had it before, and so do those who are served: a name without it would tell what comes next.
        """
        shown = [self._histories.before(place) for place in range(len(self._train.items))]
        codes = users.encode(Sequences.from_lists(shown))
        whole = [self._histories.all_before(place) for place in range(len(shown))]
        repeats = [place for place, history in enumerate(whole) if history != shown[place]]
        of_windows = codes.copy()
        if repeats:
            of_windows[repeats] = users.encode(Sequences.from_lists([whole[place] for place in repeats]))
        return codes, of_windows

    def _find_samples(self) -> dict[TaskName, IntArray]:
        train = self._train
        titled, described, wanted = (
            np.array([bool(text) for text in texts], dtype=bool)
            for texts in (self._titles, self._descriptions, self._intentions)
        )
        histories = {place: self._histories.before(place) for place in range(len(train.items))}
        followers = _ints(place for place, history in histories.items() if history)
        after_titles = _ints(
            place for place in followers.tolist() if any(self._titles[item] for item in histories[place])
        )
        last = np.intersect1d(followers, latest_places(train, 1))
        for place in last.tolist():
            history = [self._rows[item] for item in histories[place]]
            known = self._texts.preferences(self._histories.user(place), history).known
            if known:
                self._preferences[place] = known
        return {
            "next_item": np.arange(len(self._windows)),
            "title_to_item": np.flatnonzero(titled),
            "description_to_item": np.flatnonzero(described),
            "both_to_item": np.flatnonzero(titled & described),
            "item_to_title": np.flatnonzero(titled),
            "item_to_description": np.flatnonzero(described),
            "item_to_both": np.flatnonzero(titled & described),
            "history_to_title": followers[titled[train.items[followers]]],
            "history_to_description": followers[described[train.items[followers]]],
            "titles_to_item": after_titles,
            "intention_to_item": np.flatnonzero(wanted),
            "history_and_intention_to_item": last[wanted[train.items[last]]],
            "history_to_preference": _ints(self._preferences),
            "reasoning": _ints(self._reasons),
            "user_to_preference": _ints(self._preferences if self._user_codes is not None else ()),
        }


class Epoch:
    """The examples of one epoch by number; each is written when it is asked for, and always the same."""

    def __init__(
        self,
        mix: TaskMix,
        tasks: npt.NDArray[np.int8],
        samples: IntArray,
        draws: npt.NDArray[np.float64],
        *,
        held_out: bool,
    ) -> None:
        """`tasks` [n] are numbers in `TASKS`, `samples` [n] as in `TaskMix.write`, `draws` [n, 2] in [0, 1)."""
        self._mix = mix
        self._tasks = tasks
        self._samples = samples
        self._draws = draws
        self._held_out = held_out

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, number: int) -> Example:
        phrasing, text = self._draws[number].tolist()
        return self._mix.write(
            TASKS[self._tasks[number]], int(self._samples[number]), phrasing, text, held_out=self._held_out
        )

    def __iter__(self) -> Iterator[Example]:
        return (self[number] for number in range(len(self)))

    def numbers(self, *tasks: TaskName) -> IntArray:
        """int64, ascending: which examples are of `tasks`."""
        return np.flatnonzero(np.isin(self._tasks, [TASKS.index(task) for task in tasks]))

    @property
    def counts(self) -> dict[TaskName, int]:
        """Examples of each task that has any."""
        counts = np.bincount(self._tasks, minlength=len(TASKS)).tolist()
        return {task: count for task, count in zip(TASKS, counts, strict=True) if count}


def _named(prompt: tuple[Piece, ...], codes: IntArray | None, place: int) -> tuple[Piece, ...]:
    """The prompt with the codes of a place's user at its head, where there are any."""
    if codes is None or codes[place, 0] < 0:
        return prompt
    return for_user(prompt, UserTokens(tuple(codes[place].tolist())))


def _choose(samples: IntArray, share: TaskShare, random: np.random.Generator) -> IntArray:
    """Whole passes and a random part of one; no sample comes twice before all others have come once."""
    count = round(share.passes * len(samples))
    if share.limit is not None:
        count = min(count, share.limit)
    passes = -(-count // max(1, len(samples)))
    order = [random.permutation(samples) for _ in range(passes)]
    return np.concatenate([samples[:0], *order])[:count]


def _pick(options: Sequence[T], draw: float) -> T:
    return options[int(draw * len(options))]


def _cut(texts: list[str], rows: list[int], max_words: int) -> list[str]:
    return [first_words(texts[row], max_words) for row in rows]


def _ints(values: Iterable[int]) -> IntArray:
    return np.fromiter(values, dtype=np.int64)
