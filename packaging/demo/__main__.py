"""``python -m demo up|status|down``, called by demo.sh, which holds the lock."""

from __future__ import annotations

import os
import sys

from demo.settings import DemoError, from_environment


def main(arguments: list[str]) -> int:
    """Run one command; the exit code."""
    # Everything is on this host; a proxy that the environment names would be asked for it.
    for variable in ("no_proxy", "NO_PROXY"):
        os.environ[variable] = ",".join(filter(None, [os.environ.get(variable), "127.0.0.1", "localhost", "169.254.169.254"]))
    try:
        settings = from_environment()
        if arguments == ["status"]:
            from demo.status import status  # noqa: PLC0415 - each command loads its own part

            return status(settings)
        if arguments == ["down"]:
            from demo.down import down  # noqa: PLC0415

            down(settings)
            return 0
        from demo.up import up  # noqa: PLC0415

        up(settings)
    except DemoError as error:
        print(f"demo.sh: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, a folder that is read-only: what and where is in it
        print(f"demo.sh: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo.sh: interrupted; ./demo.sh goes on from here, ./demo.sh down takes it away", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
