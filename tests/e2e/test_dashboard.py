"""The page in a real browser against a real service: what a visitor does, and what an attacker would like to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dashboard_page import served, watched
from toy_bundle import XSS_ITEM, XSS_TITLE

from serving.guard.keys import KeyRing, create_key

pytestmark = pytest.mark.slow

OPERATIONS = Path(__file__).parents[1] / "serving" / "operations.txt"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("dashboard")) as url:
        yield url


@pytest.fixture
def page(browser, url: str):
    with watched(browser, url) as page:
        yield page


def _open(page, url: str, user: str = "u1") -> None:
    page.goto(f"{url}/#user={user}")
    page.wait_for_selector("#recommendations button")


def _items(page, selector: str = "#recommendations button") -> list[str]:
    return page.eval_on_selector_all(selector, "rows => rows.map(row => row.dataset.item)")


def test_a_user_is_shown_with_history_list_timings_and_evaluation(page, url: str) -> None:
    _open(page, url)
    assert page.inner_text("#user-name") == "u1"
    assert page.locator("#history li").count() == 6
    assert len(set(_items(page))) == 10
    first = page.locator("#recommendations li").first
    assert "Similar to" in first.inner_text()
    assert first.locator(".sid span").count() == 2
    first.locator(".why summary").click()
    assert "Each code" in first.locator(".why dl").inner_text()
    assert page.inner_text("#fired").startswith("Stage: ")
    assert "decode" in page.inner_text("#timing-legend")
    assert page.inner_text("#status") == "ready"
    assert len(page.inner_text("#model-version")) == 12
    assert page.locator("#evaluation tbody tr").count() == 4
    assert "0.2000" in page.inner_text("#evaluation tr.served")


def test_a_click_posts_an_event_and_the_list_changes(page, url: str) -> None:
    _open(page, url, "u2")
    before = _items(page)
    with page.expect_response("**/v1/events") as posted:
        page.locator("#recommendations button").first.click()
    assert posted.value.json()["accepted"] == 1
    page.wait_for_function("count => document.querySelectorAll('#history li').length === count", arg=7)
    page.wait_for_function("item => !document.querySelector(`#recommendations [data-item=${item}]`)", arg=before[0])
    after = _items(page)
    assert before[0] not in after
    entered = page.eval_on_selector_all("#recommendations li.entered button", "rows => rows.map(r => r.dataset.item)")
    assert set(entered) == set(after) - set(before)


def test_a_profile_is_shown_edited_and_given_back(page, url: str) -> None:
    _open(page, url, "u4")
    page.wait_for_selector("#profile li")
    before = page.locator("#profile li").all_inner_texts()
    assert "For display" in page.inner_text("#profile-use")
    page.click("#profile-edit")
    page.fill("#profile-text", "No musicals, please.\n")
    page.click("#profile-save")
    page.wait_for_function("() => document.querySelectorAll('#profile li').length === 1")
    assert "No musicals, please." in page.inner_text("#profile")
    assert "yours" in page.inner_text("#profile")
    page.locator("#recommendations button").first.click()
    page.wait_for_function("() => document.getElementById('profile-version').textContent === 'after 7 events'")
    assert "No musicals, please." in page.inner_text("#profile li")
    page.click("#profile-reset")
    page.wait_for_selector("#profile-reset", state="hidden")
    assert "yours" not in page.inner_text("#profile")
    assert before


def test_a_user_is_found_by_typing(page, url: str) -> None:
    _open(page, url)
    page.fill("#user-input", "u1")
    page.wait_for_function("() => document.querySelectorAll('#user-options [role=option]').length === 3")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.getElementById('user-name').textContent === 'u10'")
    assert page.url.endswith("#user=u10")


def test_a_new_visitor_starts_with_popular_items_and_becomes_a_user(page, url: str) -> None:
    _open(page, url)
    page.click("#new-visitor")
    page.wait_for_function("() => document.getElementById('source').textContent.startsWith('Most popular')")
    page.fill("#search", "number 30")
    page.wait_for_function("() => document.querySelectorAll('#search-results button').length === 1")
    page.locator("#search-results button").first.click()
    page.wait_for_function("() => document.getElementById('source').textContent.startsWith('Generated')")
    assert page.locator("#history li").count() == 1


def test_the_category_filter_narrows_the_list(page, url: str) -> None:
    _open(page, url)
    page.select_option("#category", "Noir")
    page.wait_for_function(
        "() => [...document.querySelectorAll('#recommendations .tags')].every(tags => tags.innerText.includes('Noir'))"
    )
    assert len(_items(page)) >= 4


def test_titles_are_text_and_never_markup(page, url: str) -> None:
    _open(page, url)
    page.fill("#search", "onerror")
    page.wait_for_selector(f"#search-results [data-item={XSS_ITEM}]")
    assert page.inner_text("#search-results .title") == XSS_TITLE
    page.click(f"#search-results [data-item={XSS_ITEM}]")
    page.wait_for_function("() => document.getElementById('history').innerText.includes('onerror')")
    page.goto(f"{url}/#user=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E")
    page.reload()
    page.wait_for_function("() => document.getElementById('user-name').textContent.startsWith('<img')")
    assert page.locator("main img").count() == 0
    assert "owned" not in page.title()


def test_the_documentation_shows_every_operation_with_an_example(page, url: str) -> None:
    page.goto(f"{url}/docs")
    page.wait_for_selector("#recommend")
    page.click("#recommend summary")
    assert "curl" in page.inner_text("#recommend pre >> nth=0")
    assert page.locator("details").count() == len(OPERATIONS.read_text().splitlines())


def test_where_the_service_has_keys_the_page_asks_for_one_and_keeps_it_in_the_tab(browser, tmp_path: Path) -> None:
    key = create_key(tmp_path / "keys.json", "visitor", "write")
    with served(tmp_path, KeyRing(tmp_path / "keys.json")) as url:
        page = browser.new_page()
        page.goto(f"{url}/#user=u1")
        page.wait_for_selector("#key-dialog[open]")
        assert "a key is needed" in page.inner_text("#key-why")
        page.fill("#key-input", "wrong")
        page.click("#key-form button")
        page.wait_for_function("() => document.getElementById('key-why').textContent.includes('unknown')")
        page.wait_for_selector("#key-dialog[open]")
        page.fill("#key-input", key)
        page.click("#key-form button")
        page.wait_for_selector("#recommendations button")
        page.locator("#recommendations button").first.click()
        page.wait_for_function("() => document.querySelectorAll('#history li').length === 7")
        page.reload()
        page.wait_for_selector("#recommendations button")
        assert page.locator("#key-dialog[open]").count() == 0
        page.click("#metrics-link")
        page.wait_for_function("() => document.body.innerText.includes('recsys_requests_total')")
        page.close()
