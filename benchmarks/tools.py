"""Programs that only benchmarks need, as peers: where they are, and how they are started.

``packaging/setup-host.sh --tools`` unpacks them below ``.cache/tools``, because installing them would change the host (the
package of nginx starts a service). Where the host has one installed, that one is taken. Neither is ever needed: a scenario
whose peer is not there leaves out the figures beside it, and says so.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

TOOLS = Path(__file__).resolve().parent.parent / ".cache" / "tools"
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/bin"])


def nginx(tools: Path = TOOLS) -> Path | None:
    """The program nginx; None where there is none.

    As unpacked its own paths do not exist: start it with ``-e stderr -p DIRECTORY -c FILE``, and name pid, log and all
    ``*_temp_path`` in that file.
    """
    return _program("usr/sbin/nginx", tools)


def virt_install(tools: Path = TOOLS) -> list[str] | None:
    """The command that arguments of virt-install are appended to; None where there is none.

    It carries its environment with it, so that it can be started inside another namespace, and takes 0.4 s of a processor
    before it does anything.
    """
    program = _program("usr/bin/virt-install", tools)
    if program is None or not program.is_relative_to(tools):
        return None if program is None else [str(program)]
    libraries = sorted((tools / "usr/lib").glob("*-linux-gnu*"))
    environment = {
        "PYTHONPATH": [tools / "usr/share/virt-manager", tools / "usr/lib/python3/dist-packages"],
        "LD_LIBRARY_PATH": libraries,
        "GI_TYPELIB_PATH": [directory / "girepository-1.0" for directory in libraries],
        "XDG_CACHE_HOME": [tools / "cache"],  # for its log, which would be in the home directory
    }
    if (tools / "usr/share/osinfo").exists():
        environment["OSINFO_SYSTEM_DIR"] = [tools / "usr/share/osinfo"]
    settings = [f"{name}={':'.join(map(str, paths))}" for name, paths in environment.items()]
    return ["env", *settings, "/usr/bin/python3", str(program)]


def _program(path: str, tools: Path) -> Path | None:
    unpacked = tools / path
    if unpacked.is_file():
        return unpacked
    installed = shutil.which(Path(path).name, path=_PATH)
    return None if installed is None else Path(installed)
