"""The command ``volume``: what each of its actions does, how long it waits, and what it says."""

from __future__ import annotations

import argparse
import datetime
import uuid as uuids
from collections.abc import Callable
from functools import partial
from uuid import UUID

from common.errors import ConfigError, Permanent, Transient
from common.model import Phase
from common.retry import Backoff, Deadline, retry
from common.validate import parse_count, parse_instance, parse_name, parse_request_id, parse_uuid
from common.volume_records import VolumePhase, VolumePlace
from eschedule import changes, volume_changes
from eschedule.confirming import NOT_DONE, is_meant
from eschedule.creating import again_line, planner_of, repeatable
from eschedule.interruption import Interrupted
from eschedule.listing import find_host
from eschedule.output import emit
from eschedule.screen import seconds_text
from eschedule.session import Session
from eschedule.volume_changes import Volume
from eschedule.volume_scheduler import VolumeRequest, VolumeScheduler
from eschedule.volume_text import device_of, volume_block, volume_json, volume_table
from eschedule.waiting import bound_of, wait_seconds_of

MOST_GIB = 1024 * 1024


class _NotYet(Transient):
    """What is waited for has not come yet; the text says what is."""


def volume(session: Session, options: argparse.Namespace) -> int:
    """Run ``volume``; its exit code."""
    actions: dict[str, Callable[[Session, argparse.Namespace], int | None]]
    actions = {"create": _create, "attach": _attach, "detach": _detach, "list": _list, "show": _show, "rm": _remove}
    return actions[options.action](session, options) or 0


def _create(session: Session, options: argparse.Namespace) -> None:
    request, seconds = _request(session, options), wait_seconds_of(session, options)
    volume = request.volume_uuid(session.keys.prefix, uuids.uuid4)
    scheduler = planner_of(session, VolumeScheduler, session.volume_placement)
    again = again_line(options, "--uuid", str(volume))
    placed = repeatable(lambda: scheduler.create(_with_uuid(request, volume)), "uuid", again)
    session.close_placement()
    if placed.is_repeat:
        session.screen.message(f"{request.name} is there already, from this same request")
    if not options.no_wait:
        _wait(session, request.name, placed.place, seconds, partial(_is_made, session), what="made")
    _say(session, options, volume_changes.read(session.store, session.keys, placed.place))


def _request(session: Session, options: argparse.Namespace) -> VolumeRequest:
    """Raises: ConfigError: an option makes no sense. Permanent: there is no such host."""
    if options.uuid is not None and options.request_id is not None:
        raise ConfigError("--uuid and --request-id exclude each other; give one of them")
    name, size = parse_name(options.name, "volume name"), parse_count(options.size, "--size", 1, MOST_GIB)
    uuid = None if options.uuid is None else parse_uuid(options.uuid, "--uuid")
    request_id = None if options.request_id is None else parse_request_id(options.request_id)
    provider = None
    if options.host is not None:
        provider = find_host(session.store, session.keys, options.host).provider
    return VolumeRequest(name, size, provider, uuid, request_id)


def _with_uuid(request: VolumeRequest, volume: UUID) -> VolumeRequest:
    return VolumeRequest(request.name, request.size_gib, request.provider, volume)


def _attach(session: Session, options: argparse.Namespace) -> None:
    place, seconds = _find(session, options), bound_of(session, options)
    instance = changes.find(session.store, session.keys, parse_instance(options.instance))
    plug_in(session, place, instance, seconds)
    _say(session, options, volume_changes.read(session.store, session.keys, place))


def plug_in(session: Session, place: VolumePlace, instance: UUID, seconds: float | None) -> None:
    """Have *instance* get the volume, and wait for it, at most *seconds*; None does not wait.

    Raises:
        EcomputeError: as ``volume_changes.attach``; or it was not waited for to the end, and the text says that it goes on.
    """
    session.interruption.check()
    with session.interruption.shield():
        volume, found, is_new = volume_changes.attach(session.store, session.keys, place, instance, act=session.act)
    if not is_new:
        session.screen.message(f"{volume.name} is attached to {found.name} already")
    _warn_of_silence(session, volume)
    if seconds is not None:
        check = partial(_is_plugged_in, session, instance, found.name)
        _wait(session, volume.name, place, seconds, check, what=f"in {found.name}")


def _detach(session: Session, options: argparse.Namespace) -> None:
    place, seconds = _find(session, options), bound_of(session, options)
    take_out(session, place, seconds)
    _say(session, options, volume_changes.read(session.store, session.keys, place))


def take_out(session: Session, place: VolumePlace, seconds: float | None) -> None:
    """Have its instance lose the volume, and wait for it, at most *seconds*; None does not wait.

    Raises:
        EcomputeError: as ``volume_changes.detach``; or as ``plug_in``.
    """
    session.interruption.check()
    with session.interruption.shield():
        volume, _, _ = volume_changes.detach(session.store, session.keys, place, act=session.act)
    if volume.readable.attached_to is None:
        session.screen.message(f"{volume.name} is attached to no instance")
    else:
        _warn_of_silence(session, volume)
        if seconds is not None:
            _wait(session, volume.name, place, seconds, partial(_is_free, session), what="free")


