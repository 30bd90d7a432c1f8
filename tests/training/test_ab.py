"""A/B tests of real (tiny) bundles on simulated users, from the command line on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from toy_bundle import NUM_ITEMS, write_toy_bundle
from typer.testing import CliRunner

import training.ab
from recsys.bundle import Bundle
from recsys.cli.main import build_app
from recsys.data import Catalog, Sequences
from recsys.errors import DataError
from recsys.simulator.behaviour.folds import UserFolds
from recsys.simulator.experiment.analysis import AnalysisPlan, ExperimentReport, analyse
from recsys.simulator.experiment.interleaving import preference_of_users
from recsys.simulator.experiment.page import Evidence, OtherSimulator
from recsys.simulator.experiment.verdict import verdict
from training.ab import careful
from training.arms import ArmLists, bundle_lists

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


def ab(place: Path, first: str, second: str, out: Path, *options: object) -> dict[str, Any]:
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
    document: dict[str, Any] = json.loads((out / "report.json").read_text())
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
    cautions = found["cautions"]
    assert isinstance(cautions, list)
    assert cautions[-1] == "Users are simulated; a live test has the last word."
    assert found["shown_nothing"] == dict.fromkeys(found["users"], 0)
    assert len(found["simulators"]) == 12
    assert set(found["interleaved"]) == {"team draft", "probabilistic"}
    page = (tmp_path / "one" / "report.html").read_text()
    assert "figure-sequence" in page
    assert f"{len(folds.evaluation)} users with 20 sessions each, of at most 3 lists of 5 items" in page
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
    assert list(found["users"]) == ["toy (A)", "toy (B)"]
    assert "Both arms are the same model" in str(found["cautions"])
    assert found["simulators_with_this_sign"] == 12
    for merged in found["interleaved"].values():
        assert merged["p_value"] > 0.05


def test_an_arm_without_lists_for_some_users_is_compared_and_one_without_any_is_refused(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = training.ab.bundle_lists

    def emptied(share: float) -> None:
        def lists(bundle: Bundle, *arguments: Any) -> ArmLists:
            found = real(bundle, *arguments)
            if bundle.manifest.model_version == Bundle.load(place / "b").manifest.model_version:
                found.lists[: round(share * len(found.lists))] = -1
            return found

        monkeypatch.setattr(training.ab, "bundle_lists", lists)

    emptied(0.25)
    found = ab(place, "a", "b", tmp_path / "some")
    (control, none), (treatment, some) = found["shown_nothing"].items()
    assert none == 0
    assert some == round(0.25 * found["users"][treatment])
    assert found["users"][treatment] == found["users"][control]
    assert f"{treatment} had nothing to show to {some} of {found['users'][treatment]} users" in found["verdict"]
    emptied(1.0)
    options = ["--log", place / "data", "--pages", 3, "--out", tmp_path / "none"]
    code, _, errors = run("ab", place / "a", place / "b", *options)
    assert code == 1
    assert "showed nothing to any of its" in errors
    assert not (tmp_path / "none").exists()


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
    assert facts["treatment"] == {"name": service, "version": None, "degraded_lists": 0, "unknown_items": 1}
    assert "listed 1 items that the catalogue of toy does not have; they were left out." in str(found["cautions"])


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
        (["a", "b", "--guardrail", "variety=0.1", "--guardrail", "variety=0.5"], "variety has two shares"),
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
    report = _report()
    effect = report.primary.effect
    against = replace(effect, difference=replace(effect.difference, value=-1.0))
    evidence = Evidence(
        simulators=tuple(
            OtherSimulator(
                temperature=1.0, position_bias=True, satiation=0.0, effect=effect if number < kept else against
            )
            for number in range(12)
        )
    )
    found = careful(verdict(report), report, evidence, _facts())
    assert found.decision == decision
    assert f"holds in {kept} of 12 simulators" in found.text
    assert "learned from 7 of the 50 simulated users" in found.cautions[0]


def test_what_may_mislead_is_said() -> None:
    report = _report()
    against = preference_of_users([f"u{user}" for user in range(20)], -np.ones(20))
    facts = _facts(
        treatment={"name": "http://host", "version": "v2", "degraded_lists": 3, "unknown_items": 2},
        simulator_validity={"failures": ["AUC 0.600 is below 0.7"]},
        simulated_users_that_an_arm_learned_from=0,
    )
    found = careful(verdict(report), report, Evidence(interleaved={"team draft": against}), facts)
    assert found.cautions == (
        "In lists merged of both arms (team draft) users prefer the other arm: find out why.",
        "http://host says that 3 of its 50 lists were made in poor health: look at its log, and test again.",
        "http://host listed 2 items that the catalogue of a does not have; they were left out.",
        "Simulated users are not yet like real ones: AUC 0.600 is below 0.7.",
        "Users are simulated; a live test has the last word.",
    )


def _report() -> ExperimentReport:
    """Of 50 users who all take more of B."""
    count = 50
    random = np.random.default_rng(0)
    numbers = {"sessions": 1, "steps": 10, "impressions": 50, "items": 30}
    arms = [
        pl.DataFrame(
            {"user_id": [f"u{user}" for user in range(count)], "choices": random.poisson(5, count) + more}
        ).with_columns(arm=pl.lit(arm), reward=pl.col("choices"), **{name: pl.lit(n) for name, n in numbers.items()})
        for arm, more in (("A", 0), ("B", 3))
    ]
    return analyse(pl.concat(arms), AnalysisPlan(control="A", treatment="B", paired=True))


def _facts(**changes: object) -> dict[str, object]:
    arms = {
        role: {"name": name, "version": f"v{name}", "degraded_lists": 0, "unknown_items": 0}
        for role, name in (("control", "a"), ("treatment", "b"))
    }
    usual = {
        "simulator_validity": {"failures": []},
        "simulated_users": 50,
        "simulated_users_that_an_arm_learned_from": 7,
    }
    return arms | usual | changes


def test_the_size_of_a_live_test() -> None:
    options = ["ab-power", "--baseline", 0.04, "--lift", 0.05, "--correlation", 0.6, "--daily-users", 20000]
    code, output, _ = run(*options, "--json")
    # 2 * 7.848880 * .04 * .96 * (1 - .36) / .002^2 is 96,447.04; the wrong side's rejections save .24 of a user.
    assert (code, json.loads(output)) == (0, {"users_per_arm": 96447, "days": 9.6447})
    assert "96,447 users in each of two arms" in run(*options)[1]
    assert "48,000 users in each of two arms show a lift of 5.0% with 51% power." in run(*options, "--users", 48000)[1]
    code, output, _ = run(*options, "--users", 96447, "--json")
    found = json.loads(output)
    assert (found["users_per_arm"], found["days"]) == (96447, 9.6447)
    assert found["power"] == pytest.approx(0.8, abs=1e-5)
    assert found["detectable_lift"] == pytest.approx(0.05, abs=1e-6)
    for change, message in [
        (["--baseline", 0], "--baseline must be above 0"),
        (["--baseline", 3], "give its standard deviation"),
        (["--lift", 0], "difference must be"),
        (["--lift", 1e-300], "difference must be"),
        (["--lift", "inf", "--deviation", 1], "difference must be a finite number"),
        (["--lift", 30], "would make the rate 0.04 more than 1"),
        (["--deviation", -1], "--deviation must be 0 or more"),
        (["--power", 1], "power must lie above alpha (0.05)"),
        (["--power", 0.01], "power must lie above alpha (0.05)"),
        (["--users", 1], "users per arm must be 2 or more"),
    ]:
        code, _, errors = run(*options, *change)
        assert code == 1
        assert message in errors
    code, _, errors = run("ab-power", "--baseline", 0.04, "--lift", 0.05, "--share", 0.5)
    assert (code, errors) == (1, "error: --share is of --daily-users; give both, or neither\n")
