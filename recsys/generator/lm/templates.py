"""The wording of each task: phrasings read from YAML, checked, and filled in. Knows no catalogue and no sampling."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Formatter
from typing import Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from recsys.config import StrictConfig, read_yaml, read_yaml_over
from recsys.errors import ConfigError
from recsys.generator.lm.examples import Items, Piece

PACKAGED = Path(__file__).with_name("templates.yaml")
"""The wording that comes with the package."""
NO_HISTORY = "(none)"
"""What a prompt says in place of a history that is left out."""

TaskName = Literal[
    "next_item",
    "title_to_item",
    "description_to_item",
    "both_to_item",
    "item_to_title",
    "item_to_description",
    "item_to_both",
    "history_to_title",
    "history_to_description",
    "titles_to_item",
    "intention_to_item",
    "history_and_intention_to_item",
    "history_to_preference",
    "reasoning",
    "user_to_preference",
]
"""The tasks of LC-Rec (arXiv 2311.09049, section 3.3), the reasoning of GREAM (arXiv 2510.20815), and what the tokens
of a user say (ULMRec, arXiv 2412.05543)."""

_FIELDS: Mapping[TaskName, tuple[str, str]] = {
    "next_item": ("", "items"),
    "title_to_item": ("title", "item"),
    "description_to_item": ("description", "item"),
    "both_to_item": ("title description", "item"),
    "item_to_title": ("item", "title"),
    "item_to_description": ("item", "description"),
    "item_to_both": ("item", "title description"),
    "history_to_title": ("history", "title"),
    "history_to_description": ("history", "description"),
    "titles_to_item": ("titles", "item"),
    "intention_to_item": ("query", "item"),
    "history_and_intention_to_item": ("history query", "item"),
    "history_to_preference": ("history horizon", "preference"),
    "reasoning": ("history", "item"),
    "user_to_preference": ("horizon", "preference"),
}
PLACEHOLDERS: Mapping[TaskName, tuple[frozenset[str], frozenset[str]]] = {
    name: (frozenset(prompt.split()), frozenset(response.split())) for name, (prompt, response) in _FIELDS.items()
}
"""What the prompt and the response of each task must have, once each."""
REASONS = ("evidence", "preference", "intent")
"""What `reasoning.steps` must have, once each."""


class TaskTemplates(StrictConfig):
    """The wording of one task."""

    response: str
    """What is to be produced."""
    train: tuple[str, ...] = Field(min_length=1)
    """Phrasings of the prompt; the first is canonical."""
    held_out: str
    """A phrasing that training never sees."""


class ReasoningTemplates(TaskTemplates):
    """The wording of the reasoning task: `steps`, `end`, `rewriting` where it is asked for, and `response`."""

    steps: str
    """The reasons, each in a line of its own, so that they can be read back."""
    end: str
    """What stands after the reasons and never within: a line of its own, always the same."""
    rewriting: str
    """The items of the history that bear on the answer."""

    @model_validator(mode="after")
    def _reasons_can_be_read_back(self) -> ReasoningTemplates:
        _check("reasoning.steps", self.steps, frozenset(REASONS))
        _check("reasoning.rewriting", self.rewriting, frozenset({"kept"}))
        _check("reasoning.end", self.end, frozenset())
        parts = [literal for literal, _, _, _ in Formatter().parse(self.steps)]
        if not all(part.startswith("\n") and part.strip() for part in parts[1 : len(REASONS)]):
            raise ValueError("reasoning.steps: begin each reason but the first with a line break and its name")
        if not (self.end.startswith("\n") and self.end.strip()):
            raise ValueError("reasoning.end: begin it with a line break, and write a word that ends the reasons")
        if self.end in self.steps:
            raise ValueError("reasoning.end: stands in reasoning.steps too; reword one of them")
        if not self.response.endswith("{item}"):
            raise ValueError("reasoning.response: end it with {item}")
        return self

    def answer(self, item: Items, kept: Items | None) -> tuple[Piece, ...]:
        """What comes after `end`: the rewritten history if there is one, and the item."""
        if kept is None:
            return render(self.response, {"item": item})
        return render(self.rewriting + self.response, {"kept": kept, "item": item})

    def lead(self, kept: Items | None) -> tuple[Piece, ...]:
        """What stands between `end` and the item: given to a model that has finished its reasons."""
        return self.answer(Items(()), kept)[:-1]


class Templates(StrictConfig):
    """The wording of all tasks."""

    next_item: TaskTemplates
    """Items of a window, each given those before it. The items follow the prompt, which has no placeholder."""
    title_to_item: TaskTemplates
    """The item of a title."""
    description_to_item: TaskTemplates
    """The item of a description."""
    both_to_item: TaskTemplates
    """The item of a title and a description."""
    item_to_title: TaskTemplates
    """An item's title."""
    item_to_description: TaskTemplates
    """An item's description."""
    item_to_both: TaskTemplates
    """An item's title and description."""
    history_to_title: TaskTemplates
    """The title of the item after a history."""
    history_to_description: TaskTemplates
    """The description of the item after a history."""
    titles_to_item: TaskTemplates
    """The item after a history given as titles."""
    intention_to_item: TaskTemplates
    """The item that somebody looks for in words."""
    history_and_intention_to_item: TaskTemplates
    """The item that the user of a history looks for in words."""
    history_to_preference: TaskTemplates
    """What a history says about its user's taste, in words."""
    reasoning: ReasoningTemplates
    """The item after a history, with the reasons before it. The reasons follow the prompt."""
    user_to_preference: TaskTemplates = Field(
        default_factory=lambda: TaskTemplates.model_validate(read_yaml(PACKAGED)["user_to_preference"])
    )
    """What a user's tokens, at the head of the prompt, say about the taste. Falls back on the packaged wording, so
    that wordings that were saved before there were tokens of users can be read."""

    @model_validator(mode="after")
    def _placeholders_fit_the_tasks(self) -> Templates:
        for task, (prompt, response) in PLACEHOLDERS.items():
            wording = self.of(task)
            _check(f"{task}.response", wording.response, response)
            for number, phrasing in enumerate(wording.train):
                _check(f"{task}.train[{number}]", phrasing, prompt)
            _check(f"{task}.held_out", wording.held_out, prompt)
            if wording.held_out in wording.train:
                raise ValueError(f"{task}.held_out: is one of {task}.train too; reword one of them")
        return self

    @classmethod
    def load(cls, path: Path | None = None) -> Templates:
        """The packaged wording; tasks that the YAML file `path` holds take that file's.

        Raises:
            ConfigError: the file cannot be read, or a task or placeholder is unknown or missing.
        """
        values = read_yaml_over(PACKAGED, path)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{path or PACKAGED}: {'; '.join(map(_explain, error.errors()))}") from error

    def of(self, task: TaskName) -> TaskTemplates:
        """The wording of `task`."""
        wording: TaskTemplates = getattr(self, task)
        return wording

    @property
    def next_item_instruction(self) -> str:
        """What stands before the history when a model is asked for the next item."""
        return self.next_item.train[0]

    def search_prompt(self, query: str) -> tuple[Piece, ...]:
        """What a model is asked that looks for the item of a wish or a title in words; the item comes right after."""
        return render(self.intention_to_item.train[0], {"query": query})


