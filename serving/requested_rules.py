"""From the rules of a request and of the service's settings to those of a query. Knows no model and no routes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from recsys.generator.filters import FilterError, joined, resolved
from serving.answers import Boost, Pin
from serving.catalog_rules import RuleError
from serving.problems import ProblemError, field_name
from serving.schemas.rules import Rules
from serving.settings import ServingSettings


def query_rules(rules: Rules, settings: ServingSettings) -> dict[str, Any]:
    """Fields of `Query`.

    Args:
        rules: of a request.
        settings: of the service, with its named filters and those that always hold.

    Raises:
        FilterError: a filter of that name does not exist.
    """
    named = settings.filters
    parts = [named[name] for name in settings.always]
    if rules.filter is not None:
        parts.append(resolved(rules.filter, named, ("filter",)))
    return {
        "exclude": rules.exclude,
        "categories": rules.categories,
        "filter": joined(parts) if parts else None,
        "max_per_category": rules.max_per_category,
        "max_per": rules.max_per,
        "pins": [Pin(item_id=pin.item_id, position=pin.position) for pin in rules.pins],
        "boosts": [
            Boost(
                weight=boost.weight,
                filter=None if boost.filter is None else resolved(boost.filter, named, ("boosts", place, "filter")),
                item_ids=boost.item_ids or (),
            )
            for place, boost in enumerate(rules.boosts)
        ],
        "diversity": rules.diversity,
        "candidates": settings.rerank_candidates,
    }


@contextmanager
def rule_problems() -> Iterator[None]:
    """Rules that ask for what there is not, as the problem of a request that names the field.

    Raises:
        ProblemError: a rule does not fit the settings or the catalogue.
    """
    try:
        yield
    except (FilterError, RuleError) as error:
        raise ProblemError(422, str(error), field=field_name(error.place)) from error
