"""The catalogue as a prefix tree over semantic IDs, in flat arrays. Knows nothing about models or scores.

Items are sorted by their codes, so that a node (a prefix) is a contiguous range of sorted positions and the children
of a node are contiguous nodes of the next level. Whatever restricts the catalogue for one request then is a range
count (engineering of STATIC, arXiv 2602.22647, without its dense tables).

Shapes: N items, L levels, M_l nodes on level l, C_l the most children that a node of level l - 1 has.
Level l holds the prefixes of length l + 1; the root is node 0 of "level -1".
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recsys.data.sequences import IntArray
from recsys.errors import ArtifactError
from recsys.generator.spliced import Inserted, OldNumbers, Spliced, SplicedColumns, Table, entries

_FORMAT = 1
_SPLICED_FROM = 500_000
"""Items from which further ones are looked up beside the tables, which to copy would take longer than a request may;
below, tables that are whole answer faster."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Children:
    """The children of a batch of nodes, padded to the widest node of the level; shape [..., C_l] each."""

    nodes: Tensor
    """int64: node numbers on the children's level; 0 where `legal` is false."""
    codes: Tensor
    """int64: the children's codes on their level; 0 where `legal` is false."""
    legal: Tensor
    """bool: false on padding."""


class ItemTrie:
    """An immutable trie; build a new one and swap it in to change the catalogue.

    Args:
        codes: int64 [N, L], rows unique, `0 <= codes[:, l] < codebook_sizes[l]`.
        codebook_sizes: number of codes on each level.

    Raises:
        ArtifactError: two items share a code, or a code is outside its codebook.
    """

    def __init__(self, codes: npt.NDArray[np.int64], codebook_sizes: Sequence[int]) -> None:
        codes = np.asarray(codes, dtype=np.int64)
        if codes.ndim != 2 or codes.shape[1] != len(codebook_sizes) or len(codes) == 0:
            raise ArtifactError(
                f"codes must be [items, {len(codebook_sizes)} levels] with at least one item, got {list(codes.shape)}"
            )
        if (codes.min(axis=0) < 0).any() or (codes.max(axis=0) >= np.asarray(codebook_sizes)).any():
            out_of_range = (codes < 0) | (codes >= np.asarray(codebook_sizes))
            item, level = (int(index) for index in np.argwhere(out_of_range)[0])
            raise ArtifactError(
                f"codes: item {item} has code {codes[item, level]} on level {level}, "
                f"whose codebook has {codebook_sizes[level]} codes"
            )
        keys = _keys(codes, codebook_sizes)
        if keys is None:
            order, starts_of_level = _sort_columns(codes)
        else:
            order = np.argsort(keys)
            keys = keys[order]
            starts_of_level = _starts(keys, codebook_sizes)
        self._lay_out(codes, codebook_sizes, order, keys, starts_of_level)

    def save(self, path: Path, codes: IntArray) -> None:
        """Write its tables as safetensors; `codes`, int64 [N, L], which it was built over, are kept elsewhere."""
        assert isinstance(self.paths, Tensor), "what new items are looked up beside is not saved"
        tables = {"items": entries(self.items), "positions": entries(self.positions), "paths": self.paths}
        if self._keys is not None:
            tables["keys"] = torch.from_numpy(self._keys.view(np.int64))
        for level in range(self.num_levels):
            tables[f"starts.{level}"] = entries(self.starts[level])
            tables[f"codes.{level}"] = entries(self.codes[level])
            tables[f"first_child.{level}"] = entries(self.first_child[level])
        facts = {
            "format": _FORMAT,
            "codes_sha256": codes_sha256(codes),
            "codebook_sizes": self.codebook_sizes,
            "max_children": self.max_children,
        }
        save_file({name: table.cpu() for name, table in tables.items()}, path, {"trie": json.dumps(facts)})

    @classmethod
    def load(cls, path: Path, codes: IntArray, codebook_sizes: Sequence[int]) -> ItemTrie:
        """The trie over `codes`, int64 [N, L], from what `save` wrote.

        Its tables stay maps of the file, one in memory for all processes that load it.

        Raises:
            ArtifactError: the file is damaged, or it is the trie of other codes.
        """
        trie = cls.__new__(cls)
        trie._below = None
        trie.num_items, trie.num_levels = codes.shape
        trie.codebook_sizes = tuple(int(size) for size in codebook_sizes)
        levels = range(trie.num_levels)
        expected = (codes_sha256(codes), trie.codebook_sizes)
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["trie"])
                if facts["format"] != _FORMAT:
                    raise ArtifactError(f"trie: {path} has format {facts['format']}, this version reads {_FORMAT}")
                if (facts["codes_sha256"], tuple(facts["codebook_sizes"])) != expected:
                    raise ArtifactError(f"trie: {path} is that of other semantic IDs; load it with those of its run")
                trie.max_children = [int(number) for number in facts["max_children"]]
                trie.items, trie.positions = file.get_tensor("items"), file.get_tensor("positions")
                trie.paths = file.get_tensor("paths")
                trie.starts = [file.get_tensor(f"starts.{level}") for level in levels]
                trie.codes = [file.get_tensor(f"codes.{level}") for level in levels]
                trie.first_child = [file.get_tensor(f"first_child.{level}") for level in levels]
                fit_one_number = sum(_widths(codebook_sizes)) <= 64
                trie._keys = file.get_tensor("keys").numpy().view(np.uint64) if fit_one_number else None
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ArtifactError(f"trie: cannot read {path}: {error}; save it again") from error
        return trie

    def with_items(self, further: IntArray) -> ItemTrie:
        """The trie over these items and, behind them, further ones (int64 [K, L]); it stays as it is itself.

        The further ones are put between the sorted ones, which is several times faster than sorting all of them. In a
        large trie that is done at each look-up (see `Spliced`): nothing of it is copied, and it may be of a file.

        Raises:
            ArtifactError: as for a new trie.
        """
        if self._below is not None:
            own = torch.arange(self._below.num_items, self.num_items)
            return self._below.with_items(np.concatenate([self._codes_of(own), further]))
        everything = torch.arange(self.num_items)
        keys = None if self._keys is None else _keys(further, self.codebook_sizes)
        inside = (further >= 0).all() and (further < np.asarray(self.codebook_sizes)).all()
        if keys is None or self._keys is None or not inside:
            return ItemTrie(np.concatenate([self._codes_of(everything), further]), self.codebook_sizes)
        order = np.argsort(keys)
        keys = keys[order]
        places = np.searchsorted(self._keys, keys)
        if self.items.device.type == "cpu" and self.num_items >= _SPLICED_FROM:
            return self._spliced(further, order, keys, places)
        merged = np.insert(self._keys, places, keys)
        items = np.insert(entries(self.items).cpu().numpy(), places, self.num_items + order)
        codes = np.concatenate([self._codes_of(everything), further])
        twin = copy.copy(self)
        twin._lay_out(codes, self.codebook_sizes, items, merged, _starts(merged, self.codebook_sizes))
        return twin

    def _codes_of(self, items: Tensor) -> IntArray:
        """int64 [K, L]: the codes of `items`, int64 [K]."""
        columns = [codes[self.paths[items, level]] for level, codes in enumerate(self.codes)]
        return torch.stack(columns, dim=1).cpu().numpy()

    def nodes_in(self, smaller: ItemTrie) -> Sequence[Table]:
        """For each level int64 [M_l]: the node of the same prefix in the trie of the first items; -1 where it has none.

        Args:
            smaller: `with_items` has made this one from it.
        """
        if self._below is not None:
            return [OldNumbers(len(codes), codes.index) for codes in self.codes if isinstance(codes, Spliced)]
        is_old = (self.items < smaller.num_items).cpu()
        before = torch.nn.functional.pad(is_old.cumsum(0), (1, 0))
        found = []
        for starts in self.starts:
            has_old = before[starts[1:].cpu()] > before[starts[:-1].cpu()]
            found.append(torch.where(has_old, has_old.cumsum(0) - 1, -1))
        return found

    def _lay_out(
        self,
        codes: IntArray,
        codebook_sizes: Sequence[int],
        order: IntArray,
        keys: npt.NDArray[np.uint64] | None,
        starts_of_level: list[IntArray],
    ) -> None:
        if len(starts_of_level[-1]) < len(codes):
            position = int(np.setdiff1d(np.arange(len(codes)), starts_of_level[-1])[0])
            raise _collision(codes[order[position]], *order[position - 1 : position + 1].tolist())

        self._below: ItemTrie | None = None
        """The trie that this one looks most things up in."""
        self._keys = keys
        """uint64 [N]: the codes of each item as one number, ascending; None where they do not fit one."""
        self.num_items, self.num_levels = codes.shape
        self.codebook_sizes = tuple(int(size) for size in codebook_sizes)
        items = torch.from_numpy(order)
        positions = torch.empty_like(items)
        positions[items] = torch.arange(self.num_items)
        self.items: Table = items
        """int64 [N]: the item at each sorted position; positions are the nodes of the last level."""
        self.positions: Table = positions
        """int64 [N]: the sorted position of each item."""
        self.starts: list[Table] = []
        """For each level int64 [M_l + 1]: node m covers sorted positions starts[m] .. starts[m + 1] - 1."""
        self.codes: list[Table] = []
        """For each level int64 [M_l]: the last code of each prefix."""
        self.first_child: list[Table] = []
        """For each level int64 [M_(l-1) + 1]: parent p has the children first_child[p] .. first_child[p + 1] - 1."""
        self.max_children: list[int] = []
        """For each level C_l."""
        node_of_position = np.empty(codes.shape, dtype=np.int64)
        parent_starts = np.array([0, self.num_items])
        for level, firsts in enumerate(starts_of_level):
            starts = np.append(firsts, self.num_items)
            node_of_position[:, level] = np.repeat(np.arange(len(firsts)), np.diff(starts))
            # Where a parent begins, a child of it does.
            first_child = np.append(node_of_position[parent_starts[:-1], level], len(firsts))
            self.starts.append(torch.from_numpy(starts))
            self.codes.append(torch.from_numpy(codes[order[firsts], level]))
            self.first_child.append(torch.from_numpy(first_child))
            self.max_children.append(int(np.diff(first_child).max()))
            parent_starts = starts
        self.paths: Tensor | SplicedColumns = torch.from_numpy(node_of_position[positions.numpy()])
        """int64 [N, L]: the node of each item on each level."""

    def _spliced(
        self, further: IntArray, order: IntArray, keys: npt.NDArray[np.uint64], places: npt.NDArray[np.intp]
    ) -> ItemTrie:
        """`with_items` without a copy of any table.

        Args:
            further: int64 [K, L], codes.
            order: int64 [K], these in the order of their codes.
            keys: uint64 [K], their codes, ascending.
            places: [K], the position in this trie that each stands before.
        """
        assert self._keys is not None, "the caller has seen to it"
        count = self.num_items
        left, right = np.maximum(places - 1, 0), np.minimum(places, count - 1)
        met = (places < count) & (self._keys[right] == keys)
        if met.any():
            place = int(met.argmax())
            first = int(self.items[torch.tensor(int(right[place]))])
            raise _collision(further[order[place]], first, count + int(order[place]))
        same = np.flatnonzero(keys[1:] == keys[:-1])
        if len(same):
            raise _collision(further[order[same[0]]], *(count + order[same[0] : same[0] + 2]).tolist())

        positions = Inserted.of(places)
        behind = Inserted.of(np.full(len(further), count))
        ranked = np.argsort(order)
        """The place of each further item among the sorted ones."""
        twin = copy.copy(self)
        twin._below, twin._keys = self, None
        twin.num_items = count + len(further)
        twin.items = Spliced.of(entries(self.items), positions, None, positions.numbers, count + order)
        twin.positions = Spliced.of(
            entries(self.positions), behind, positions, behind.numbers, positions.numbers[ranked]
        )
        twin.starts, twin.codes, twin.first_child, twin.max_children = [], [], [], []
        paths: list[Spliced] = []
        assert isinstance(self.paths, Tensor), "a trie with one below goes back to it"
        left_nodes, right_nodes = (self.paths[self.items[torch.from_numpy(side)]].numpy() for side in (left, right))
        # Of the level above: the root, which is old, and whose first item is another one if that is put before all.
        parent_nodes = Inserted.of(np.zeros(0, dtype=np.int64))
        parents = np.zeros(len(further), dtype=np.int64)
        leads_parent = (places == 0) & (np.arange(len(further)) == 0)
        for level, width in enumerate(_below(self.codebook_sizes)):
            prefixes = keys >> width
            joins_left = (places > 0) & (self._keys[left] >> width == prefixes)
            joins_right = (places < count) & (self._keys[right] >> width == prefixes)
            # Which further items are the first of their prefix, and which of these the first with it at all.
            leads = ~joins_left & np.append(True, prefixes[1:] != prefixes[:-1])
            begins = leads & ~joins_right
            num_nodes = len(self.codes[level])
            nodes = Inserted.of(np.where(places < count, right_nodes[:, level], num_nodes)[begins])
            old = torch.from_numpy(np.where(joins_right, right_nodes[:, level], left_nodes[:, level]))
            # What joins neither side is in the last node that has begun.
            new = nodes.numbers[np.maximum(np.cumsum(begins) - 1, 0)] if begins.any() else old
            owners = np.where(joins_left | joins_right, nodes.raised(old), new)
            firsts = np.flatnonzero(leads)
            twin.starts.append(
                Spliced.of(entries(self.starts[level]), nodes, positions, owners[firsts], positions.numbers[firsts])
            )
            own_codes = further[order[begins], level]
            twin.codes.append(Spliced.of(entries(self.codes[level]), nodes, None, owners[begins], own_codes))
            children = Spliced.of(
                entries(self.first_child[level]), parent_nodes, nodes, parents[leads_parent], owners[leads_parent]
            )
            twin.first_child.append(children)
            grown = torch.from_numpy(np.unique(parents[begins]))
            widths = children[grown + 1] - children[grown]
            twin.max_children.append(max([self.max_children[level], *widths.tolist()]))
            paths.append(Spliced.of(self.paths[:, level], behind, nodes, behind.numbers, owners[ranked]))
            parent_nodes, parents, leads_parent = nodes, owners, leads
        twin.paths = SplicedColumns(columns=tuple(paths))
        return twin

    def in_order(self, rows: Tensor) -> Tensor:
        """Like `rows`, [..., N] by item: by sorted position."""
        if self._below is None or not isinstance(self.items, Spliced):
            return rows[..., entries(self.items)]
        below = self._below.in_order(rows)
        further = rows[..., self.items.own]
        begins = [0, *self.items.index.before.tolist(), below.shape[-1]]
        parts = [below[..., begins[0] : begins[1]]]
        for place in range(len(begins) - 2):
            parts += [further[..., place : place + 1], below[..., begins[place + 1] : begins[place + 2]]]
        return torch.cat(parts, dim=-1)

    @property
    def num_bytes(self) -> int:
        """Memory of all its arrays; without those that it shares with the trie that it was made from."""
        tables = [self.items, self.positions, self.paths, *self.starts, *self.codes, *self.first_child]
        return sum(table.nbytes for table in tables)

    def children(self, level: int, parents: Tensor) -> Children:
        """The children on `level` of `parents` (int64 [...], nodes of level - 1)."""
        first = self.first_child[level][parents].unsqueeze(-1)
        last = self.first_child[level][parents + 1].unsqueeze(-1)
        nodes = first + torch.arange(self.max_children[level], device=parents.device)
        legal = nodes < last
        nodes = torch.where(legal, nodes, 0)
        return Children(nodes=nodes, codes=torch.where(legal, self.codes[level][nodes], 0), legal=legal)

    def span(self, prefix: Sequence[int]) -> tuple[int, int]:
        """The sorted positions of the items whose first codes are `prefix`, from the first to behind the last."""
        node, begin, end = torch.tensor(0), 0, self.num_items
        for level, code in enumerate(prefix):
            first, behind = self.first_child[level][torch.stack([node, node + 1])].tolist()
            children = torch.arange(first, behind)
            at = int(torch.searchsorted(self.codes[level][children], code))
            if at == len(children) or int(self.codes[level][children[at]]) != code:
                return begin, begin
            node = children[at]
            begin, end = self.starts[level][torch.stack([node, node + 1])].tolist()
        return begin, end

    def child_slots(self, level: int, items: Tensor) -> tuple[Tensor, Tensor]:
        """For `items` (int64 [...]): the parent node on level - 1 and the item's slot among that parent's children."""
        nodes = self.paths[items, level]
        parents = self.paths[items, level - 1] if level else torch.zeros_like(nodes)
        return parents, nodes - self.first_child[level][parents]


