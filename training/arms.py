"""The arms of an A/B test as lists of items: a bundle is asked here, a running service over HTTP, as users would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recsys.bundle import Bundle
from recsys.data import Catalog, Sequences
from recsys.data.sequences import IntArray
from recsys.errors import ConfigError, DataError
from recsys.evaluation.ranker import Ranker
from recsys.progress import progress_bar
from training.results import find_bundle
from training.service_arm import ServiceRanker
from training.simulate import bundle_ranker

_USERS_AT_ONCE = 64
_MOST_OF_A_SERVICE = 100
"""Items of a list, a limit of the API."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ArmLists:
    """What an arm would show to each user."""

    name: str
    version: str | None
    """Of the model; None for a service that does not say."""
    lists: IntArray
    """int64 [users, k], best first, by the indices of the common catalogue; -1 = no more items."""
    num_degraded: int = 0
    """Lists that a service in good health would have made better."""
    num_unknown: int = 0
    """Items that a service listed and that the catalogue does not have; they were left out."""


def is_service(arm: str) -> bool:
    """Whether an arm is a URL, not a path."""
    return arm.startswith(("http://", "https://"))


def find_arm(arm: str) -> Path:
    """The directory of the bundle that an arm names, see `find_bundle`."""
    try:
        return find_bundle(arm)
    except ConfigError as error:
        raise ConfigError(f"{error}, or, as the second arm, the URL of a service") from error


def bundle_lists(bundle: Bundle, catalog: Catalog, histories: Sequences, k: int) -> ArmLists:
    """The lists of a bundle, of items that are not in the history.

    Args:
        bundle: the arm.
        catalog: of the test; it must have the same items, in any order.
        histories: of all users, by the indices of `catalog`.
        k: length of the lists.

    Raises:
        DataError: its catalogue is another one.
    """
    own, common = set(bundle.catalog.item_ids), set(catalog.item_ids)
    if own != common:
        raise DataError(
            f"the bundle {bundle.manifest.name} has {len(own - common)} items that the first arm has not, and lacks "
            f"{len(common - own)}; compare bundles of one catalogue"
        )
    to_own, to_common = bundle.catalog.index_of(catalog.item_ids), catalog.index_of(bundle.catalog.item_ids)
    found = _asked(bundle.manifest.name, bundle_ranker(bundle), histories.renumber(to_own), k)
    lists = np.where(found >= 0, to_common[found], -1)
    return ArmLists(name=bundle.manifest.name, version=bundle.manifest.model_version, lists=lists)


def service_lists(url: str, key: str | None, catalog: Catalog, histories: Sequences, k: int) -> ArmLists:
    """The lists of a running service, asked by history.

    Args:
        url: of the service, such as `http://127.0.0.1:8000`.
        key: its API key, if it asks for one.
        catalog: of the test; other items that the service shows are left out.
        histories: of all users, by the indices of `catalog`.
        k: length of the lists, 100 at most.

    Raises:
        ConfigError: k is more than a service gives.
        RecsysError: it does not answer, or refuses.
    """
    if k > _MOST_OF_A_SERVICE:
        raise ConfigError(f"a service lists {_MOST_OF_A_SERVICE} items at most, and {k} are needed; give fewer --pages")
    ranker = ServiceRanker(url, catalog.item_ids, key)
    lists = _asked(url, ranker, histories, k)
    return ArmLists(
        name=url,
        version=ranker.model_version,
        lists=lists,
        num_degraded=ranker.num_degraded,
        num_unknown=len(ranker.unknown_items),
    )


def names_of(arms: Sequence[ArmLists]) -> list[str]:
    """Names by which two arms are told apart: their own, with the version where these are the same, or A and B."""
    for names in ([arm.name for arm in arms], [f"{arm.name}@{arm.version}" for arm in arms]):
        if len(set(names)) == len(names):
            return names
    return [f"{arm.name} ({letter})" for arm, letter in zip(arms, "AB", strict=True)]


def _asked(name: str, ranker: Ranker, histories: Sequences, k: int) -> IntArray:
    """int64 [users, k]: the lists of all histories, with progress."""
    parts = []
    with progress_bar(f"Lists of {name}", len(histories)) as advance:
        for begin in range(0, len(histories), _USERS_AT_ONCE):
            some = histories.select(np.arange(begin, min(begin + _USERS_AT_ONCE, len(histories))))
            parts.append(ranker(some, k))
            advance(len(some), "")
    return np.concatenate(parts)
