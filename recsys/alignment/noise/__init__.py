"""Wrong labels among pairs: one module a remedy. Each is a `PairFilter`, and filters compose.

The usual order: `ConfidenceFilter` (what its maker doubts), `PeerReviewFilter` (what two models doubt),
`ConsistencyFilter` (what changes from iteration to iteration), `FlipRateFilter` (what is left, for the robust loss).
"""

from recsys.alignment.noise.confidence import ConfidenceFilter
from recsys.alignment.noise.consistency import ConsistencyFilter
from recsys.alignment.noise.filter import PairFilter, composed
from recsys.alignment.noise.flip_rate import FlipRateFilter
from recsys.alignment.noise.peer_review import PeerReviewFilter
from recsys.alignment.noise.routing import RoutingFilter

__all__ = [
    "ConfidenceFilter",
    "ConsistencyFilter",
    "FlipRateFilter",
    "PairFilter",
    "PeerReviewFilter",
    "RoutingFilter",
    "composed",
]
