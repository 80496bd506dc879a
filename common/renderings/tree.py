"""A small read-only tree with EC2's listing rules: what a path of the metadata service leads to. Pure; knows no HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"
BYTES = "application/octet-stream"


@dataclass(frozen=True)
class Leaf:
    """What a path ends in."""

    content: bytes
    content_type: str = TEXT


@dataclass(frozen=True)
class Fresh:
    """A leaf that is made anew for whoever asks for it; the rest of a tree may be kept."""

    make: Callable[[], Leaf]


@dataclass(frozen=True)
class Directory:
    """Named children, and what asking for the directory itself answers.

    *listing* replaces the usual one, which names the children in order, directories with a slash at the end.
    """

    children: Mapping[str, Node]
    listing: Sequence[str] | None = None

    def lines(self) -> Sequence[str]:
        if self.listing is not None:
            return self.listing
        return [f"{name}/" if isinstance(child, Directory) else name for name, child in sorted(self.children.items())]

    @cached_property
    def listed(self) -> Leaf:
        """What asking for it answers."""
        return text("\n".join(self.lines()))


Node = Leaf | Fresh | Directory


def text(value: str) -> Leaf:
    return Leaf(value.encode())


def find(root: Node, segments: Sequence[str], *, has_slash: bool) -> Leaf | None:
    """What the path *segments* below *root* answers: a leaf, or the listing of a directory; None where nothing is.

    *has_slash*: the path ended in a slash. A directory answers with and without; below a leaf there is nothing.
    """
    node = root
    for segment in segments:
        child = node.children.get(segment) if isinstance(node, Directory) else None
        if child is None:
            return None
        node = child
    if isinstance(node, Directory):
        return node.listed
    if has_slash:
        return None
    return node.make() if isinstance(node, Fresh) else node
