"""The operator's and the product owner's views in a real browser: by mouse, by keyboard and on a phone.

Screenshots of every view are left in the tests' temporary directory, wide and narrow, light and dark.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from dashboard_page import served, watched

from serving.guard.keys import KeyRing, create_key

pytestmark = pytest.mark.slow

VIEWS = ("users", "items", "what-if", "experiments", "models", "traffic")
EXPERIMENTS = {
    "layers": [
        {
            "name": "page",
            "experiments": {"cap": {"variants": {"control": {}, "two": {"max_per_category": 2}}}},
            "splits": [{"cap/control": 5000, "cap/two": 5000}],
        }
    ]
}
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("views")


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """A service with an experiment, whose users have taken items of lists."""
    with served(folder, further=2, experiments=EXPERIMENTS) as url, httpx.Client(base_url=url) as client:
        for turn in range(36):
            user = f"u{turn % 12}"
            answer = client.post("/v1/recommend", json={"user_id": user}).json()
            if turn % 3 == 0:
                taken = {"event_id": f"e{turn}", "user_id": user, "item_id": answer["items"][0]["item_id"]}
                taken["recommendation_id"] = answer["recommendation_id"]
                assert client.post("/v1/events", json=taken).json()["accepted"] == 1
        client.post("/v1/recommend", json={"history": []})
        ends = time.monotonic() + 30
        while client.get("/v1/experiments").json()["experiments"][0]["outcomes"][0]["rates"][0]["rate"] is None:
            assert time.monotonic() < ends
            time.sleep(0.5)
        yield url


@pytest.fixture
def page(browser, url: str):
    with watched(browser, url) as page:
        yield page


def _open(page, url: str, view: str, ready: str) -> None:
    page.goto(f"{url}/#view={view}")
    page.wait_for_selector(ready)


def _ids(page, selector: str) -> list[str]:
    return page.eval_on_selector_all(f"{selector} [data-item]", "rows => rows.map(row => row.dataset.item)")


def _focused(page) -> dict[str, Any]:
    return page.evaluate("({ ...document.activeElement.dataset, id: document.activeElement.id })")


def _tab_to(page, wanted: str) -> None:
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", wanted):
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none", f"{wanted} has the focus and does not show it"
            return
    raise AssertionError(f"{wanted} is not reached with Tab")


def test_views_are_reached_by_keyboard_linked_and_gone_back_to(page, url: str) -> None:
    page.goto(url)
    page.wait_for_selector("#recommendations button")
    for view in VIEWS[1:]:
        _tab_to(page, f'#views a[data-view="{view}"]')
        page.keyboard.press("Enter")
        page.wait_for_selector(f"#view-{view}:not([hidden])")
        assert page.locator(".view:not([hidden])").count() == 1
        assert page.get_attribute("#views [aria-current]", "data-view") == view
    page.go_back()
    page.wait_for_selector("#view-models:not([hidden])")
    page.reload()
    page.wait_for_selector("#view-models:not([hidden]) table")


def test_traffic_shows_what_the_metrics_count_and_can_be_paused(page, url: str) -> None:
    _open(page, url, "traffic", "#traffic-tiles .tile")
    page.select_option("#traffic-window", "start")
    assert page.locator("#traffic-tiles .tile").count() == 14
    tiles = page.inner_text("#traffic-tiles")
    assert "p99" in tiles
    assert "Certified\n100 %" in tiles
    assert "Breakers\nclosed" in tiles
    tables = page.inner_text("#traffic-tables")
    assert "POST /v1/recommend" in tables
    assert "GET /v1/traffic" not in tables, "the page's own looks are left out"
    assert "popularity" in tables
    assert "empty history" in tables
    httpx.post(f"{url}/v1/recommend", json={"user_id": "nobody"})
    page.wait_for_function("() => document.getElementById('traffic-tables').innerText.includes('404: 1')")
    page.select_option("#traffic-window", "60")
    page.wait_for_function("() => document.querySelectorAll('#traffic-charts path[d*=L]').length > 0")
    assert page.locator("#traffic-charts svg[role=img]").count() == 4
    assert "2xx" in page.get_attribute("#traffic-charts svg >> nth=0", "aria-label")
    page.click("#traffic-pause")
    assert page.get_attribute("#traffic-pause", "aria-pressed") == "true"
    seen: list[str] = []
    page.on("request", lambda request: seen.append(request.url))
    page.wait_for_timeout(3500)
    assert not [each for each in seen if each.endswith("/v1/traffic")]


def test_what_the_service_says_when_it_cannot_answer_is_shown_until_it_can(page, url: str) -> None:
    refusal = {"detail": "too many requests wait; try again in 2 s", "status": 503}
    refused = {"status": 503, "content_type": "application/problem+json", "body": json.dumps(refusal)}
    page.route("**/v1/traffic", lambda route: route.fulfill(**refused))
    _open(page, url, "traffic", "#traffic-error:not([hidden])")
    assert page.inner_text("#traffic-error") == refusal["detail"]
    assert page.get_attribute("#traffic-error", "role") == "alert"
    page.unroute("**/v1/traffic")
    page.wait_for_selector("#traffic-tiles .tile")
    assert page.is_hidden("#traffic-error")


def test_experiments_are_shown_with_intervals_and_the_check_of_their_users(page, url: str) -> None:
    _open(page, url, "experiments", "#experiments-list table")
    shown = page.inner_text("#experiments-list")
    assert "max_per_category: 2" in shown
    assert "Lists that led to “view”" in shown
    assert "Users fit the shares (p = " in shown
    answer = httpx.get(f"{url}/v1/experiments").json()["experiments"][0]
    two = answer["outcomes"][0]["rates"][1]
    assert f"{100 * two['rate']:.2f} %" in shown
    assert f"{100 * abs(two['low']):.2f}" in page.inner_text("#experiments-list .effect .interval")
    assert "no difference shown" in shown


def test_a_service_without_experiments_says_so(browser, tmp_path: Path) -> None:
    with served(tmp_path) as url, watched(browser, url) as page:
        _open(page, url, "experiments", "#experiments-list .empty")
        assert "No experiment runs." in page.inner_text("#experiments-list")


def test_an_item_is_shown_with_its_neighbours_which_lead_on(page, url: str) -> None:
    page.goto(f"{url}/#view=items&item=i5")
    page.wait_for_selector("#item h2")
    assert page.inner_text("#item h2") == "Film number 5"
    assert "1955" in page.inner_text("#item")
    near = httpx.get(f"{url}/v1/neighbours/i5", params={"limit": 50}).json()["neighbours"]
    assert _ids(page, "#item-neighbours") == [each["item_id"] for each in near]
    has_similar = "/v1/similar-items" in httpx.get(f"{url}/openapi.json").json()["paths"]
    assert page.is_visible("#item-similar-card") == has_similar
    page.click("#item-neighbours a >> nth=0")
    page.wait_for_function("id => location.hash.endsWith(`item=${id}`)", arg=near[0]["item_id"])
    page.wait_for_function("() => document.querySelector('#item h2').textContent !== 'Film number 5'")
    assert page.evaluate("document.activeElement.matches('#item h2')"), "the focus is where the news is"
    _tab_to(page, "#item-input")
    page.keyboard.type("number 30")
    page.wait_for_selector("#item-options [role=option]")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#item h2').textContent === 'Film number 30'")
    page.goto(f"{url}/#view=items&item=nothing")
    page.wait_for_selector("#item-error:not([hidden])")
    assert "search it with" in page.inner_text("#item-error")
    page.goto(f"{url}/#user=u1")
    page.click("#history a >> nth=0")
    page.wait_for_selector("#view-items:not([hidden]) #item h2")


def test_models_are_loaded_compared_activated_and_rolled_back(page, url: str, folder: Path) -> None:
    versions = [
        json.loads((folder / f"run-{run}" / "bundle" / "manifest.json").read_text())["model_version"]
        for run in range(3)
    ]

    def states() -> list[str]:
        return page.locator("#models-table .state").all_inner_texts()

    def lever(action: str, answer: str) -> None:
        page.click(f'[data-action="{action}"][data-version="{versions[1]}"]')
        page.wait_for_selector("#confirm-dialog[open]")
        page.click(f"#confirm-dialog button[value={answer}]")

    def until(*expected: str) -> None:
        page.wait_for_function(
            "states => JSON.stringify([...document.querySelectorAll('#models-table .state')].map(e => e.textContent)) "
            "=== states",
            arg=json.dumps(list(expected), separators=(",", ":")),
        )

    _open(page, url, "what-if", "#whatif-list-b li")
    assert page.is_visible("#whatif-hint")
    _open(page, url, "models", "#models-table table")
    assert states() == ["active"]
    assert page.is_disabled("#models-rollback")
    page.fill("#models-bundle", "nothing")
    page.keyboard.press("Enter")
    page.wait_for_selector("#models-failure:not([hidden])")
    assert "has no 'nothing'" in page.inner_text("#models-failure")
    page.fill("#models-bundle", "run-1")
    page.click("#models-load button")
    until("active", "loaded")
    assert page.is_hidden("#models-failure")

    lever("Activate", "no")
    assert states() == ["active", "loaded"]
    page.focus(f'[data-action="Activate"][data-version="{versions[1]}"]')
    page.keyboard.press("Enter")
    page.wait_for_selector("#confirm-dialog[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector("#confirm-dialog", state="hidden")
    assert _focused(page)["action"] == "Activate", "who says no is where he was"
    lever("Shadow", "yes")
    until("active", "shadow")
    lever("End shadow", "yes")
    until("active", "loaded")
    lever("Activate", "yes")
    until("previous", "active")
    page.wait_for_function(
        "version => document.getElementById('model-version').textContent === version", arg=versions[1]
    )

    page.click('#views a[data-view="what-if"]')
    page.wait_for_function("() => document.querySelectorAll('#whatif-model-b option').length === 2")
    page.wait_for_selector("#whatif-list-a li.moved")
    assert page.is_hidden("#whatif-hint")
    assert page.input_value("#whatif-model-b") == versions[0]
    page.select_option("#whatif-model-b", "")
    page.wait_for_function("() => document.getElementById('whatif-common').textContent.startsWith('10 of 10')")
    assert page.locator("#whatif-lists li.moved").count() == 0

    page.click('#views a[data-view="models"]')
    page.wait_for_selector("#models-table table")
    page.click("#models-rollback")
    page.click("#confirm-yes")
    until("active", "previous")
    page.click(f'[data-action="Unload"][data-version="{versions[1]}"]')
    page.click("#confirm-yes")
    until("active")


def test_a_history_is_edited_by_keyboard_and_two_settings_are_compared(page, url: str) -> None:
    page.goto(f"{url}/#user=u3")
    page.wait_for_selector("#history li a")
    stored = [entry["item_id"] for entry in httpx.get(f"{url}/v1/users/u3").json()["history"]]
    page.click('#views a[data-view="what-if"]')
    page.wait_for_function("count => document.querySelectorAll('#whatif-history li').length === count", arg=len(stored))
    assert _ids(page, "#view-what-if .card:first-child") == stored
    page.wait_for_selector("#whatif-list-a li")
    before = _ids(page, "#whatif-lists section:first-child")

    _tab_to(page, "#whatif-item")
    page.keyboard.type("number 30")
    page.wait_for_selector("#whatif-items [role=option]")
    page.keyboard.press("ArrowDown")
    assert page.get_attribute("#whatif-item", "aria-activedescendant") == "whatif-items-0"
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#whatif-history li:last-child').dataset.item === 'i30'")
    _tab_to(page, '#whatif-history li:last-child [data-move="up"]')
    page.keyboard.press("Enter")
    edited = [each for each in stored if each != "i30"]
    expected = [*edited[:-1], "i30", edited[-1]]
    assert _ids(page, "#view-what-if .card:first-child") == expected
    assert _focused(page)["move"] == "up", "the focus goes with the item"
    page.keyboard.press("Alt+ArrowUp")
    expected = [*edited[:-2], "i30", *edited[-2:]]
    assert _ids(page, "#view-what-if .card:first-child") == expected
    page.keyboard.press("Delete")
    assert _ids(page, "#view-what-if .card:first-child") == edited
    page.wait_for_selector("#whatif-lists:not(.busy)")

    page.fill("#whatif-cap-b", "1")
    page.wait_for_selector("#whatif-list-a li.new")
    capped = page.eval_on_selector_all("#whatif-list-b li", "rows => rows.length")
    assert capped == 4, "one of each of the four categories"
    assert f"{capped} of 10 items are in both lists." in page.inner_text("#whatif-common")
    assert page.locator("#whatif-list-a li.new .badge").first.inner_text() == "only here"
    page.fill("#whatif-cap-b", "0")
    page.wait_for_selector("#whatif-error-b:not([hidden])")
    assert "max_per_category" in page.inner_text("#whatif-error-b")
    page.fill("#whatif-cap-b", "")
    page.wait_for_selector("#whatif-error-b", state="hidden")
    if set(stored) == set(edited):
        page.wait_for_selector("#whatif-lists:not(.busy)")
        assert _ids(page, "#whatif-lists section:first-child") == before
    page.click("#whatif-clear")
    page.wait_for_function("() => document.getElementById('whatif-about-a').textContent.startsWith('popularity')")
    page.fill("#whatif-user", "u5")
    page.wait_for_selector("#whatif-users [role=option]")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.getElementById('whatif-from').textContent.includes('u5')")


def test_a_click_says_which_list_it_followed(page, url: str) -> None:
    page.goto(f"{url}/#user=u2")
    page.wait_for_selector("#recommendations button")
    with page.expect_request("**/v1/events") as posted:
        page.locator("#recommendations button").first.click()
    assert len(posted.value.post_data_json["recommendation_id"]) == 32
    page.wait_for_selector("#search-results button")
    with page.expect_request("**/v1/events") as posted:
        page.locator("#search-results button").first.click()
    assert "recommendation_id" not in posted.value.post_data_json


def test_a_key_that_may_not_see_the_models_can_be_changed_for_one_that_may(browser, tmp_path: Path) -> None:
    read = create_key(tmp_path / "keys.json", "reader", "read")
    admin = create_key(tmp_path / "keys.json", "operator", "admin")
    with served(tmp_path, KeyRing(tmp_path / "keys.json")) as url, watched(browser, url) as page:
        page.goto(f"{url}/#view=traffic")
        page.wait_for_selector("#key-dialog[open]")
        assert page.evaluate("document.activeElement.id") == "key-input"
        page.keyboard.type(read)
        page.keyboard.press("Enter")
        page.wait_for_selector("#traffic-tiles .tile")
        page.click('#views a[data-view="models"]')
        page.wait_for_selector("#models-error button")
        assert "role admin" in page.inner_text("#models-error")
        page.click("#models-error button")
        page.wait_for_selector("#key-dialog[open]")
        page.fill("#key-input", admin)
        page.keyboard.press("Enter")
        page.wait_for_selector("#models-table table")
        assert page.is_hidden("#models-error")
        page.click("#change-key")
        page.wait_for_selector("#key-dialog[open]")
        page.fill("#key-input", read)
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-dialog", state="hidden")
        page.click("#models-again")
        page.wait_for_selector("#models-error button")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", ["phone", "desktop"])
def test_every_view_fits_the_screen_and_names_its_controls(
    browser, url: str, tmp_path: Path, device: str, scheme: str
) -> None:
    options = {"color_scheme": scheme, "reduced_motion": "reduce"} | (PHONE if device == "phone" else {})
    ready = {
        "users": "#recommendations button",
        "items": "#item h2",
        "what-if": "#whatif-list-b li",
        "experiments": "#experiments-list table",
        "models": "#models-table table",
        "traffic": "#traffic-tiles .tile",
    }
    with watched(browser, url, **options) as page:
        for view in VIEWS:
            _open(page, url, view, ready[view])
            page.screenshot(path=tmp_path / f"{view}-{device}-{scheme}.png", full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"], view
            unnamed = page.eval_on_selector_all(
                "button, input, select, textarea, a",
                """nodes => nodes.filter(node => node.checkVisibility() && !(node.textContent.trim()
                  || node.getAttribute('aria-label') || node.labels?.length)).map(node => node.outerHTML)""",
            )
            assert unnamed == [], view
            assert (
                page.evaluate("[...document.getAnimations()].filter(a => a.effect.getTiming().duration > 1).length")
                == 0
            )
