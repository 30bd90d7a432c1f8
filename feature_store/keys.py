"""Where everything is in Redis. Knows no connection.

Every user belongs to one of `SHARDS` shards, by the CRC-32 of the user id. The shard's number in braces is the hash tag
of all keys of its users and of its part of the event log, so that one script can change them together on a cluster.
All keys begin with a namespace `NS`; the 2 is `SCHEMA`, the version of this layout; of histories and logs the newest
entries are kept:

    key                        slot of     what
    NS:2:{07}:h:USER           the shard   sorted set: history, score = event time, member = arrival:type:item; 500
    NS:2:{07}:n:USER           the shard   number of events that ever arrived
    NS:2:{07}:log:USER         the shard   stream of the user's events in order of arrival; 100 000 or a few more
    NS:2:{07}:e:USER:EVENT     the shard   fingerprint of an accepted event (USER percent-encoded); expires
    NS:2:{07}:profile:1:USER   the shard   profile as one JSON text; the 1 is the format of the value
    NS:2:{07}:session:USER     the shard   state of the session as one JSON text; expires
    NS:2:{07}:gone:USER        the shard   the log of a user whose erasure has begun and not ended
    NS:2:{07}:wal              the shard   stream of the shard's events, of lists that were shown, and of erasures: the
                                           write-ahead log that the offline store is made from
    NS:2:{07}:groups           the shard   hash: consumer group of the log -> id of the offline store that it fills
    NS:2:{07}:erased           the shard   set of SHA-256 of erased user ids, whom no data set brings back
    NS:2:{items}:version       {items}     version of the catalogue: how often items were changed or placed
    NS:2:{items}:rows:1        {items}     hash: item id -> what was put last, as one JSON text; the 1 is its format,
                                           also below
    NS:2:{items}:numbers       {items}     sorted set: item id, score = place in the order in which items were first put
    NS:2:{items}:changes       {items}     sorted set: item id, score = version of the catalogue with its last change
    NS:2:{items}:removed       {items}     set of the item ids that are removed, also of a bundle's own items
    NS:2:{items}:placed:1:MODEL  {items}   hash: item id -> semantic ID and vector in that model, as one JSON text
    NS:2:{items}:places:MODEL  {items}     hash: semantic ID -> the item that has it in that model
    NS:2:{items}:lease:MODEL   {items}     there while a process makes them; expires
    NS:schema                  its own     version of the layout
    NS:users                   its own     sorted set of user ids, all with score 0, for the search by prefix
    NS:item:ITEM               its own     features of an item as one JSON text
    NS:seed                    its own     version of the data set whose histories are in, of all users
    NS:seeding                 its own     there while a process puts them in, with the share that is in; expires
    NS:seeded                  its own     set of the users that have entries of a data set

No command uses keys of two slots, and nothing is done in a transaction over them: what spans slots, such as the search
by prefix beside a user's history, is written so that the next look mends what a crash left between. A cluster spreads
users over at most `SHARDS` primaries; the catalogue's changes are on one. Where primaries have equal ranges of slots,
each of 4 has 4 shards, and of 3 one has 8; more than 4 need slots moved to those that have no shard.
"""

from __future__ import annotations

import hashlib
from urllib.parse import quote
from zlib import crc32

from feature_store.errors import StoreConfigError

SCHEMA = 2
SHARDS = 16
"""Fixed: it decides where a user's keys are."""

PROFILE = "profile:1"


class Keys:
    """The keys of one namespace.

    Args:
        namespace: prefix of all of them.

    Raises:
        StoreConfigError: the namespace has braces, which would move the hash tag.
    """

    def __init__(self, namespace: str) -> None:
        if "{" in namespace or "}" in namespace:
            raise StoreConfigError(f"store: namespace {namespace!r} has braces; choose a name without")
        self.namespace = namespace

    def named(self, name: str) -> str:
        """A key that belongs to no user."""
        return f"{self.namespace}:{name}"

    def item(self, item_id: str) -> str:
        """The features of an item."""
        return self.named(f"item:{item_id}")

    def of_items(self, name: str) -> str:
        """A key of the catalogue's changes."""
        return f"{self.namespace}:{SCHEMA}:{{items}}:{name}"

    def of_shard(self, shard: int, name: str) -> str:
        """A key of a shard."""
        return f"{self.namespace}:{SCHEMA}:{{{shard:02d}}}:{name}"

    def of_user(self, user_id: str, name: str) -> str:
        """A key of a user."""
        return self.of_shard(shard_of(user_id), f"{name}:{user_id}")

    def beside_user(self, user_id: str, name: str) -> str:
        """A key of the user's shard."""
        return self.of_shard(shard_of(user_id), name)

    def event(self, user_id: str, event_id: str) -> str:
        """The idempotency key of an event."""
        # Encoded, so that no colon within the user id can make it another user's key.
        return self.of_shard(shard_of(user_id), f"e:{quote(user_id, safe='')}:{event_id}")


def shard_of(user_id: str) -> int:
    """The shard of a user, 0 to `SHARDS` - 1."""
    return crc32(user_id.encode()) % SHARDS


def digest_of(user_id: str) -> str:
    """What is kept of an erased user's id: its SHA-256."""
    return hashlib.sha256(user_id.encode()).hexdigest()
