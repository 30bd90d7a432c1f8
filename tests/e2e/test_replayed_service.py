"""What a service logs is what `recsys replay` makes of the same bundle: propensities, and so every estimate."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient
from toy_bundle import NUM_USERS, write_toy_bundle

from feature_store import OnlineStore
from feature_store.consumer import OfflineConsumer
from feature_store.log import EventLog
from feature_store.offline_writer import OfflineWriter
from recsys.bundle import Bundle
from recsys.simulator.off_policy import OffPolicyConfig
from serving.app import create_app
from serving.offline import OfflineExport
from serving.runtime import RecommenderRuntime
from serving.seeding import Seeding
from serving.settings import ServingSettings
from serving.slate_writer import SlateWriter
from training.replay import ReplayOptions, replay

_EPSILON, _CANDIDATES, _NUM_LISTS = 0.5, 6, 5 * NUM_USERS


@pytest.mark.parametrize("is_fused", [False, True], ids=["generator", "fusion"])
def test_the_lists_of_a_service_have_the_propensities_that_its_bundle_gives_them(
    tmp_path: Path, is_fused: bool
) -> None:
    write_toy_bundle(tmp_path / "toy", fusion=tmp_path / "fusion" if is_fused else None)
    bundle = Bundle.load(tmp_path / "toy")
    store = OnlineStore.embedded(tmp_path / "store")
    with OfflineWriter(tmp_path / "offline") as writer:
        OfflineConsumer(EventLog(store), writer).catch_up()  # what nobody has read yet is not logged
    app = create_app(
        RecommenderRuntime.from_bundle(bundle),
        store,
        ServingSettings.model_validate({"exploration": {"epsilon": _EPSILON, "candidates": _CANDIDATES}}),
        seeding=Seeding(store, "v1", bundle.users),
        offline=OfflineExport(store, tmp_path / "offline"),
        slates=SlateWriter(store),
    )
    with TestClient(app) as client:
        for number in range(_NUM_LISTS):
            assert client.post("/v1/recommend", json={"user_id": f"u{number % NUM_USERS}", "k": 4}).is_success
    store.close()
    options = ReplayOptions(target=tmp_path / "toy", epsilon=_EPSILON, candidates=_CANDIDATES)
    document = replay(tmp_path / "offline", options, OffPolicyConfig(n_resamples=100))
    assert (document["num_rounds"], document["num_known"], document["left_out"]) == (_NUM_LISTS, _NUM_LISTS, {})
    assert document["served_by"] == document["target"] == bundle.manifest.model_version
    for kind in ("standard", "cascade", "prefixes"):
        assert document["weights"][kind]["mean_weight"] == pytest.approx(1, abs=1e-3)
        assert document["weights"][kind]["max_weight"] == pytest.approx(1, abs=1e-2)
    calibration = document["calibration"]
    assert calibration["slope"] == pytest.approx(1, abs=4 * calibration["slope_error"])