def render(template: str, values: Mapping[str, str | Items]) -> tuple[Piece, ...]:
    """Fill in the placeholders; text that touches text is one piece, and no piece of text is empty.

    Blanks before semantic IDs are left out: language models know a blank as the beginning of a word, hardly on its own.
    """
    pieces: list[Piece] = [""]
    for literal, name, _, _ in Formatter().parse(template):
        for piece in (literal, values[name] if name is not None else ""):
            last = pieces[-1]
            if isinstance(piece, Items):
                if isinstance(last, str):
                    pieces[-1] = last.rstrip(" ")
                pieces.append(piece)
            elif isinstance(last, str):
                pieces[-1] = last + piece
            else:
                pieces.append(piece)
    return tuple(piece for piece in pieces if piece != "")


def _check(where: str, template: str, expected: frozenset[str]) -> None:
    """Raise ValueError unless `template` has each placeholder of `expected` once and no other."""
    try:
        fields = [(name, spec, conversion) for _, name, spec, conversion in Formatter().parse(template)]
    except ValueError as error:
        raise ValueError(f"{where}: {error}; write {{{{ and }}}} for braces") from error
    names = [name for name, _, _ in fields if name is not None]
    for name in names:
        if name not in expected:
            known = ", ".join(f"{{{each}}}" for each in sorted(expected)) or "none"
            raise ValueError(f"{where}: unknown placeholder {{{name}}}; known here: {known}")
        if names.count(name) > 1:
            raise ValueError(f"{where}: placeholder {{{name}}} stands there {names.count(name)} times; keep one")
    if any(spec or conversion for _, spec, conversion in fields):
        raise ValueError(f"{where}: a placeholder takes no format; write {{name}} only")
    for name in sorted(expected - set(names)):
        raise ValueError(f"{where}: placeholder {{{name}}} is missing; add it")


def _explain(details: ErrorDetails) -> str:
    field = ".".join(map(str, details["loc"]))
    if details["type"] == "extra_forbidden":
        tasks = {"reasoning": ReasoningTemplates}
        known = Templates if len(details["loc"]) == 1 else tasks.get(str(details["loc"][0]), TaskTemplates)
        return f"unknown key {field}; the keys are {', '.join(known.model_fields)}"
    if details["type"] == "value_error":
        return str(details["ctx"]["error"])
    return f"{field}: {details['msg']}"
