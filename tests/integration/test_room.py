"""How much room there is for a request, and what speaks against each host: the real program, etcd and Placement."""

from __future__ import annotations

import json

from tests.support.eschedule import QUERY, Site


def hosts_of(site: Site) -> None:
    site.host("large", vcpus=4, memory_mib=1100, disk_gib=50, traits=("HW_CPU_X86_AVX2",))
    site.host("small", vcpus=4, memory_mib=300, disk_gib=50)
    site.host("tiny", vcpus=1, memory_mib=200, disk_gib=50)
    site.host("gone", vcpus=4, memory_mib=4096, disk_gib=50).die()


def test_capacity_counts_what_fits_where_and_names_what_the_next_one_lacks(site: Site) -> None:
    hosts_of(site)
    answer = site.run("capacity", QUERY, "-o", "json")
    assert answer.returncode == 0, answer.stderr
    found = {row["name"]: row for row in json.loads(answer.stdout)}
    assert {name: row["count"] for name, row in found.items()} == {"large": 4, "small": 1}
    assert found["large"]["lacks"] == [
        {"resource_class": "MEMORY_MB", "free": 76, "amount": 256}, {"resource_class": "VCPU", "free": 0, "amount": 1},
    ]  # fmt: skip
    assert "5 more of DISK_GB:1,MEMORY_MB:256,VCPU:1 fit, on 2 hosts" in answer.stderr
    text = site.run("capacity", QUERY).stdout.splitlines()
    assert text[0].split("  ")[0] == "HOST" and text[1].startswith("large") and "MEMORY_MB (44 free, 256 needed)" in text[2]
    assert site.claimed() == set()

    # What is said is what can be had.
    assert site.run(QUERY, "http://images/x", "--name", "web", "--count", "6", "--no-wait").returncode == 3
    assert site.run(QUERY, "http://images/x", "--name", "web", "--count", "5", "--no-wait").returncode == 0
    none = site.run("capacity", QUERY)
    assert none.returncode == 3 and "short of" in none.stderr
    assert json.loads(site.run("capacity", QUERY, "--json").stdout) == []


def test_explain_says_of_each_host_what_would_become_of_it(site: Site) -> None:
    hosts_of(site)
    answer = site.run("explain", QUERY, "-o", "json")
    assert answer.returncode == 0, answer.stderr
    found = {row["name"]: (row["rank"], row["reason"]) for row in json.loads(answer.stdout)}
    assert found == {
        "large": (1, "fits, 4 of them"), "small": (2, "fits, 1 of them"),
        "tiny": (None, "short of MEMORY_MB (200 MEMORY_MB free, 256 needed on tiny)"), "gone": (None, "without a heartbeat"),
    }  # fmt: skip
    picky = site.run("explain", f"{QUERY}&required=HW_CPU_X86_AVX2")
    assert picky.returncode == 0
    lines = [line.split(None, 1) for line in picky.stdout.splitlines()[1:]]
    assert lines[0] == ["1", "large  fits, 4 of them"]
    assert ["small", "lacks HW_CPU_X86_AVX2"] in lines
    assert site.claimed() == set()
    nobody = site.run("explain", "resources=VCPU:64,MEMORY_MB:256,DISK_GB:1")
    assert nobody.returncode == 3 and nobody.stdout.count("short of") == 3


def test_what_is_no_request_is_refused_at_once(site: Site) -> None:
    for verb in ("capacity", "explain"):
        answer = site.run(verb, "resources=VCPU:none")
        assert answer.returncode == 2 and answer.stderr.count("\n") == 1
        assert site.run(verb).returncode == 2
    assert "there is no host at all" in site.run("capacity", QUERY).stderr
    nobody = site.run("explain", QUERY)
    assert nobody.returncode == 3 and "there is no host at all" in nobody.stderr
