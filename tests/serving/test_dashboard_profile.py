"""The profile's panel of the page, over elements that only remember what they are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from node_page import run_module

import serving

_MODULE = Path(serving.__file__).with_name("dashboard") / "profile.js"
_PAGE = """
const elements = {};
const made = () => ({ hidden: false, on: {}, append() {}, setAttribute() {}, focus() {}, replaceChildren() {},
  style: { setProperty() {} }, addEventListener(name, work) { this.on[name] = work; } });
globalThis.document = { getElementById: (id) => (elements[id] ??= made()), createElement: made,
  createTextNode: (text) => text, querySelector: (id) => (elements[id.slice(1)] ??= made()) };
const $ = (id) => document.getElementById(id);
globalThis.sessionStorage = { getItem: () => null };
const sent = [];
let answers = [];
globalThis.fetch = async (path, options) => {
  sent.push([options.method, path, options.body ? JSON.parse(options.body) : null]);
  const [status, body] = answers.shift();
  return { ok: status === 200, status, json: async () => body };
};
const said = (texts, revision) => [200, { upto: 3, edited: false, used_by_model: false, revision,
  statements: texts.map((text) => ({ text, source: "template", evidence: [] })) }];
const { clearProfile, connectProfile, showProfile } = await import(MODULE);
const errors = [];
const guarded = (work) => (...values) => work(...values).catch((error) => errors.push(error.message));
connectProfile(guarded, async () => {});
const settle = () => new Promise((resolve) => setTimeout(resolve, 10));
"""


def run(script: str) -> Any:
    return run_module(_MODULE, _PAGE, script)


def test_another_users_profile_is_gone_before_the_new_one_is_there() -> None:
    seen = run(
        """
        answers = [said(["Likes A (1 of 3)."], "r1"), [503, { detail: "down" }]];
        await showProfile("ann");
        const before = $("profile-card").hidden;
        $("profile-edit").on.click();
        await showProfile("bob").catch(() => {});
        console.log(JSON.stringify([before, $("profile-card").hidden, $("profile-form").hidden]));
        """
    )
    assert seen == [False, True, True]


def test_a_profile_that_cannot_be_read_can_only_be_erased() -> None:
    seen = run(
        """
        answers = [[409, { detail: "delete it" }]];
        await showProfile("ann");
        console.log(JSON.stringify(["profile-card", "profile-edit", "profile-reset"].map((id) => $(id).hidden)));
        """
    )
    assert seen == [False, True, False]


def test_an_edit_goes_on_from_the_profile_that_has_changed_meanwhile() -> None:
    sent, text, errors = run(
        """
        answers = [said(["Likes A (1 of 3)."], "r1"), said(["Likes A (2 of 4)."], "r2"),
          [409, { detail: "read it again" }], said(["Likes A (2 of 4)."], "r2")];
        await showProfile("ann");
        $("profile-edit").on.click();
        $("profile-text").value += "\\nNothing odd";
        await showProfile("ann");
        $("profile-form").on.submit({ preventDefault() {} });
        await settle();
        console.log(JSON.stringify([sent, $("profile-text").value, errors]));
        """
    )
    assert sent[2] == [
        "PUT",
        "/v1/profiles/ann",
        {"statements": ["Likes A (1 of 3).", "Nothing odd"], "revision": "r1"},
    ]
    assert text == "Likes A (2 of 4).\nNothing odd"
    assert errors == ["read it again"]