def _collision(code: IntArray, one: int, other: int) -> ArtifactError:
    first, second = sorted((one, other))
    return ArtifactError(
        f"codes: items {first} and {second} share {code.tolist()}; resolve collisions before building a trie"
    )


def codes_sha256(codes: IntArray) -> str:
    """Hex SHA-256 of codes, int64 [N, L]."""
    return hashlib.sha256(np.ascontiguousarray(codes, dtype=np.int64).data).hexdigest()


def _keys(codes: IntArray, codebook_sizes: Sequence[int]) -> npt.NDArray[np.uint64] | None:
    """uint64 [N]: the codes of each item as one number, which sorts several times faster than column by column; None
    where they do not fit 64 bits."""
    widths = _widths(codebook_sizes)
    if sum(widths) > 64:
        return None
    keys = np.zeros(len(codes), dtype=np.uint64)
    for level, width in enumerate(widths):
        keys = (keys << np.uint64(width)) | codes[:, level].astype(np.uint64)
    return keys


def _starts(keys: npt.NDArray[np.uint64], codebook_sizes: Sequence[int]) -> list[IntArray]:
    """For each level the positions where prefixes begin in sorted keys."""
    changes = keys[1:] ^ keys[:-1]
    # A prefix begins where a bit of its own code, or of one before it, changes.
    return [np.append(0, np.flatnonzero(changes >> bits) + 1) for bits in _below(codebook_sizes)]


def _below(codebook_sizes: Sequence[int]) -> list[np.uint64]:
    """For each level the bits that the codes behind it take in a key."""
    widths = _widths(codebook_sizes)
    return [np.uint64(sum(widths[level + 1 :])) for level in range(len(widths))]


def _sort_columns(codes: IntArray) -> tuple[IntArray, list[IntArray]]:
    """The items in the order of their codes (int64 [N]), and for each level the positions where prefixes begin."""
    order = np.lexsort(codes.T[::-1])
    ordered = codes[order]
    differs = np.logical_or.accumulate(ordered[1:] != ordered[:-1], axis=1)
    return order, [np.append(0, np.flatnonzero(column) + 1) for column in differs.T]


def _widths(codebook_sizes: Sequence[int]) -> list[int]:
    """Bits that a code of each level takes."""
    return [max(1, (int(size) - 1).bit_length()) for size in codebook_sizes]
