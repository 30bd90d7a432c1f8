"""A/B tests of real (tiny) bundles on simulated users, from the command line on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from toy_bundle import NUM_ITEMS, write_toy_bundle
from typer.testing import CliRunner

from recsys.bundle import Bundle
from recsys.cli.main import build_app
from recsys.data import Catalog, Sequences
from recsys.errors import DataError
from recsys.simulator.behaviour.folds import UserFolds
from recsys.simulator.experiment.verdict import Verdict
from training.ab import careful
from training.arms import bundle_lists

NUM_USERS = 250


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles `a` and `b` over the same items, and `data`, a log of users whom neither has seen."""
    directory = tmp_path_factory.mktemp("ab")
    write_toy_bundle(directory / "a", seed=0)
    write_toy_bundle(directory / "b", seed=1)
    random = np.random.default_rng(0)
    items = np.concatenate([random.choice(NUM_ITEMS, 8, replace=False) for _ in range(NUM_USERS)])
    (directory / "data").mkdir()
    pl.DataFrame(
        {
            "user_id": np.repeat([f"new{user}" for user in range(NUM_USERS)], 8),
            "item_id": [f"i{item}" for item in items],
            "timestamp": np.tile(np.arange(8) * 600, NUM_USERS),
        }
    ).write_parquet(directory / "data" / "interactions.parquet")
    pl.DataFrame(
        {"item_id": [f"i{item}" for item in range(NUM_ITEMS)], "title": [f"Film {item}" for item in range(NUM_ITEMS)]}
    ).write_parquet(directory / "data" / "items.parquet")
    return directory


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `recsys`."""
    result = CliRunner().invoke(build_app(), [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def ab(place: Path, first: str, second: str, out: Path, *options: object) -> dict[str, object]:
    code, _, errors = run(
        "ab",
        place / first,
        second if "://" in second else place / second,
        "--log",
        place / "data",
        "--pages",
        3,
        "--sessions",
        20,
        "--out",
        out,
        *options,
    )
    assert code == 0, errors
    document: dict[str, object] = json.loads((out / "report.json").read_text())
    return document


def test_two_bundles_are_compared_on_users_that_neither_saw(place: Path, tmp_path: Path) -> None:
    found = ab(place, "a", "b", tmp_path / "one")
    folds = UserFolds.of([f"new{user}" for user in range(NUM_USERS)])
    facts = found["facts"]
    assert isinstance(facts, dict)
    assert facts["simulated_users"] == len(folds.evaluation)
    assert facts["simulator_users"] == len(folds.simulator)
    assert facts["simulated_users_that_an_arm_learned_from"] == 0
    assert facts["simulator_users_that_an_arm_learned_from"] == 0
    assert found["users"] == {name: len(folds.evaluation) for name in found["users"]}
    assert found["decision"] in ("better", "better_but_unsafe", "worse", "no_difference", "inconclusive")
    assert str(found["verdict"]).endswith("a live test has the last word.")
    assert "figure-sequence" in (tmp_path / "one" / "report.html").read_text()
    ab(place, "a", "b", tmp_path / "again")
    assert (tmp_path / "one" / "report.json").read_bytes() == (tmp_path / "again" / "report.json").read_bytes()
    other = ab(place, "a", "b", tmp_path / "other", "--seed", 1)
    assert other["primary"] != found["primary"]


def test_a_bundle_against_itself_shows_no_difference(place: Path, tmp_path: Path) -> None:
    found = ab(place, "a", "a", tmp_path)
    assert found["decision"] == "no_difference"
    primary = found["primary"]
    assert isinstance(primary, dict)
    assert primary["effect"]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_the_histories_of_the_first_bundle_do_where_no_log_is_given(place: Path) -> None:
    code, _, errors = run("ab", place / "a", place / "b")
    assert code == 1
    assert "fold" in errors or "too few" in errors, "twelve users are too few to divide"


@pytest.fixture
def service() -> Iterator[str]:
    """Says what the API says: the most popular items, i0 first, and one that the catalogue does not have."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            ids = ["unknown", *(f"i{item}" for item in range(NUM_ITEMS))]
            self._say({"items": [{"item_id": each} for each in ids if each not in asked["history"]][: asked["k"]]})

        def _say(self, answer: object) -> None:
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_running_service_is_an_arm(place: Path, tmp_path: Path, service: str) -> None:
    found = ab(place, "a", service, tmp_path)
    facts = found["facts"]
    assert isinstance(facts, dict)
    assert facts["treatment"] == {"name": service, "version": None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "b"], "no bundle at"),
        (["a", "http://127.0.0.1:9"], "gives no list"),
        # Usual secondary metrics and guardrails give way: the next thing to fail is the service.
        (["a", "http://127.0.0.1:9", "--primary", "session_length"], "gives no list"),
        (["a", "b", "--primary", "clicks"], "unknown metric 'clicks'; there are choices_per_user"),
        (["a", "b", "--guardrail", "variety"], "expected METRIC=SHARE"),
        (["a", "b", "--guardrail", "choices_per_user=0.1"], "has two roles"),
        (["a", "b", "--alpha", "2"], "alpha must lie above 0 and below 1"),
        (["a", "b", "--log", "no-such-data"], "neither a folder"),
        (["a", "http://127.0.0.1:9", "--pages", "30"], "a service lists 100 items at most"),
    ],
)
def test_bad_input_is_one_line(place: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    paths = [str(place / each) if each in ("a", "b") else each for each in arguments]
    data = [] if "--log" in arguments else ["--log", str(place / "data")]
    code, output, errors = run("ab", *paths, *data, "--out", tmp_path)
    assert (code, output) == (1, "")
    assert message in errors
    assert not list(tmp_path.iterdir())


def test_bundles_of_other_items_are_refused(place: Path) -> None:
    bundle = Bundle.load(place / "a")
    catalog = Catalog(frame=bundle.catalog.frame.head(39))
    with pytest.raises(DataError, match="has 1 items that the first arm has not, and lacks 0"):
        bundle_lists(bundle, catalog, Sequences.from_lists([[0]]), 3)


def test_bundles_whose_items_are_in_another_order_are_compared(place: Path) -> None:
    bundle = Bundle.load(place / "a")
    histories = [[3, 5], [7]]
    expected = bundle_lists(bundle, bundle.catalog, Sequences.from_lists(histories), 4).lists
    turned = Catalog(frame=bundle.catalog.frame.reverse())
    found = bundle_lists(bundle, turned, Sequences.from_lists([[39 - i for i in items] for items in histories]), 4)
    assert (39 - found.lists).tolist() == expected.tolist()


@pytest.mark.parametrize(("kept", "decision"), [(12, "better"), (10, "better"), (9, "inconclusive")])
def test_a_sign_that_depends_on_the_simulator_is_no_answer(kept: int, decision: str) -> None:
    facts = {
        "simulators_with_this_sign": f"{kept} of 12",
        "simulated_users": 50,
        "simulated_users_that_an_arm_learned_from": 7,
    }
    found = careful(Verdict(decision="better", text="B is better than A."), facts, kept / 12)
    assert found.decision == decision
    assert f"{kept} of 12 simulators" in found.text
    assert "learned from 7 of the 50 simulated users" in found.text


def test_the_size_of_a_live_test() -> None:
    options = ["ab-power", "--baseline", 0.04, "--lift", 0.05, "--correlation", 0.6, "--daily-users", 20000]
    code, output, _ = run(*options, "--json")
    # 2 * 7.848880 * .04 * .96 * (1 - .36) / .002^2
    assert (code, json.loads(output)) == (0, {"users_per_arm": 96448, "days": 9.6448})
    assert "96,448 users in each of two arms" in run(*options)[1]
    for change, message in [
        (["--baseline", 0], "--baseline must be above 0"),
        (["--baseline", 3], "give its standard deviation"),
        (["--lift", 0], "difference must be"),
        (["--deviation", -1], "--deviation must be 0 or more"),
        (["--power", 1], "power must lie between 0 and 1"),
    ]:
        code, _, errors = run(*options, *change)
        assert code == 1
        assert message in errors
