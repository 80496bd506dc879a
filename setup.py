"""Package metadata of etcd-compute; tool settings live in pyproject.toml.

libvirt-python and guestfs are bindings to system libraries: take them from the distribution (``packaging/debian-packages``)
rather than building them. guestfs is not on PyPI, so it cannot be named here; without it only what changes disks is missing.
"""

from pathlib import Path

from setuptools import setup

PLACEMENT = [
    "openstack-placement>=16.0,<17",
    "waitress>=3.0,<4",
]
# Placement on PostgreSQL or MariaDB, by several processes; the container has the same (packaging/placement/requirements.txt).
PLACEMENT_SERVER = [
    *PLACEMENT,
    "gunicorn>=25.1,<27",
    "psycopg2-binary>=2.9,<3",
    "PyMySQL>=1.1,<2",
]
# What benchmarks/run.py needs: the servers and hosts that tests start, and what draws plots.
BENCHMARKS = [
    *PLACEMENT,
    "pygal>=3.0,<4",
    "pytest>=8.0,<10",
]
TEST = [
    *BENCHMARKS,
    *PLACEMENT_SERVER,
    "gabbi>=4.0,<5",
    "hypothesis>=6.100,<7",
    "import-linter>=2.0,<3",
    "mypy>=1.11,<3",
    "pytest-timeout>=2.3,<3",
    "pytest-xdist>=3.5,<4",
    "ruff>=0.8,<1",
    "types-jsonschema",
    "types-PyYAML",
    "types-requests",
]

setup(
    name="etcd-compute",
    version="0.1.0",
    description="A lightweight VM manager: etcd says what should run, Placement who has room, libvirt what does run",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=["common", "common.renderings", "ecompute", "ecompute.doctor", "eschedule", "eschedule.command_line", "md_server"],
    install_requires=[
        # The maintained distribution of the module etcd3; etcd3 0.12.0 itself needs protobuf < 4. See docs/decisions.md.
        "cslab-etcd3==0.12.1",
        "grpcio>=1.60,<2",
        "jsonschema>=4.10,<5",
        "libvirt-python>=9.0,<13",
        "os-resource-classes>=1.1,<2",
        "os-traits>=3.0,<4",
        "prometheus_client>=0.16,<1",
        "pycdlib>=1.14,<2",
        "PyYAML>=6.0,<7",
        "requests>=2.28,<3",
        "rich>=12.6,<16",
        "urllib3>=1.26,<3",
        "waitress>=3.0,<4",
    ],
    extras_require={"placement": PLACEMENT, "placement-server": PLACEMENT_SERVER, "benchmarks": BENCHMARKS, "test": TEST},
    entry_points={
        "console_scripts": [
            "ecompute=ecompute.main:command",
            "eschedule=eschedule.main:command",
            "md-server=md_server.main:main",
        ]
    },
)
