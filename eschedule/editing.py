"""The commands ``export`` and ``edit``: an instance as a file, to keep, or to change in an editor.

What was edited is judged as ``apply`` judges it. On a mistake the file is opened again with the mistake on top; whoever leaves
it as it is then gets it kept, and nothing is changed. So it is where the instance was changed by somebody else meanwhile.
"""

from __future__ import annotations

import argparse
import os
import shlex
import tempfile
from pathlib import Path
from uuid import UUID

from common.errors import ConfigError, Conflict, EcomputeError
from common.keys import Keys
from common.model import HostAdmin
from common.store import Store
from common.text import escaped
from common.validate import parse_instance
from eschedule import changes, child, vm_export, zones
from eschedule.applying import carry_out, obstacles
from eschedule.changes import Instance
from eschedule.commands import whom_of
from eschedule.interruption import Interrupted
from eschedule.listing import host_names, read_record
from eschedule.output import emit
from eschedule.session import Session
from eschedule.vm_differences import refuse_ending
from eschedule.vm_export import Whereabouts
from eschedule.vm_file import USER_DATA, files_in
from eschedule.vm_plan import Plan, plan_of
from eschedule.waiting import wait_seconds_of

EDITOR = "vi"  # where neither VISUAL nor EDITOR says otherwise
_HEAD = "what of {} can be changed; saved and left, it is; lines that begin with # are not read\nall fields: docs/vm-file.md"


def export(session: Session, options: argparse.Namespace) -> int:
    """Run ``export``; its exit code.

    Raises:
        Permanent: one is not there.
    """
    all_found = [_found(session, who) for who in whom_of(options)]
    documents = [vm_export.document_of(found.spec, whereabouts(session.store, session.keys, found)) for found in all_found]
    notes = [[f"not in here: {line}" for line in vm_export.left_out(found.spec)] for found in all_found]
    is_one = options.selector is None and len(documents) == 1
    emit(
        session.screen, options, lambda: documents[0] if is_one else documents,
        lambda _: "---\n".join(map(vm_export.as_yaml, documents, notes)),
    )  # fmt: skip
    return 0


def whereabouts(store: Store, keys: Keys, found: Instance) -> Whereabouts:
    """Where *found* is."""
    alive = {found.provider: found.host} if found.host else {}
    host = host_names(store, keys, {found.provider}, alive)[found.provider]
    admin = read_record(HostAdmin, store.get(keys.host_admin(found.provider)))
    return Whereabouts(found.provider, host.name, admin.labels.get(zones.LABEL, "") if admin else "")


def edit(session: Session, options: argparse.Namespace) -> int:
    """Run ``edit``; its exit code.

    Raises:
        ConfigError: it was left with a mistake in it; it is kept.
        Conflict: somebody else changed the instance, or this cannot be changed; it is kept.
        EcomputeError: it was not changed, or not waited for to the end.
    """
    wait_seconds_of(session, options)
    found = _found(session, parse_instance(options.instance))
    refuse_ending(found)
    seen, document = found.spec_item.mod_revision, {"name": found.name, **vm_export.editable(found.spec)}
    text = vm_export.as_yaml(document, [_HEAD.format(found.name)])
    session.close_store()  # an editor may be open for hours
    path = _file(found.name)
    try:
        plan = _edited(session, path, text, set(document))
    except (EcomputeError, Interrupted):
        if path.read_text(encoding="utf-8", errors="replace") == text:
            path.unlink()  # nothing was edited: there was no such editor, say
        else:
            session.screen.message(f"what was edited is kept in {path}")
        raise
    if plan is None:
        path.unlink()
        session.screen.message(f"{found.name}: nothing was changed")
        return 0
    try:
        carry_out(session, plan, options, seen=seen)
    except EcomputeError:
        session.screen.message(
            f"what was edited is kept in {path}; to try it on what is there by then: eschedule apply -f {path}"
        )
        raise
    path.unlink()
    return 0


def _found(session: Session, who: UUID | str) -> Instance:
    return changes.read(session.store, session.keys, changes.find(session.store, session.keys, who), who)


def _file(name: str) -> Path:
    """A file that nobody else may read: user data often has passwords in it."""
    number, path = tempfile.mkstemp(prefix=f"eschedule-edit-{name}-", suffix=".yaml")
    os.close(number)
    return Path(path)


def _edited(session: Session, path: Path, text: str, fields: set[str]) -> Plan | None:
    """What is to be done after *text* was edited at *path*, until it has no mistake; None where it was left as it was.

    Raises:
        ConfigError: it was left with its mistakes.
        Conflict: it asks for what cannot be changed, and was left so.
        EcomputeError: etcd did not answer, or the editor could not be started, or failed.
    """
    original, mistakes = _without_comments(text), ""
    while True:
        path.write_text(text, encoding="utf-8")
        _open_in_editor(path)
        edited = path.read_text(encoding="utf-8", errors="surrogateescape")
        if not mistakes and _without_comments(edited) == original:
            return None
        is_left = bool(mistakes) and _without_comments(edited) == _without_comments(text)
        try:
            return _judged(session, edited, path, fields)
        except (ConfigError, Conflict) as error:
            if is_left:
                raise
            mistakes = str(error)
            text = _commented(mistakes) + _without_old_mistakes(edited)
            original = ""  # to go back to what it was is a change, too


_MARK = "#! "


def _commented(mistakes: str) -> str:
    return "".join(f"{_MARK}{escaped(line)}\n" for line in mistakes.split("\n"))


def _without_old_mistakes(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(_MARK))


def _without_comments(text: str) -> str:
    """*text* without the comments at its head."""
    lines = text.splitlines()
    while lines and lines[0].startswith("#"):
        del lines[0]
    return "\n".join(lines)


def _open_in_editor(path: Path) -> None:
    """Raises: EcomputeError: the editor cannot be started, or says that it failed."""
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or EDITOR
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"VISUAL or EDITOR is no command: {error}") from None
    if code := child.run([*words, str(path)]).exit_code:
        raise EcomputeError(f"{words[0]} ended with {code}; nothing was changed")


def _judged(session: Session, text: str, path: Path, fields: set[str]) -> Plan:
    """Raises: ConfigError, Conflict: it has a mistake in it, or asks for what cannot be."""
    found = files_in(text, str(path), path.parent)
    if len(found) > 1:
        raise ConfigError(f"{found[1].line()}: there is a second instance; one is edited at a time")
    vm = found[0]
    gone = fields - set(vm.values) - ({*USER_DATA} if vm.says_user_data else set())
    if gone:
        raise ConfigError(f"{vm.line()}: {', '.join(sorted(gone))}: taken out; to have none, write it empty: [], {{}} or null")
    plan = plan_of(session, vm)
    if plan.found is None:
        raise ConfigError(f"{vm.at('name')}: there is no instance {vm.name}; an instance is not renamed by editing it")
    if plan.obstacles:
        raise Conflict("\n".join(obstacles(plan)))
    return plan
