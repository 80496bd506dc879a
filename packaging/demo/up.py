"""``demo.sh``: start what does not run, then a guest, and show what happened. Safe to repeat, also after a killed run."""

from __future__ import annotations

import subprocess
from pathlib import Path

from demo import guest, host, say, services
from demo.down import remove_leftovers
from demo.processes import Processes
from demo.programs import tail
from demo.settings import CACHE, MARK_FILE, REQUEST, ROOT, DemoError, Settings, remember

IMAGE_SECONDS = 300


def up(settings: Settings) -> None:
    """Leave everything running.

    Raises:
        DemoError: something is in the way.
    """
    processes = Processes(settings)
    services.refuse_taken_ports(settings, processes)
    if settings.services_urls:
        services.refuse_silent_services(settings)
    prepare_folders(settings)
    remember(settings)
    say.title("Services")
    image = _start_image_build()
    try:
        _start_services(settings, processes)
        with say.stage("guest image") as notes:
            built = _await_image(image)
            guest.keep_image(settings, built)
            notes.append(f"{settings.image}, {settings.image.stat().st_size / 1e6:.0f} MB")
    finally:
        image.kill()
        image.wait()
    _start_ecompute(settings, processes)
    say.title(f"A guest: eschedule '{REQUEST}'")
    made = guest.create(settings, processes.log("ecompute"))
    _show(settings, made)


def prepare_folders(settings: Settings) -> None:
    """
    Raises:
        DemoError: the state directory is somebody else's, or cannot be made.
    """
    remove_leftovers(settings)
    try:
        for folder in (settings.state_dir, settings.run_dir):
            folder.mkdir(mode=0o755, exist_ok=True)
    except OSError as error:
        raise DemoError(f"cannot make {error.filename}: {error.strerror}") from error
    if not settings.owns_state_dir:
        raise DemoError(f"{settings.state_dir} holds files that are not the demo's: choose another folder as DEMO_STATE_DIR")
    (settings.state_dir / MARK_FILE).touch()
    for folder in (settings.state_dir, settings.run_dir):
        folder.chmod(0o755)  # QEMU runs as a user of its own and must get to the disks


def _start_services(settings: Settings, processes: Processes) -> None:
    listed = services.services(settings)
    both = [service for name, service in listed.items() if name != "ecompute"]
    done = {services.start(service, processes) for service in both}
    with say.stage("libvirt") as notes:  # while those start
        notes.append(host.start_libvirt(settings, processes))
    with say.stage('libvirt\'s network "default"') as notes:
        notes.append(host.start_network(settings))
    with say.stage("etcd and Placement") as notes:
        for service in both:
            services.await_answer(service, processes)
        notes.append(f"{' and '.join(sorted(done)) or 'there already'}, at {settings.etcd_url} and {settings.placement_url}")
    guest.make_ssh_key(settings)
    services.write_configuration(settings)


def _start_ecompute(settings: Settings, processes: Processes) -> None:
    if not host.has_metadata_address():
        remember(settings, brought_metadata_address=True)
    with say.stage("ecompute and md_server") as notes:
        ecompute = services.services(settings)["ecompute"]
        notes.append(services.start(ecompute, processes))
        services.await_answer(ecompute, processes)


def _start_image_build() -> subprocess.Popen[str]:
    log = CACHE / "logs" / "tiny-image-build.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as errors:
        command = [ROOT / "packaging" / "build-tiny-image.sh"]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True)


def _await_image(build: subprocess.Popen[str]) -> Path:
    try:
        output, _ = build.communicate(timeout=IMAGE_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"no guest image after {IMAGE_SECONDS} s; try packaging/build-tiny-image.sh by itself") from error
    if build.returncode:
        raise DemoError(f"no guest image: {tail(CACHE / 'logs' / 'tiny-image-build.log')}")
    return Path(output.strip())


def _show(settings: Settings, made: guest.Guest) -> None:
    say.title("What the guest says, by ssh, with the key that it got from md_server")
    say.table([(what, answer) for what, answer in made.answers.items()])
    say.title("What took how long, in ms")
    say.table(guest.timeline(made), numbers=frozenset({1}))
    say.title("Everything runs on. To try next")
    for text, comment in next_steps(settings, made.name, made.address):
        say.command(text, comment)


def next_steps(settings: Settings, name: str, address: str) -> list[tuple[str, str]]:
    """Commands that work as printed, from any folder; the first is a shorthand for the others."""
    return [
        (f"E='{' '.join(guest.eschedule(settings))}'", "short for the next lines"),
        ("$E list", ""),
        (f"$E show {name}", "phase, address, what was done when"),
        ("$E hosts", "what each host has, and how much of it is used"),
        (f"$E '{REQUEST}' --wait ready", "another guest; this one says itself when it is up"),
        (f"$E stop {name}; $E start {name}", "power button, then boot again"),
        (" ".join(guest.ssh_command(settings, address)), "into the guest"),
        (f"$E destroy {name}", ""),
        (f"{ROOT}/demo.sh status", ""),
        (f"{ROOT}/demo.sh down", "take it all away"),
    ]
