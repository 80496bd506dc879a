"""Stands in for ecompute in the tests of the metadata service's supervisor: ``python metadata_host.py CONFIG``.

SIGTERM is an orderly stop, SIGUSR1 the order to stop serving and take the address away. Its process id is in RUN_DIR/host.pid.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from common import logs
from common.config import load_compute
from ecompute.metadata_service import MetadataServiceSupervisor


def main() -> None:
    config = load_compute(Path(sys.argv[1]))
    logs.setup("debug", "text")
    supervisor = MetadataServiceSupervisor(config)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    leave = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: leave.set())
    (config.paths.run_dir / "host.pid").write_text(str(os.getpid()))
    thread = threading.Thread(target=supervisor.run, args=(stop,))
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
        if leave.is_set():
            supervisor.stop_service(remove_address=True)
    logs.shutdown()


if __name__ == "__main__":
    main()
