"""``image create``: have an instance's host make an image of its disk, follow that, and give what comes of it a name.

The same letter is sent again and again (``common/image_jobs.py``), so that a host that was restarted begins anew, and one that
hears nothing more gives it up. The image is registered here, last, and the host told so.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Callable
from uuid import UUID, uuid5

from common.errors import Conflict, EcomputeError, Permanent, Transient
from common.findings import Letter
from common.hardware import USUAL
from common.image_jobs import DONE, KIND, ImageJob, Stage
from common.image_records import ImageRecord
from common.model import Desired, InstanceSpec
from common.retry import Deadline
from common.text import escaped
from common.validate import parse_image_name, parse_instance
from eschedule import image_registry
from eschedule.changes import Instance, find, read
from eschedule.follow import host_name
from eschedule.image_options import requirements
from eschedule.interruption import Interrupted
from eschedule.post import answers
from eschedule.screen import Far
from eschedule.session import Session

ANSWER_SECONDS = 15.0  # that a host may take to answer one letter
SILENT_SECONDS = 90.0  # longer than a restart of ecompute takes
ASK_EVERY_SECONDS = 1.0
_GIB = 1 << 30


def create_from(session: Session, options: argparse.Namespace, *, created_at: str, created_by: str) -> ImageRecord:
    """Make the image that *options* ask for; it is registered when this returns.

    Raises:
        ConfigError: an option makes no sense.
        Conflict: the name is taken.
        Permanent: the instance is not there, or no image of it can be made; the text says why.
        Transient: its host does not answer.
        Interrupted: it was told what becomes of it.
    """
    name, who, needs = parse_image_name(options.name), parse_instance(options.source), requirements(options)
    _check_free(session, name)
    found = read(session.store, session.keys, find(session.store, session.keys, who), who)
    spec = _checked(found)
    # The same to a repeat of this command: it goes on with what the host has begun, or made, and registers that.
    job_id = uuid5(found.uuid, f"{session.keys.image(name)} {options.seals}")
    try:
        job = _followed(session, found, job_id, seals=options.seals)
        record = ImageRecord(name, job.url, job.checksum, created_at=created_at, created_by=created_by, **needs)
        record = _completed(record, job, spec)
        with session.interruption.shield():
            image_registry.add(session.store, session.keys, record)
    except Interrupted:
        session.screen.message(
            f"interrupted; the host of {found.name} gives it up within two minutes, unless you say the same again; "
            "see: eschedule image list"
        )
        raise
    if job.note:
        session.screen.warning(escaped(job.note))
    with contextlib.suppress(EcomputeError):  # it finds out by itself
        _ask(session, found.provider, Letter(DONE, _arguments(job_id, found.uuid, seals=options.seals)))
    return record


def _check_free(session: Session, name: str) -> None:
    """Before anything is copied: a name never becomes another image."""
    if session.store.get(session.keys.image(name)) is not None:
        raise Conflict(
            f"there is an image {name} already; see: eschedule image show {name}; take another name, or remove it first: "
            f"eschedule image rm {name}"
        )


def _checked(found: Instance) -> InstanceSpec:
    spec = found.spec
    if spec.desired is Desired.DELETED:
        raise Conflict(f"the instance {found.name} is being destroyed; see: eschedule show {found.name}")
    if found.status is None or not found.status.booted:
        raise Permanent(
            f"{found.name} has not run yet, so that its disk is that of its image; see: eschedule show {found.name}", "NotRun"
        )
    if found.host is None:
        raise Transient(f"the host of {found.name} has no heartbeat; try again when it is back; see: eschedule hosts")
    return spec


def _followed(session: Session, found: Instance, job_id: UUID, *, seals: bool) -> ImageJob:
    """The image once it is published."""
    letter = Letter(KIND, _arguments(job_id, found.uuid, seals=seals))
    heard_at, host = session.clock(), host_name(found.host) or str(found.provider)
    while True:
        session.interruption.check()
        job = _ask(session, found.provider, letter)
        if job is None:
            if session.clock() - heard_at > SILENT_SECONDS or not _is_alive(session, found):
                raise Transient(
                    f"{host} did not answer for {session.clock() - heard_at:.0f} s, or is of a version that makes no images; "
                    "see: eschedule hosts; then say it again"
                )
            continue
        heard_at = session.clock()
        if job.stage is Stage.PUBLISHED:
            return job
        if job.stage is Stage.FAILED:
            kind: Callable[[str], EcomputeError] = Transient if job.reason == "Transient" else Permanent
            raise kind(f"no image of {found.name} is made on {host}: {escaped(job.problem)}")
        session.screen.progress(progress_text(found.name, host, job), Far(job.stage, job.done, job.total))
        time.sleep(ASK_EVERY_SECONDS)  # nothing tells of it in between; a signal ends it


def _is_alive(session: Session, found: Instance) -> bool:
    return session.store.get(session.keys.host(found.provider)) is not None


def _ask(session: Session, host: UUID, letter: Letter) -> ImageJob | None:
    deadline = Deadline(ANSWER_SECONDS, session.clock)
    return answers(session.store, session.keys, [host], letter, deadline, read=ImageJob.from_json).get(host)


def _arguments(job_id: UUID, instance: UUID, *, seals: bool) -> dict[str, tuple[str, ...]]:
    return {"jobs": (str(job_id),), "instances": (str(instance),), "seal": ("yes" if seals else "no",)}


# -- pure ----------------------------------------------------------------------------------------------------------------


def progress_text(name: str, host: str, job: ImageJob) -> str:
    """What is shown while it goes on."""
    far = f" {job.done >> 20} of {job.total >> 20} MiB" if job.total else f" {job.done >> 20} MiB" if job.done else ""
    return f"image of {name} on {host}: {job.stage}{far}"


def _completed(record: ImageRecord, job: ImageJob, spec: InstanceSpec) -> ImageRecord:
    """*record* with what follows from the instance: its disk's size at least, and the hardware that its system can drive."""
    properties = dict(record.properties)
    if spec.hardware != USUAL:
        properties = {
            "hw_disk_bus": spec.hardware.disk_bus.value, "hw_vif_model": spec.hardware.card_model.value, **properties,
        }  # fmt: skip
    least = -(-job.virtual_size_bytes // _GIB)
    return dataclasses.replace(record, min_disk_gib=max(record.min_disk_gib, least), properties=properties)
