"""The app of an agent's pod that asks without a pause: writes and reads one item, and tries again as a client would.

It runs in the app's container: `asker.py SECONDS`, for how long one request is tried again. What is told to try again
(503, no connection, a connection that broke) is tried again, and so is a shard's delay (504): a PUT by name is the
same twice. Each second a line of JSON: how many requests were answered, how many had to be tried again, how many failed
for good and with which status, and the slowest.
"""

import http.client
import json
import os
import sys
import time
from urllib.parse import urlsplit

EVERY_S = 0.05
PAUSE_S = 0.1
TIMEOUT_S = 5.0
AGAIN = {503, 504}
PLACE = "/v1/items?namespace=asker&key=one"


def ask(method: str, number: int) -> int:
    """The status of one answer."""
    url = urlsplit(os.environ["ENGRAM_URL"])
    connection = http.client.HTTPConnection(str(url.hostname), url.port, timeout=TIMEOUT_S)
    try:
        # Of one length: what the tenant uses is to stay as it is.
        body = json.dumps({"content": f"{number:010}"}) if method == "PUT" else None
        connection.request(method, PLACE, body, {"Content-Type": "application/json"} if body else {})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def insist(method: str, number: int, patience_s: float) -> tuple[int, int]:
    """The last status of one request, and how often it was tried again."""
    end_s, tries = time.monotonic() + patience_s, 0
    while True:
        try:
            status = ask(method, number)
        except (OSError, http.client.HTTPException):
            status = 503
        if status not in AGAIN or time.monotonic() > end_s:
            return status, tries
        tries += 1
        time.sleep(PAUSE_S)


def main() -> None:
    """Asks for ever."""
    said = {"answered": 0, "repeated": 0, "failed": 0, "slowest_ms": 0}
    refusals: list[int] = []
    told_s = 0.0
    number = 0
    while True:
        number += 1
        for method in ("PUT", "GET"):
            began_s = time.monotonic()
            status, tries = insist(method, number, float(sys.argv[1]))
            said["answered" if status in {200, 201} else "failed"] += 1
            refusals += [] if status in {200, 201} else [status]
            said["repeated"] += tries > 0
            said["slowest_ms"] = max(said["slowest_ms"], round((time.monotonic() - began_s) * 1000))
        if time.monotonic() - told_s > 1:
            told_s = time.monotonic()
            print(json.dumps({**said, "refusals": refusals[-10:]}), flush=True)
        time.sleep(EVERY_S)


if __name__ == "__main__":
    main()
