"""How a generator with a language model as its body is asked for the next item of a user it has a text on."""

from __future__ import annotations

from collections.abc import Sequence

from recsys.generator.lm.examples import Items, Piece
from recsys.generator.lm.language import ItemLanguage
from recsys.profile.profile import Profile


def profile_prompt(language: ItemLanguage, text: str, history: Sequence[int]) -> tuple[Piece, ...]:
    """What asks a model for the next item of a user it has a text on: the text stands on a line of its own before the
    request that the model was taught with; without a text it is that request."""
    instruction = language.backbone.templates.next_item_instruction
    items = (Items(tuple(history)),) if len(history) else ()
    return (f"{text}\n{instruction}" if text else instruction, *items)


def fitting_text(language: ItemLanguage, profile: Profile, history: Sequence[int]) -> str:
    """The first statements of `profile` that the model can read before `history` and still decode an item after it."""
    model, backbone = language.model, language.backbone
    instruction = backbone.text_tokens("\n" + backbone.templates.next_item_instruction)
    room = backbone.max_positions - len(instruction) - len(history) * model.rows_per_item - model.trie.num_levels
    text = ""
    for statement in profile.statements:
        longer = f"{text} {statement.text}".lstrip()
        if len(backbone.text_tokens(longer)) > room:
            break
        text = longer
    return text
