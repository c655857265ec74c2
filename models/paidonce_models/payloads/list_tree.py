"""The chunk tree of one long list: what is stored once when elements are appended to the list.

Owns how elements are grouped. Consecutive elements form a *leaf* (a separate JSON list)
once they reach 4 KiB, or 1/256 of the bytes before them in very long lists, so that an
8 KB message is a leaf and a million small rows are some thousand. Thirty-two leaves form
a *node*, thirty-two nodes a node of the next level. A closed leaf or node never changes
when elements are appended: the next version of the list adds its new elements and a
manifest of at most 31 addresses per level.

The grouping depends only on the list's bytes, never on history: two processes give the
same list the same addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from paidonce_models.payloads.addressing import PayloadRow, address, make_row
from paidonce_models.payloads.encoding import encode_json

TREE = "json-tree"
"""The codec of manifests: a JSON list of parts, see ``payloads``."""

FAN_OUT = 32
LEAF_BYTES = 4096
LEAF_SHARE = 256


@dataclass(slots=True)
class ListTree:
    """The closed leaves of a list of encoded elements, and the nodes above them."""

    leaves: list[int] = field(default_factory=list)
    """For each closed leaf, the number of the element after it."""
    levels: list[list[str]] = field(default_factory=lambda: [[]])
    """Addresses by level: first those of all leaves, then those of the nodes above."""
    seen: int = 0
    """Elements processed; those after the last closed leaf are the open leaf."""
    leaf_start: int = 0
    """The byte at which the open leaf starts."""
    leaf_size: int = 0
    """Bytes of the open leaf, each element with its comma."""

    def grown(self, texts: list[bytes]) -> ListTree:
        """The tree of a longer list that starts with this one; this one is unchanged."""
        if self.seen == len(texts):
            return self
        levels = [list(level) for level in self.levels]
        tree = ListTree(list(self.leaves), levels, self.seen, self.leaf_start, self.leaf_size)
        for index in range(self.seen, len(texts)):
            tree.leaf_size += len(texts[index]) + 1
            if tree.leaf_size > max(LEAF_BYTES, tree.leaf_start // LEAF_SHARE):
                tree._close_leaf(texts, index + 1)
        tree.seen = len(texts)
        return tree

    def _close_leaf(self, texts: list[bytes], behind: int) -> None:
        content = leaf_content(texts, self._open_from(), behind)
        self.leaves.append(behind)
        self.leaf_start += self.leaf_size
        self.leaf_size = 0
        self._append(0, address(content, "json"))

    def _append(self, level: int, id_: str) -> None:
        if level == len(self.levels):
            self.levels.append([])
        ids = self.levels[level]
        ids.append(id_)
        if len(ids) % FAN_OUT == 0:
            self._append(level + 1, address(node_content(ids[-FAN_OUT:]), TREE))

    def addresses(self, texts: list[bytes]) -> list[str]:
        """The addresses in the manifest of the whole list: top nodes and leaves, then the open leaf if any."""
        ids = [self.levels[level][index] for level, index in self._top()]
        if self._open_from() < len(texts):
            ids.append(address(leaf_content(texts, self._open_from(), len(texts)), "json"))
        return ids

    def rows(self, texts: list[bytes], known: Callable[[str], bool]) -> Iterator[PayloadRow]:
        """The rows that are not known; a known node implies all below it."""
        pending = self._top()
        while pending:
            level, index = pending.pop()
            if known(self.levels[level][index]):
                continue
            if level == 0:
                start = self.leaves[index - 1] if index else 0
                yield make_row(leaf_content(texts, start, self.leaves[index]), "json")
            else:
                first = index * FAN_OUT
                yield make_row(node_content(self.levels[level - 1][first : first + FAN_OUT]), TREE)
                pending.extend((level - 1, child) for child in range(first, first + FAN_OUT))
        if self._open_from() < len(texts):
            yield make_row(leaf_content(texts, self._open_from(), len(texts)), "json")

    def _open_from(self) -> int:
        return self.leaves[-1] if self.leaves else 0

    def _top(self) -> list[tuple[int, int]]:
        """Level and index of everything that no closed node covers, in the list's order."""
        positions: list[tuple[int, int]] = []
        for level in range(len(self.levels) - 1, -1, -1):
            covered = len(self.levels[level + 1]) * FAN_OUT if level + 1 < len(self.levels) else 0
            positions.extend((level, index) for index in range(covered, len(self.levels[level])))
        return positions


def leaf_content(texts: list[bytes], start: int, behind: int) -> bytes:
    """A leaf as separate JSON: the elements in brackets."""
    return b"[" + b",".join(texts[start:behind]) + b"]"


def node_content(ids: list[str]) -> bytes:
    """The manifest of a node: one part, the addresses below it."""
    return encode_json([{"l": ids}])
