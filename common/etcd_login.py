"""The token of a login to etcd, shared by all connections of one store. It knows the password file, not how to ask etcd."""

from __future__ import annotations

import threading
from collections.abc import Callable

from common.config import EtcdConfig
from common.errors import StoreRefused
from common.etcd_rules import NOT_SENT, Fault


class Login:
    """The token that all connections of a store share; etcd's members know each other's tokens.

    A login costs etcd some 70 ms of bcrypt: a host with several watches must not log in for each of them.
    """

    def __init__(self, config: EtcdConfig) -> None:
        self._username, self._password_file = config.username, config.password_file
        self._lock = threading.Lock()
        self._token = ""

    def token(self, authenticate: Callable[[str, str], str], timeout_seconds: float) -> str:
        """The token, got by *authenticate* where there is none; empty where no username is configured."""
        if self._username is None:
            return ""
        if not self._lock.acquire(timeout=timeout_seconds):
            raise Fault(NOT_SENT, "another thread was still logging in")
        try:
            if not self._token:
                self._token = authenticate(self._username, self._password())
            return self._token
        finally:
            self._lock.release()

    def void(self, token: str) -> None:
        """etcd takes *token* no more: the next call logs in, unless another thread has done so already."""
        if self._token == token:
            self._token = ""

    def _password(self) -> str:
        if self._password_file is None:
            return ""
        try:  # at each login, so that a changed password needs no restart
            return self._password_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeError) as error:
            raise StoreRefused(
                f"etcd.password_file: cannot read {self._password_file}: {error}", may_have_happened=False
            ) from error  # fmt: skip
