"""Opens TLS connections with a client certificate, one request on each; runs as a separate program.

    python -m bench.connects ADDRESS CERTIFICATE KEY COUNT

prints the seconds that all of them took.
"""

from __future__ import annotations

import ssl
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.support.tls import connect

from bench.places import AT_A_TIME
from bench.wire import timed

_REQUEST = b"GET /1.0 HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"


def main(arguments: list[str]) -> int:
    address, certificate, key, count = arguments
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(certificate, key)

    def one(_number: int) -> None:
        with connect(address, context) as connection:
            connection.sendall(_REQUEST)
            reply = b""
            while data := connection.recv(65536):
                reply += data
        if b'"auth":"trusted"' not in reply:
            raise ConnectionError(f"the server does not trust the certificate: {reply[:100]!r}")

    with ThreadPoolExecutor(AT_A_TIME) as threads:
        print(timed(lambda: list(threads.map(one, range(int(count))))))  # noqa: T201 - what it is for
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
