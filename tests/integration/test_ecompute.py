"""The real programs together: create, list, stop, start, destroy; what is refused; what a crash leaves to the next start."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import urllib.request
from pathlib import Path
from uuid import UUID

import pytest
import yaml

from common.config import EtcdConfig
from common.etcd_store import EtcdStore
from common.metadata import MetadataStore
from tests.support.deployment import Deployment, make_raw_image
from tests.support.processes import VENV_BIN, wait_until

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:256"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_raw_image(tmp_path / "image.raw")


def test_an_instance_lives_from_create_to_destroy_and_leaves_nothing(local_deployment: Deployment, image: Path) -> None:
    deployment = local_deployment
    created = json.loads(deployment.eschedule(REQUEST, image, "--name", "web", "--json").stdout)

    shown = deployment.show("web")
    assert shown["uuid"] == created["uuid"]
    assert shown["status"]["phase"] == "Running"
    assert shown["status"]["addresses"][0]["mac"].startswith("52:54:")
    steps = [event["step"] for event in shown["status"]["events"]]
    assert steps == ["ReserveNetwork", "FetchImage", "BuildDisk", "WriteMetadata", "Define", "Start", "MarkBooted"]
    allocations = deployment.allocations()
    assert {uuid: held["resources"] for uuid, held in allocations.items()} == {
        created["uuid"]: {"VCPU": 1, "DISK_GB": 1, "MEMORY_MB": 256}
    }

    deployment.eschedule("stop", "web")
    assert deployment.phase("web") == "Stopped"
    deployment.eschedule("start", "web")
    assert deployment.phase("web") == "Running"

    deployment.eschedule("destroy", "web")
    deployment.assert_nothing_is_left()


def test_what_a_host_gives_its_guests_is_in_their_documents_and_on_their_drives(
    local_deployment: Deployment, image: Path, tmp_path: Path
) -> None:
    deployment, vendor_data = local_deployment, tmp_path / "vendor-data"

    def restart_with(text: str) -> None:
        vendor_data.write_text(text)
        deployment.stop_ecompute()
        config = yaml.safe_load(deployment.compute_file.read_text())
        config["metadata"]["vendor_data_file"] = str(vendor_data)
        deployment.compute_file.write_text(yaml.safe_dump(config))
        deployment.start_ecompute()
        deployment.wait_ready()

    restart_with("#cloud-config\n# one\n")
    deployment.eschedule(REQUEST, image, "--name", "web", "--config-drive", "nocloud")
    uuid = deployment.show("web")["uuid"]
    drive = tmp_path / "state/instances" / uuid / "config-drive.iso"

    def drives_vendor_data() -> str:
        return subprocess.run(
            ["bsdtar", "-xOf", drive, "vendor-data"], check=True, capture_output=True, text=True, timeout=10
        ).stdout

    assert drives_vendor_data() == "#cloud-config\n# one\n"
    restart_with("#cloud-config\n# two\n")  # the test driver's guests end with it
    deployment.eschedule("start", "web")
    document = MetadataStore(tmp_path / "state/metadata").read(UUID(uuid))
    assert document is not None and document.vendor_data == b"#cloud-config\n# two\n"
    assert drives_vendor_data() == "#cloud-config\n# two\n"
    deployment.eschedule("destroy", "web")
    deployment.assert_nothing_is_left()


def test_the_second_instance_of_an_image_fetches_nothing(local_deployment: Deployment, image: Path) -> None:
    local_deployment.eschedule(REQUEST, image, "--name", "one")
    local_deployment.eschedule(REQUEST, image, "--name", "two")
    steps = [event["step"] for event in local_deployment.show("two")["status"]["events"]]
    assert "FetchImage" not in steps
    addresses = {local_deployment.show(name)["status"]["addresses"][0]["address"] for name in ("one", "two")}
    assert len(addresses) == 2


def test_a_missing_image_ends_failed_with_the_reason_and_keeps_nothing(local_deployment: Deployment, tmp_path: Path) -> None:
    answer = local_deployment.eschedule(REQUEST, tmp_path / "no-such-image", "--name", "lost", check=False)
    assert answer.returncode == 1
    assert "no-such-image" in answer.stderr
    shown = local_deployment.show("lost")
    assert (shown["status"]["phase"], shown["status"]["reason"]) == ("Failed", "ImageNotFound")
    assert local_deployment.allocations() == {}
    assert local_deployment.files() == []
    local_deployment.eschedule("destroy", "lost")
    local_deployment.assert_nothing_is_left()


def test_what_does_not_fit_exits_3_and_leaves_nothing(local_deployment: Deployment, image: Path) -> None:
    answer = local_deployment.eschedule("resources=VCPU:1,DISK_GB:1,MEMORY_MB:60000000", image, check=False)
    assert answer.returncode == 3, answer.stderr
    assert "MEMORY_MB" in answer.stderr
    local_deployment.assert_nothing_is_left()


def test_two_creates_at_once_give_two_instances(local_deployment: Deployment, image: Path) -> None:
    processes = [
        local_deployment.spawn_eschedule(REQUEST, str(image), "--name", name, log=local_deployment.directory / f"{name}.log")
        for name in ("left", "right")
    ]
    for process in processes:
        wait_until(
            lambda p=process: p.poll() is not None,
            timeout_seconds=90,
            what="eschedule ended",
            evidence=local_deployment.evidence,
        )
        assert process.poll() == 0, local_deployment.evidence()
    assert {local_deployment.phase(name) for name in ("left", "right")} == {"Running"}
    assert len(local_deployment.allocations()) == 2


def test_a_second_ecompute_of_one_provider_is_refused(local_deployment: Deployment) -> None:
    second = subprocess.run(
        [VENV_BIN / "ecompute", "--config", local_deployment.compute_file],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert second.returncode == 5
    assert "already served" in second.stderr
    assert local_deployment.ecompute is not None
    assert local_deployment.ecompute.poll() is None


def test_a_copied_configuration_on_another_machine_builds_nothing(local_deployment: Deployment) -> None:
    """Another libvirt host uuid under the same provider is another machine, however alive the first one is."""
    local_deployment.stop_ecompute()
    owner_key = next(key for key in local_deployment.etcd_keys() if "/owners/" in key)
    other = json.loads(local_deployment.etcd_keys()[owner_key])
    other["libvirt_host_uuid"], other["name"] = "00000000-0000-4000-8000-000000000001", "the-first-one"
    store = EtcdStore(EtcdConfig(endpoints=(f"http://127.0.0.1:{local_deployment.etcd_port}",)))
    found = store.get(owner_key)
    assert found is not None
    store.replace(owner_key, json.dumps(other), seen=found.mod_revision)
    store.close()
    refused = subprocess.run(
        [VENV_BIN / "ecompute", "--config", local_deployment.compute_file],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert refused.returncode == 5
    assert "belongs to the-first-one" in refused.stderr
    assert "--take-provider" in refused.stderr


def test_ecompute_is_replaced_at_once_after_a_crash_and_tells_so(local_deployment: Deployment) -> None:
    before = json.loads(local_deployment.eschedule("hosts", "--json").stdout)
    local_deployment.kill_ecompute()
    local_deployment.start_ecompute()
    log = local_deployment.directory / "ecompute.log"
    wait_until(
        lambda: log.read_text().count("message=serving") >= 2,
        timeout_seconds=10,
        what="it serves again",
        evidence=local_deployment.evidence,
    )
    after = json.loads(local_deployment.eschedule("hosts", "--json").stdout)
    assert len(before) == len(after) == 1


def test_orderly_stop_gives_the_lease_back(local_deployment: Deployment) -> None:
    assert local_deployment.stop_ecompute() == 0
    assert not [key for key in local_deployment.etcd_keys() if "/hosts/" in key]


def test_placement_away_means_waiting_not_failing(local_deployment: Deployment, image: Path) -> None:
    """A deletion waits for Placement in Deleting, and ends when it is back."""
    local_deployment.eschedule(REQUEST, image, "--name", "web")
    local_deployment.kill_placement()
    local_deployment.eschedule("destroy", "web", "--no-wait")
    local_deployment.wait_phase("web", "Deleting")
    assert local_deployment.show("web")["status"]["message"]
    local_deployment.start_placement()
    wait_until(
        lambda: local_deployment.instance_keys() == [],
        timeout_seconds=90,
        what="the deletion ends",
        evidence=local_deployment.evidence,
    )
    local_deployment.assert_nothing_is_left()


def test_etcd_away_keeps_ecompute_and_its_instances(local_deployment: Deployment, image: Path) -> None:
    local_deployment.eschedule(REQUEST, image, "--name", "web")
    local_deployment.kill_etcd()
    assert local_deployment.eschedule("list", check=False).returncode == 4
    local_deployment.start_etcd()
    local_deployment.wait_ready()
    assert local_deployment.phase("web") == "Running"
    local_deployment.eschedule("destroy", "web")
    local_deployment.assert_nothing_is_left()


def test_leave_refuses_while_there_are_instances_and_then_leaves_nothing(local_deployment: Deployment, image: Path) -> None:
    local_deployment.eschedule(REQUEST, image, "--name", "web")
    leave = [VENV_BIN / "ecompute", "--config", local_deployment.compute_file, "--leave"]
    while_serving = subprocess.run(leave, capture_output=True, text=True, timeout=60, check=False)
    assert while_serving.returncode == 5
    local_deployment.stop_ecompute()
    with_instances = subprocess.run(leave, capture_output=True, text=True, timeout=60, check=False)
    assert with_instances.returncode == 5
    assert "web" in with_instances.stderr
    local_deployment.start_ecompute()
    local_deployment.wait_ready()
    local_deployment.eschedule("destroy", "web")
    local_deployment.stop_ecompute()
    subprocess.run(leave, check=True, timeout=60)
    assert local_deployment.etcd_keys() == {}
    assert local_deployment.placement("/resource_providers")["resource_providers"] == []


def test_ecompute_ends_by_a_second_signal_even_while_it_waits_for_etcd(local_deployment: Deployment) -> None:
    local_deployment.stop_ecompute()
    local_deployment.kill_etcd()
    process = local_deployment.start_ecompute()
    log = local_deployment.directory / "ecompute.log"
    wait_until(
        lambda: "etcd is away" in log.read_text(), timeout_seconds=20, what="it waits", evidence=local_deployment.evidence
    )
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: process.poll() is not None, timeout_seconds=20, what="it ends", evidence=local_deployment.evidence)


def test_a_stop_while_another_one_holds_the_provider_is_a_stop_and_no_conflict(local_deployment: Deployment) -> None:
    keys = local_deployment.etcd_keys()
    key = next(key for key in keys if "/hosts/" in key)
    local_deployment.stop_ecompute()
    store = EtcdStore(EtcdConfig(endpoints=(f"http://127.0.0.1:{local_deployment.etcd_port}",)))
    store.create(key, json.dumps({**json.loads(keys[key]), "boot_id": "of another boot"}))
    store.close()
    local_deployment.start_ecompute()
    log = local_deployment.directory / "ecompute.log"
    wait_until(
        lambda: "another ecompute holds this provider" in log.read_text(),
        timeout_seconds=20,
        what="it waits",
        evidence=local_deployment.evidence,
    )
    assert local_deployment.stop_ecompute() == 0, local_deployment.evidence()


def _etcd_operations(deployment: Deployment) -> int:
    """Reads and writes that etcd has served since its start."""
    with urllib.request.urlopen(f"http://127.0.0.1:{deployment.etcd_port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    counts = re.findall(r'grpc_server_started_total{grpc_method="(?:Range|Txn|Put|DeleteRange)",[^}]*} (\S+)', text)
    return int(sum(float(count) for count in counts))


def _placement_requests(deployment: Deployment) -> int:
    log = (deployment.directory / "placement.log").read_text(errors="replace")
    return sum("requestlog" in line and "allocation" in line for line in log.splitlines())


def test_a_request_costs_six_operations_of_etcd_and_three_of_placement(local_deployment: Deployment, image: Path) -> None:
    """Both programs together. A watch proves now and then that it lives, so the best of several counts."""
    deployment, costs = local_deployment, []
    log = deployment.directory / "ecompute.log"
    for number in range(4):
        before = _etcd_operations(deployment), _placement_requests(deployment)
        deployment.eschedule(REQUEST, image, "--no-wait")
        wait_until(
            lambda n=number: log.read_text().count("message=reconciled") > n,
            timeout_seconds=30,
            what="it is built",
            evidence=deployment.evidence,
        )
        costs.append((_etcd_operations(deployment) - before[0], _placement_requests(deployment) - before[1]))
    assert min(etcd for etcd, _ in costs) <= 6, costs
    assert min(placement for _, placement in costs) == 3, costs
