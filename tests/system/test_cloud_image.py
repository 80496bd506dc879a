"""A Debian cloud image, told who it is in each of the forms that its cloud-init reads.

They boot in one deployment, two at a time: while a test looks at one, the next is on its way up. Under emulation each takes
half a minute of a processor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from pathlib import Path

import pytest

from tests.support.deployment import Deployment, Process, deployment_inside
from tests.support.guests import Guest, make_key
from tests.support.hosts import NamespacedHost
from tests.support.processes import ROOT, wait_until

pytestmark = pytest.mark.timeout(1500)

REQUEST = "resources=VCPU:1,DISK_GB:2,MEMORY_MB:512"
BOOT_SECONDS = 600  # 30 to 50 on a machine that has nothing else to do
FINISHED = re.compile(r"Cloud-init v\. \S+ finished at")  # in the last line that it writes on the console

QUESTIONS = {
    "hostname": "hostname",
    "result": "cat /run/cloud-init/result.json",
    "addresses": "ip -4 -o address show dev eth0",
    "mac": "cat /sys/class/net/eth0/address",
    "mark": "cat /run/made-by-user-data",
    "kib": "df -k --output=size / | tail -n 1",
    "host keys": "for key in /etc/ssh/ssh_host_*_key.pub; do ssh-keygen -lf $key; done",
}
# What operations.md gives to users, and what our guests leave behind beside it.
SNIPPETS = ROOT / "docs" / "user-data"
CLOUD_CONFIG = (SNIPPETS / "ready.yaml").read_text() + "runcmd:\n- [sh, -c, 'hostname >/run/made-by-user-data']\n"
SCRIPT = (SNIPPETS / "ready.sh").read_text() + (
    'curl -fsS -H "X-aws-ec2-metadata-token: $token" $metadata/latest/meta-data/local-hostname >/run/made-by-user-data\n'
)


def multipart() -> str:
    """Both kinds at once: a cloud-config that reports nothing, and a script that does."""
    message = MIMEMultipart()
    message.attach(MIMEText("#cloud-config\nwrite_files:\n- {path: /run/multipart, content: both}\n", "cloud-config"))
    message.attach(MIMEText(SCRIPT, "x-shellscript"))
    return message.as_string()


@dataclass(frozen=True)
class Form:
    """How one of the guests is told who it is.

    Args:
        datasource: how cloud-init names what it has taken.
        reports: what its user data says in the end.
        options: of its request.
    """

    image: str
    datasource: str
    user_data: str = CLOUD_CONFIG
    reports: str = ""
    options: tuple[str, ...] = ()


FORMS = {
    "openstack": Form("debian.qcow2", "DataSourceOpenStackLocal [net,ver=2]"),
    "ec2": Form("debian-ec2.qcow2", "DataSourceEc2", SCRIPT, "set up"),
    "nocloud": Form("debian-nocloud.qcow2", "DataSourceNoCloudNet [seed=ds_config_seedfrom,http://169.254.169.254/nocloud/][dsmode=net]"),
    "drive": Form(
        "debian.qcow2", "DataSourceConfigDrive [net,ver=2]", multipart(), "set up", ("--config-drive=openstack", "--metadata=required")
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_key(tmp_path_factory.mktemp("key"))


@pytest.fixture(scope="module")
def deployment(deployment_host: NamespacedHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment_inside(deployment_host, tmp_path_factory.mktemp("cloud-image")) as deployment:
        yield deployment


class Arrivals:
    """The guests, in the order of ``FORMS``."""

    def __init__(self, host: NamespacedHost, deployment: Deployment, images: Path, key: Path) -> None:
        self._host, self._deployment, self._images, self._key = host, deployment, images, key
        self._coming: dict[str, Process] = {}

    def guest(self, name: str) -> Guest:
        """The guest *name*, once it has said that it is ready. The one after it is on its way up."""
        first = list(FORMS).index(name)
        for each in list(FORMS)[first : first + 2]:
            if each not in self._coming:
                self._coming[each] = self._create(each)
        creating = self._coming[name]
        self._wait(lambda: creating.poll() is not None or f"{name}: Running" in self._said(name), f"{name} runs")
        guest = Guest(self._host, self._deployment, name, self._key, user="debian", answers_within=BOOT_SECONDS)
        self._wait(lambda: creating.poll() is not None, f"eschedule no longer waits for {name}", guest.evidence)
        assert creating.poll() == 0, guest.evidence()
        return guest

    def _said(self, name: str) -> str:
        log = self._log(name)
        return log.read_text() if log.exists() else ""

    def _log(self, name: str) -> Path:
        return self._deployment.directory / f"eschedule-{name}.log"

    def _wait(self, condition: Callable[[], bool], what: str, evidence: Callable[[], str] | None = None) -> None:
        # eschedule itself gives up after BOOT_SECONDS
        wait_until(condition, timeout_seconds=BOOT_SECONDS + 30, what=what, evidence=evidence or self._deployment.evidence)

    def _create(self, name: str) -> Process:
        form = FORMS[name]
        user_data = self._deployment.directory / f"{name}.user-data"
        user_data.write_text(form.user_data)
        words = ["--name", name, "--key", f"{self._key}.pub", "--user-data", user_data, *form.options]
        wait = ["--wait", "ready", "--wait-seconds", str(BOOT_SECONDS)]
        return self._deployment.spawn_eschedule(
            "create", REQUEST, self._images / form.image, *words, *wait, log=self._log(name)
        )


@pytest.fixture(scope="module")
def arrivals(deployment_host: NamespacedHost, deployment: Deployment, cloud_images: Path, key: Path) -> Arrivals:
    return Arrivals(deployment_host, deployment, cloud_images, key)


@pytest.mark.parametrize("name", FORMS)
def test_a_debian_guest_gets_its_name_key_network_and_user_data_and_says_so(arrivals: Arrivals, name: str) -> None:
    guest, form = arrivals.guest(name), FORMS[name]
    wait_until(
        lambda: FINISHED.search(guest.console()),
        timeout_seconds=BOOT_SECONDS,
        what=f"cloud-init of {name} is done",
        evidence=guest.evidence,
    )
    found = guest.answers(QUESTIONS)
    result = json.loads(found["result"])["v1"]
    assert (result["datasource"].removesuffix("[source=/dev/vdb]"), result["errors"]) == (form.datasource, []), guest.evidence()
    assert found["hostname"] == name
    card = guest.shown["status"]["addresses"][0]
    assert f"{guest.address}/{card['prefix_length']}" in found["addresses"], "the address that was published before it started"
    assert found["mac"] == card["mac"]
    assert found["mark"] == name, "user data ran to its end"
    assert int(found["kib"]) > 1_900_000, "the root file system has grown to its two GiB"
    ready = guest.deployment.show(name)["status"]["ready"]
    assert (ready["message"], list(ready["host_keys"])) == (form.reports, [fingerprint(found["host keys"])])
    if name == "openstack":
        # The agent that such images come with holds its file systems still, and lets them go.
        taken = guest.deployment.eschedule("snapshot", "create", name, "set-up", "--json")
        assert json.loads(taken.stdout)["consistency"] == "frozen", guest.evidence()
        assert guest.say("sudo sh -c 'echo goes-on >/root/mark && sync && cat /root/mark'") == "goes-on"
    by_agent = guest.deployment.eschedule("exec", name, "--", "sh", "-c", "hostname; echo to-errors >&2; exit 7", check=False)
    assert (by_agent.returncode, by_agent.stdout, by_agent.stderr) == (7, f"{name}\n", "to-errors\n")
    late = guest.deployment.eschedule("exec", name, "--timeout-seconds", "1", "--", "sleep", "100", check=False)
    assert late.returncode == 124 and "the command goes on" in late.stderr
    none = guest.deployment.eschedule("exec", name, "--", "no-such-program", check=False)
    assert none.returncode == 125 and "no-such-program" in none.stderr
    guest.deployment.eschedule("destroy", name)


def fingerprint(line: str) -> str:
    """As it is reported, of a line of ``ssh-keygen -l``: bits, digest, comment, type."""
    _, digest, *_, kind = line.split()
    return f"{digest} {kind}"
