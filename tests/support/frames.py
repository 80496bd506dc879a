"""Ethernet frames made by hand, and which of them get through a guest's port: to try a network filter frame by frame.

``python -m tests.support.frames NETNS CARD LISTEN`` reads hex frames as a JSON object of names from stdin, sends each from the
interface CARD of the network namespace NETNS, and prints the names of those that arrived at LISTEN of its own namespace, as JSON. No two may be alike; the last is ``END``.
"""

from __future__ import annotations

import ctypes
import ipaddress
import json
import os
import select
import socket
import struct
import sys
import time
from pathlib import Path

ETH_P_ALL = 3
END = "the end"  # a frame that every filter lets pass, sent last: what is not there by then does not come
LONGEST_SECONDS = 5.0


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def ethernet(source: str, target: str, kind: int, payload: bytes) -> bytes:
    return mac_bytes(target) + mac_bytes(source) + struct.pack("!H", kind) + payload


def arp(mac: str, address: str, *, asks_for: str, operation: int = 1) -> bytes:
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
    return head + mac_bytes(mac) + socket.inet_aton(address) + bytes(6) + socket.inet_aton(asks_for)


def udp(source_port: int, target_port: int, content: bytes = bytes(8)) -> bytes:
    return struct.pack("!HHHH", source_port, target_port, 8 + len(content), 0) + content


def ipv4(source: str, target: str, protocol: int, payload: bytes) -> bytes:
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    head = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol)
    total = sum(struct.unpack("!9H", head + addresses))  # a bridge looks at the checksum, too
    total = (total & 0xFFFF) + (total >> 16)
    return head + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + addresses + payload


def ipv6(source: str, target: str, protocol: int, payload: bytes) -> bytes:
    addresses = ipaddress.IPv6Address(source).packed + ipaddress.IPv6Address(target).packed
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 255) + addresses + payload


def icmpv6(kind: int) -> bytes:
    return struct.pack("!BBH", kind, 0, 0) + bytes(20)


def _socket(interface: str) -> socket.socket:
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    raw.bind((interface, 0))
    return raw


def _main(namespace: str, card: str, listen: str, direction: str = "out") -> None:
    frames = {name: bytes.fromhex(text) for name, text in json.load(sys.stdin).items()}
    outside = _socket(listen)
    with Path("/run/netns", namespace).open() as file:
        assert ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0) == 0, os.strerror(ctypes.get_errno())
    inside = _socket(card)
    mouth, ear = (outside, inside) if direction == "in" else (inside, outside)
    for frame in frames.values():
        mouth.send(frame.ljust(60, b"\0"))
    seen: set[str] = set()
    until = time.monotonic() + LONGEST_SECONDS
    while END not in seen and select.select([ear], [], [], max(0.0, until - time.monotonic()))[0]:
        arrived = ear.recv(4096)  # perhaps without its padding
        seen.update(name for name, frame in frames.items() if arrived.startswith(frame))
    print(json.dumps(sorted(seen - {END})) if END in seen else json.dumps("nothing came through"))


if __name__ == "__main__":
    _main(*sys.argv[1:])
