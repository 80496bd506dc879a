"""The files by which a host joins: compute.yaml and, beside it, what it names: certificates, a password, a token.

They are tried out in a folder of their own before the first of them is put in place, each appears by a rename, and
compute.yaml comes last, so that a crash leaves no configuration that names what is not there. What an operator has set in a
compute.yaml that is there already is kept; one that names other services is not touched without being told to, and then kept
as ``.bak``.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import ComputeConfig, load_compute
from common.config_file import read_document, rendered
from common.errors import ConfigError, Conflict
from common.files import file_errors, write_atomically
from common.join_document import SECRET_FILES, JoinDocument

DIRECTORY = Path("/etc/etcd-compute")
NAMES = {
    "etcd.ca_file": "ca.pem", "etcd.certificate_file": "etcd.pem", "etcd.key_file": "etcd.key",
    "etcd.password_file": "etcd.password", "placement.token_file": "placement.token",
}  # fmt: skip
# The keys that say which services, and as whom; times and the like are the operator's own.
IDENTITY = {
    "etcd": ("endpoints", "prefix", "username", "ca_file", "certificate_file", "key_file", "password_file"),
    "placement": ("url", "token_file", "project_id", "user_id"),
}
HEADER = "# Written by ecompute join. Keys that are not here have their defaults; ecompute --check-config shows all of them.\n"


@dataclass(frozen=True)
class Plan:
    """What is to be at *config_file* and beside it.

    Args:
        document: compute.yaml, whole.
        files: the others, by path.
        differences: keys and files that say otherwise than is wanted.
    """

    config_file: Path
    document: Mapping[str, Any]
    files: Mapping[Path, str]
    is_there: bool
    differences: tuple[str, ...]

    def refuse(self, *, force: bool) -> None:
        """Raises: Conflict: what is there says otherwise, and *force* is not given."""
        if self.differences and not force:
            raise Conflict(
                f"{self.config_file} is there and says otherwise ({', '.join(self.differences)}): nothing was changed; where "
                "this host is to leave those services for these, use --force, which keeps what is there as .bak"
            )


def plan(wanted: JoinDocument, config_file: Path, *, has_md_server_unit: bool = False) -> Plan:
    """How *config_file* comes to name the services of *wanted*.

    Args:
        has_md_server_unit: a new configuration leaves the metadata service to systemd, which runs it with fewer rights.

    Raises:
        ConfigError: what is there cannot be read as a configuration.
    """
    is_there = config_file.exists()
    before = read_document(config_file) if is_there else {}
    document, files, differences = dict(before), dict[Path, str](), list[str]()
    if has_md_server_unit and not is_there:
        document["metadata"] = {"mode": "external"}
    for name, texts, contents in (
        ("etcd", wanted.etcd, wanted.etcd_files), ("placement", wanted.placement, wanted.placement_files),
    ):  # fmt: skip
        was = before.get(name) or {}
        if not isinstance(was, dict):
            raise ConfigError(f"{config_file}: {name} is no section; see: ecompute --config {config_file} --check-config")
        placed = {key: _place(config_file, f"{name}.{key}") for key in contents}
        files |= {placed[key]: text for key, text in contents.items()}
        now = {**texts, **{key: str(path) for key, path in placed.items()}}
        differences += [f"{name}.{key}" for key in IDENTITY[name] if _value(was, name, key) != _value(now, name, key)]
        document[name] = {**{key: value for key, value in was.items() if key not in IDENTITY[name]}, **now}
    if _says_nothing(before, differences) and not _has_instances(before):
        differences = []
    differences += [str(path) for path, text in files.items() if path.exists() and _text(path) != text]
    return Plan(config_file, document, files, is_there, tuple(differences))


def _value(section: Mapping[str, Any], name: str, key: str) -> Any:
    """What holds for a key, written or not."""
    default = getattr(getattr(ComputeConfig(), name), key)
    return section.get(key, list(default) if isinstance(default, tuple) else default)


def _says_nothing(before: Mapping[str, Any], differences: Iterable[str]) -> bool:
    """Whether what differs are defaults: a configuration as it is shipped, or none."""
    parts = [difference.split(".") for difference in differences]
    return all(_value(before.get(name) or {}, name, key) == _value({}, name, key) for name, key in parts)


def _has_instances(before: Mapping[str, Any]) -> bool:
    """Whether guests were built here: then even defaults name services that must not be left by mistake."""
    paths = before.get("paths")
    state_dir = paths.get("state_dir") if isinstance(paths, dict) else None
    folder = Path(str(state_dir or ComputeConfig().paths.state_dir)) / "instances"
    with file_errors("cannot look into", folder):
        return folder.is_dir() and any(folder.iterdir())


def _place(config_file: Path, key: str) -> Path:
    return config_file.absolute().parent / NAMES[key]


def _text(path: Path) -> str:
    with file_errors("cannot read", path):
        return path.read_text(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def tried_out(planned: Plan) -> Iterator[ComputeConfig]:
    """The configuration as it would be, with its files in a folder that only root may look into and that goes again.

    Raises:
        ConfigError: it is none that ecompute would take.
    """
    with tempfile.TemporaryDirectory(prefix="ecompute-join-") as name:
        folder = Path(name)
        document = {key: dict(value) if isinstance(value, dict) else value for key, value in planned.document.items()}
        for path, text in planned.files.items():
            write_atomically(folder / path.name, text.encode())
        for dotted, file_name in NAMES.items():
            section, _, key = dotted.partition(".")
            if _place(planned.config_file, dotted) in planned.files:
                document[section][key] = str(folder / file_name)
        trial = folder / "compute.yaml"
        write_atomically(trial, rendered(document).encode())
        try:
            config = load_compute(trial)
        except ConfigError as error:
            raise ConfigError(str(error).replace(f"{trial}: ", f"{planned.config_file} would not do: ")) from None
        yield config


def write(planned: Plan, *, force: bool) -> bool:
    """Put the files of *planned* in place; False where all are there already.

    Raises:
        Conflict: what is there says otherwise, and *force* is not given; nothing was changed.
        EcomputeError: a file could not be written; repeating it is safe.
    """
    planned.refuse(force=force)
    is_missing = not all(path.exists() for path in planned.files)
    if (
        planned.is_there
        and not planned.differences
        and not is_missing
        and planned.document == read_document(planned.config_file)
    ):
        return False
    directory = planned.config_file.absolute().parent
    with file_errors("cannot make the directory", directory):
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    for path, text in planned.files.items():
        _replace(path, text, 0o600 if _is_secret(path) else 0o644)
    _replace(planned.config_file.absolute(), HEADER + rendered(planned.document), 0o644)
    return True


def _is_secret(path: Path) -> bool:
    return any(path.name == name for key, name in NAMES.items() if key.endswith(SECRET_FILES))


def _replace(path: Path, text: str, mode: int) -> None:
    """Make *path* hold *text*; what it held before is kept beside it, unless that is the same."""
    if path.exists():
        before = _text(path)
        if before == text:
            with file_errors("cannot set the mode", path):
                path.chmod(mode)
            return
        write_atomically(path.with_name(f"{path.name}.bak"), before.encode(), mode)
    write_atomically(path, text.encode(), mode)
