"""Items whose semantic IDs begin alike."""

from __future__ import annotations

import numpy as np
from fastapi.testclient import TestClient

from recsys.data.rows import Rows
from serving.codes import nearest_codes


def test_the_longest_common_beginning_comes_first_then_the_most_popular() -> None:
    codes = np.array([[1, 2, 3], [1, 2, 4], [1, 9, 3], [0, 2, 3], [1, 2, 3], [1, 5, 5]])
    found = nearest_codes(Rows(codes[:4], codes[4:]), np.array([9, 1, 5, 9, 1, 7]), item=0, limit=10)
    assert found.items.tolist() == [4, 1, 5, 2], "a later code says nothing once an earlier one differs"
    assert found.shared.tolist() == [3, 2, 1, 1]
    assert found.sharing.tolist() == [4, 2, 1]
    assert nearest_codes(Rows.of(codes), np.zeros(6, dtype=np.int64), item=0, limit=3).items.tolist() == [4, 1, 2]
    assert nearest_codes(Rows.of(codes), np.zeros(6, dtype=np.int64), item=3, limit=3).items.tolist() == []


def test_the_api_gives_the_neighbours_of_an_item(client: TestClient) -> None:
    answer = client.get("/v1/neighbours/i5", params={"limit": 2}).json()
    assert answer["item"]["sid"] == [1, 1]
    assert answer["sharing"] == [3, 0]
    assert [(each["item_id"], each["shared"], each["sid"]) for each in answer["neighbours"]] == [
        ("i4", 1, [1, 0]),
        ("i6", 1, [1, 2]),
    ]


def test_an_unknown_item_has_no_neighbours(client: TestClient) -> None:
    response = client.get("/v1/neighbours/a/b")
    assert response.status_code == 404
    assert "'a/b'" in response.json()["detail"]
    assert client.get("/v1/neighbours/i5", params={"limit": 0}).status_code == 422
