from __future__ import annotations

from fastapi.testclient import TestClient


def test_an_item_is_shown_with_all_that_is_known(client: TestClient) -> None:
    assert client.get("/v1/items/i4").json() == {
        "item_id": "i4",
        "title": "The item 4",
        "categories": ["even", "low"],
        "sid": [1, 0],
        "status": "generatable",
        "interactions": 20,
        "attributes": {"brand": "brand 1"},
    }
    assert client.get("/v1/items/i3").json()["title"] is None


def test_an_unknown_item_is_a_404_problem(client: TestClient) -> None:
    response = client.get("/v1/items/a/b?c")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"
    assert "'a/b'" in response.json()["detail"]


def test_the_catalogue_is_searched_in_ranked_pages(client: TestClient) -> None:
    page = client.get("/v1/items", params={"query": "ITEM 1", "limit": 3}).json()
    assert page["total"] == 12
    assert [item["item_id"] for item in page["items"]] == ["i1", "i10", "i11"]
    following = client.get("/v1/items", params={"query": "ITEM 1", "limit": 3, "offset": 3}).json()
    assert [item["item_id"] for item in following["items"]] == ["i12", "i13", "i14"]


def test_an_empty_query_lists_the_catalogue_by_popularity(client: TestClient) -> None:
    page = client.get("/v1/items", params={"limit": 2}).json()
    assert (page["total"], [item["item_id"] for item in page["items"]]) == (24, ["i0", "i1"])


def test_categories_are_listed_with_their_size(client: TestClient) -> None:
    assert client.get("/v1/categories").json() == [
        {"category": "even", "items": 12},
        {"category": "low", "items": 6},
    ]


def test_a_user_has_a_history_with_titles_oldest_first(client: TestClient) -> None:
    user = client.get("/v1/users/ann", params={"limit": 2}).json()
    assert user == {
        "user_id": "ann",
        "history": [
            {
                "item_id": f"i{i}",
                "title": f"The item {i}",
                "categories": categories,
                "event_type": None,
                "timestamp": None,
            }
            for i, categories in [(1, ["low"]), (2, ["even", "low"])]
        ],
    }


def test_an_item_that_left_the_catalogue_stays_in_the_history_without_a_title(client: TestClient) -> None:
    (entry,) = client.get("/v1/users/ancient").json()["history"]
    assert (entry["item_id"], entry["title"], entry["categories"]) == ("gone", None, [])


def test_an_unknown_user_is_a_404_problem(client: TestClient) -> None:
    response = client.get("/v1/users/nobody")
    assert response.status_code == 404
    assert response.json()["fields"][0]["field"] == "user_id"


def test_an_erased_user_is_unknown_and_stays_so_until_a_new_event(client: TestClient) -> None:
    event = {"event_id": "e1", "user_id": "ann", "item_id": "i3", "event_type": "view"}
    assert client.post("/v1/events", json=event).json()["accepted"] == 1
    assert client.delete("/v1/users/ann").status_code == 204
    assert client.get("/v1/users/ann").status_code == 404
    assert client.get("/v1/profiles/ann").status_code == 404
    assert client.get("/v1/users", params={"query": "ann"}).json()["users"] == []
    assert client.delete("/v1/users/ann").status_code == 204
    assert client.post("/v1/events", json=event).json()["accepted"] == 1
    assert [entry["item_id"] for entry in client.get("/v1/users/ann").json()["history"]] == ["i3"]


def test_a_user_cannot_be_erased_while_the_store_is_down(storeless_client: TestClient) -> None:
    assert storeless_client.delete("/v1/users/ann").status_code == 503


def test_users_are_searched_by_prefix(client: TestClient) -> None:
    assert client.get("/v1/users", params={"query": "an"}).json() == {"users": ["ancient", "ann"], "total": 2}
    assert client.get("/v1/users", params={"limit": 1, "offset": 2}).json() == {"users": ["bob"], "total": 3}


def test_page_limits_are_checked(client: TestClient) -> None:
    for path in ("/v1/items", "/v1/users"):
        for bad in ({"limit": 0}, {"limit": 101}, {"offset": -1}, {"query": "x" * 201}):
            response = client.get(path, params=bad)
            assert response.status_code == 422
            assert response.json()["fields"][0]["field"] in bad
