"""Which guests say that they have which addresses, on cards whose addresses somebody else gives. Pure, but for its memory.

A guest says what it likes, another's address, too. So an address that is given to a card is nobody's to say, and one that two
guests of a wire say that they have is shown for neither: it cannot be told who lies. On different wires, such as two VLANs,
both may have it. Called by ``network``, under its lock for learning.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from uuid import UUID

from common.nics import Address, IpAddress
from ecompute.bridge_cards import MOST_LEARNED, given_addresses, is_foreign, without_addresses

Cards = tuple[Address, ...]
Wire = tuple[str, int]  # bridge and VLAN


class Hearsay:
    """What each guest said last."""

    def __init__(self) -> None:
        self._said: dict[UUID, frozenset[tuple[Wire, str]]] = {}

    def note(self, uuid: UUID, cards: Cards, seen: Mapping[str, tuple[IpAddress, ...]]) -> None:
        """What was *seen* on the instance's *cards*, by MAC; of a guest that says nothing its last word stays."""
        foreign = [card for card in cards if is_foreign(card)]
        if said := frozenset((_wire(card), one.address) for card in foreign for one in seen.get(card.mac, ())[:MOST_LEARNED]):
            self._said[uuid] = said

    def forget(self, uuid: UUID) -> None:
        self._said.pop(uuid, None)

    def denied(self, cards: Cards, others: Mapping[UUID, Cards]) -> frozenset[str]:
        """The addresses that an instance with *cards* is not believed, whatever it says."""
        wires = {_wire(card) for card in cards if is_foreign(card)}
        given = (
            address for known in others.values() for card in known if _is_near(card, wires) for address in given_addresses(card)
        )
        said = (address for uuid, known in others.items() for wire, address in self._of(uuid, known) if wire in wires)
        return frozenset(given).union(said)

    def without_what_is_said_by(self, uuid: UUID, cards: Cards) -> Cards:
        """Another instance's *cards* without the addresses that *uuid* says that it has."""
        said = self._said.get(uuid, frozenset())
        return _without(cards, lambda card: {address for wire, address in said if wire == _wire(card)})

    def _of(self, uuid: UUID, cards: Cards) -> Iterable[tuple[Wire, str]]:
        """What the instance said, as far as is known: a file may have it from before this process began."""
        if uuid in self._said:
            return self._said[uuid]
        return ((_wire(card), address) for card in cards if is_foreign(card) for address in card.all_addresses)


def without_what_is_given(given: Iterable[Address], cards: Cards) -> Cards:
    """An instance's *cards* without the addresses that are *given* to another's."""
    given = tuple(given)
    return _without(
        cards, lambda card: {one for other in given if _is_near(other, {_wire(card)}) for one in given_addresses(other)}
    )


def _without(cards: Cards, taken_of: Callable[[Address], Collection[str]]) -> Cards:
    return tuple(without_addresses(card, taken_of(card)) if is_foreign(card) else card for card in cards)


def _is_near(card: Address, wires: Collection[Wire]) -> bool:
    """Whether the card's addresses count on *wires*; those of libvirt's networks, to which the host itself leads, do on all."""
    return not card.bridge or _wire(card) in wires


def _wire(card: Address) -> Wire:
    return card.bridge, card.vlan