def _list(session: Session, options: argparse.Namespace) -> None:
    volumes, now = volume_changes.list_volumes(session.store, session.keys), datetime.datetime.now(datetime.UTC)
    emit(session.screen, options, lambda: [volume_json(one) for one in volumes], lambda look: volume_table(volumes, now, look))


def _show(session: Session, options: argparse.Namespace) -> None:
    _say(session, options, volume_changes.read(session.store, session.keys, _find(session, options)))


def _remove(session: Session, options: argparse.Namespace) -> int:
    place, seconds = _find(session, options), wait_seconds_of(session, options)
    if not is_meant(session, options, f"remove the volume {options.name}, with all that is in it, for good?"):
        return NOT_DONE
    session.interruption.check()
    with session.interruption.shield():
        found = volume_changes.remove(session.store, session.keys, place)
    _warn_of_silence(session, found)
    if options.no_wait:
        session.screen.message(f"the volume {found.name} is to be removed")
        return 0
    try:
        _wait(session, found.name, place, seconds, _is_there, what="gone")
    except Permanent as error:
        if error.reason != volume_changes.NOT_FOUND:
            raise
    session.screen.message(f"the volume {found.name} is removed")
    return 0


# -- what they have in common --------------------------------------------------------------------------------------------


def _find(session: Session, options: argparse.Namespace) -> VolumePlace:
    return volume_changes.find(session.store, session.keys, parse_instance(options.name))


def _say(session: Session, options: argparse.Namespace, volume: Volume) -> None:
    emit(session.screen, options, lambda: volume_json(volume), lambda _: volume_block(volume))


def _warn_of_silence(session: Session, volume: Volume) -> None:
    if not volume.host.is_alive:
        session.screen.warning(f"{volume.host.name} has no heartbeat; what was asked for happens when it is back")


def _wait(
    session: Session, name: str, place: VolumePlace, seconds: float, check: Callable[[Volume], None], *, what: str
) -> None:  # fmt: skip
    """Return once *check*, of the volume as it is, does not raise ``_NotYet`` any more.

    Raises:
        Transient: the time is over; what was asked for goes on.
        Interrupted: likewise, and it was told so.
    """

    def look_and_tell() -> None:
        session.interruption.check()
        try:
            check(volume_changes.read(session.store, session.keys, place))
        except _NotYet as error:
            session.screen.progress(f"{name}: {error}")
            raise

    try:
        retry(look_and_tell, on=_NotYet, deadline=Deadline(seconds, session.clock), backoff=Backoff(0.05, 0.5))
    except Interrupted:
        session.screen.message(f"what was asked for of the volume {name} goes on; look: eschedule volume show {name}")
        raise
    except _NotYet as error:
        raise Transient(
            f"{name} is not {what} after {seconds_text(seconds)}: {error}; it goes on; look: eschedule volume show {name}"
        ) from None


def _is_made(session: Session, volume: Volume) -> None:
    status = volume.status
    if status is None or status.spec_revision < volume.item.mod_revision:
        raise _NotYet("its host has not seen it yet" if volume.host.is_alive else f"{volume.host.name} has no heartbeat")
    if status.phase in (VolumePhase.REFUSED, VolumePhase.MISSING):
        raise Permanent(f"{volume.name} on {volume.host.name}: {status.message}", status.phase)
    if not status.was_made:
        raise _NotYet(status.message or str(status.phase))
    session.screen.progress(f"{volume.name} is made on {volume.host.name}")


def _is_plugged_in(session: Session, instance: UUID, name: str, volume: Volume) -> None:
    found = changes.read(session.store, session.keys, instance, name)
    status = found.status
    if not any(one.uuid == volume.place.uuid for one in found.spec.volumes):
        raise Permanent(f"somebody asked meanwhile that {found.name} have {volume.name} no more", "Overtaken")
    if status is None or status.spec_revision < found.spec_item.mod_revision:
        raise _NotYet("its host has not seen it yet" if volume.host.is_alive else f"{volume.host.name} has no heartbeat")
    if status.phase is Phase.HELD:
        raise Permanent(f"{found.name} is held: {status.message}", status.reason)
    if volume.place.uuid not in status.volumes:
        raise _NotYet(status.message or f"{found.name} is {status.phase}")
    if status.phase in (Phase.RUNNING, Phase.PAUSED):
        session.screen.message(f"{found.name} has {volume.name} as {device_of(volume)}")
    else:
        session.screen.message(f"{found.name} is {status.phase}; it has {volume.name} when it is started")


def _is_free(session: Session, volume: Volume) -> None:
    owner = volume.readable.attached_to
    if owner is None:
        session.screen.message(f"{volume.name} is attached to no instance")
        return
    item = session.store.get(session.keys.status(volume.place.provider, owner))
    notes = changes.notes_in(item)
    raise _NotYet(notes or (volume.status.message if volume.status else "") or f"{volume.instance} still has it")


def _is_there(volume: Volume) -> None:
    status = volume.status
    raise _NotYet((status.message if status else "") or ("its host is at it" if volume.host.is_alive else "its host is dead"))
