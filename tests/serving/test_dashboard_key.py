"""The page asks for a key when the service wants one, once for all calls, and sends it from then on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from node_page import run_module

import serving

_MODULE = Path(serving.__file__).with_name("dashboard") / "api.js"
_PAGE = """
const elements = {};
const made = () => ({ value: "", open: false, on: {}, showModal() { this.open = true; }, close() { this.open = false; },
  addEventListener(name, work) { this.on[name] = work; } });
const element = (id) => (elements[id.replace("#", "")] ??= made());
globalThis.document = { getElementById: element, querySelector: element };
const $ = (id) => document.getElementById(id);
const kept = {};
globalThis.sessionStorage = {
  getItem: (name) => kept[name] ?? null,
  setItem: (name, value) => { kept[name] = value; },
};
const sent = [];
let right = "Bearer right";
globalThis.fetch = async (path, options) => {
  sent.push(options.headers.Authorization ?? null);
  const isRight = options.headers.Authorization === right;
  const body = isRight ? { path } : { detail: "no such key" };
  return { ok: isRight, status: isRight ? 200 : 401, json: async () => body };
};
const settle = () => new Promise((resolve) => setTimeout(resolve, 10));
const enter = async (key) => {
  $("key-input").value = key;
  $("key-form").on.submit({ preventDefault() {} });
  await settle();
};
const { call } = await import(MODULE);
"""


def run(script: str) -> Any:
    return run_module(_MODULE, _PAGE, script)


def test_all_calls_wait_for_one_answer_and_a_wrong_key_is_asked_for_again() -> None:
    seen = run("""
      const both = Promise.all([call("/a"), call("/b", {})]);
      await settle();
      const first = [$("key-dialog").open, $("key-why").textContent];
      await enter("wrong");
      const second = $("key-dialog").open;
      await enter(" right ");
      console.log(JSON.stringify({ first, second, answers: await both, open: $("key-dialog").open, sent, kept,
        input: $("key-input").value }));
    """)
    assert seen["first"] == [True, "no such key"]
    assert seen["second"] is True
    assert seen["answers"] == [{"path": "/a"}, {"path": "/b"}]
    assert seen["open"] is False
    assert seen["sent"] == [None, None, "Bearer wrong", "Bearer wrong", "Bearer right", "Bearer right"]
    assert seen["kept"] == {"recsys-key": "right"}
    assert seen["input"] == "", "the key does not stay in the page"


def test_a_key_that_is_kept_is_sent_and_one_that_was_revoked_asked_for() -> None:
    seen = run("""
      kept["recsys-key"] = "right";
      await call("/a");
      right = "Bearer next";
      const later = call("/a");
      await settle();
      const open = $("key-dialog").open;
      await enter("next");
      await later;
      console.log(JSON.stringify({ open, sent }));
    """)
    assert seen == {"open": True, "sent": ["Bearer right", "Bearer right", "Bearer next"]}


def test_a_service_without_keys_is_called_without_one() -> None:
    seen = run(
        """right = undefined; await call("/a"); console.log(JSON.stringify({ sent, open: $("key-dialog").open }));"""
    )
    assert seen == {"sent": [None], "open": False}
