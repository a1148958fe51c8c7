"""python -m server.health: ask the server on this machine whether it is ready, for the HEALTHCHECK of the images.

Knows the server's address from its settings, and that /health/ready answers 200 when all is well. Uses nothing but the
standard library beside the settings: it runs every half minute, next to a server that wants the processor.
"""

import http.client
import sys

from pydantic import ValidationError

from server.settings import Settings

TIMEOUT_S = 5.0  # /health/ready waits for nothing, so a server that needs longer is stuck
SHOWN_BYTES = 1000


def main() -> int:
    """Print what the server says of itself; return 0 if it is ready, 1 if it is not or does not answer."""
    try:
        settings = Settings()
    except ValidationError as error:
        sys.stderr.write(f"the settings are wrong, so no server can run with them: {error}\n")
        return 1
    host = reachable(settings.host)
    try:
        status, body = ask(host, settings.port)
    except (OSError, http.client.HTTPException) as error:
        sys.stderr.write(f"no answer from {host} port {settings.port}: {error!r}\n")
        return 1
    sys.stdout.write(f"{status} {body}\n")
    return 0 if status == http.HTTPStatus.OK else 1


def ask(host: str, port: int, timeout: float = TIMEOUT_S) -> tuple[int, str]:
    """Return status and text of /health/ready; raises OSError, HTTPException. No proxy is asked.

    `timeout` is in seconds, for each step of the exchange.
    """
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", "/health/ready")
        response = connection.getresponse()
        return response.status, response.read(SHOWN_BYTES).decode(errors="replace")
    finally:
        connection.close()


def reachable(host: str) -> str:
    """Return the address to ask a server on this machine at that listens on `host`."""
    host = host.strip("[]")
    return "127.0.0.1" if host in ("", "::", "0.0.0.0") else host  # noqa: S104 - compared, not listened on


if __name__ == "__main__":
    sys.exit(main())
