"""A load of HTTP requests over open connections: `python load.py HOST PORT SECONDS CALLERS [RATE] < REQUESTS`.

REQUESTS is a JSON list of whole requests as text. Closed without RATE: each caller asks again when it has its answer.
With RATE, requests a second in all, open: each is due at its time, and what it takes is counted from then, however late
its caller comes to send it. Prints JSON: requests a second, and the median and the 99th percentile in milliseconds.

One loop over bare sockets: it needs less processor than what it loads, and does not sleep through the millisecond in
which something is due, as timers of event loops do.
"""

import heapq
import json
import random
import re
import select
import socket
import sys
import time
from dataclasses import dataclass, field

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
SPIN_S = 0.001  # so long before something is due it does not sleep: that wakes up a millisecond late


@dataclass
class Caller:
    """One connection, on which one request is under way at a time."""

    link: socket.socket
    chosen: random.Random
    due_s: float
    came: bytes = b""
    begun_s: float = 0.0
    took_s: list[float] = field(default_factory=list)

    def send(self, requests: list[bytes], begun_s: float) -> None:
        """Asks; what it takes is counted from `begun_s`."""
        self.begun_s = begun_s
        self.link.sendall(self.chosen.choice(requests))

    def take(self) -> bool:
        """Takes what came. Whether the answer is whole. Raises RuntimeError for any other status than 2xx."""
        data = self.link.recv(1 << 18)
        self.came = self.came + data if self.came else data
        end = self.came.find(b"\r\n\r\n")
        found = LENGTH.search(self.came, 0, end) if end >= 0 else None
        if not data or (end >= 0 and (found is None or self.came[9:10] != b"2")):
            raise RuntimeError(self.came)
        if found is None or len(self.came) < end + 4 + int(found[1]):
            return False
        self.took_s.append(time.perf_counter() - self.begun_s)
        self.came = b""
        return True


def run(callers: list[Caller], requests: list[bytes], end_s: float, pause_s: float) -> None:
    """Asks until the end. `pause_s` 0: closed."""
    by_file = {caller.link.fileno(): caller for caller in callers}
    poll = select.epoll()
    for file in by_file:
        poll.register(file, select.EPOLLIN)
    waiting = [(caller.due_s, file) for file, caller in by_file.items()]
    heapq.heapify(waiting)
    open_count = len(callers)
    while open_count:
        now_s = time.perf_counter()
        while waiting and waiting[0][0] <= now_s:
            due_s, file = heapq.heappop(waiting)
            if due_s >= end_s:
                open_count -= 1
            else:
                by_file[file].send(requests, due_s)
        # It sleeps whole milliseconds; while nothing is due but answers, until one comes or for a second.
        wait_s = 1.0 if open_count else 0.0
        if waiting:
            wait_s = max(int(1000 * (waiting[0][0] - now_s - SPIN_S)), 0) / 1000
        for file, _ in poll.poll(wait_s):
            caller = by_file[file]
            if caller.take():
                caller.due_s = caller.due_s + pause_s if pause_s else time.perf_counter()
                heapq.heappush(waiting, (caller.due_s, file))


def main(host: str, port: int, seconds: float, count: int, rate: float) -> None:
    """Prints what was seen. `rate` 0: closed."""
    requests = [text.encode() for text in json.load(sys.stdin)]
    pause_s = count / rate if rate else 0.0
    callers = []
    for seed in range(count):
        link = socket.create_connection((host, port))
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        chosen = random.Random(seed)
        callers.append(Caller(link, chosen, time.perf_counter() + chosen.random() * pause_s))
    run(callers, requests, time.perf_counter() + seconds, pause_s)
    took_s = sorted(each for caller in callers for each in caller.took_s)
    at = {"p50_ms": 0.5, "p99_ms": 0.99}
    shown = {name: 1000 * took_s[int(len(took_s) * part)] for name, part in at.items()}
    print(json.dumps({"rate": len(took_s) / seconds, **shown}))


if __name__ == "__main__":
    asked_rate = float(sys.argv[5]) if len(sys.argv) > 5 else 0.0  # noqa: PLR2004
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), asked_rate)
