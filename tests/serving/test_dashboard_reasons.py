"""What the page says of why an item is in a list."""

from __future__ import annotations

from pathlib import Path

from node_page import run_module

import serving

_MODULE = Path(serving.__file__).with_name("dashboard") / "reasons.js"
_PAGE = """
globalThis.document = { createElement: (tag) => ({ tag, children: [], style: {}, setAttribute() {},
  append(...more) { this.children.push(...more); } }) };
const said = (node) => typeof node === "string" ? node : node.children.map(said).join("");
const { codesText, listText, reason, rulesText, why } = await import(MODULE);
const item = { item_id: "a", title: "Heat", sid: [3, 7], code_log_probs: [Math.log(0.5), Math.log(0.25)],
  reason: { text: "Fits your interest in Crime", because: { item_id: "b", title: "Ronin" }, similarity: 0.7,
    tags: ["Crime"], evidence: [{ item_id: "b", title: "Ronin" }, { item_id: "c", title: null }] } };
const details = { stage: "fusion_half", rules: [
  { field: "filter", effect: "keeps 3 of 9 items out", left_out: 3, items: [] },
  { field: "boosts[0]", effect: "adds 1 to scores", left_out: 0, items: [{ item_id: "a", place: 1, without: 4 }] },
  { field: "pins[0]", effect: "stands at place 2", left_out: 0, items: [{ item_id: "z", place: 2, without: null }] }] };
"""


def test_codes_evidence_and_rules_are_told_of_an_item() -> None:
    found = run_module(
        _MODULE,
        _PAGE,
        """
        const plain = { ...item, code_log_probs: null, reason: null };
        const alike = { ...item.reason, tags: [] };
        console.log(JSON.stringify([codesText(item), rulesText(details, item), rulesText(details, { item_id: "z" }),
          listText(details), said(why(item, details)), why(plain, null), said(reason(item.reason)),
          said(reason(alike))]));
        """,
    )
    codes, rules, pinned, whole, folded, nothing, by_intent, by_evidence = found
    assert codes == "3: 50 % · 7: 25 %"
    assert rules == "boosts[0] moves it from place 4 to 1"
    assert pinned == "pins[0] stands at place 2"
    assert whole.startswith("Stage: fusion_half · filter keeps 3 of 9 items out · boosts[0]")
    assert folded == f"Why HeatEach code{codes}In the historyRonin · cRules{rules}"
    assert nothing is None
    assert by_intent == "Crime Fits your interest in Crime"
    assert by_evidence == "Similar to Ronin (0.70)"
