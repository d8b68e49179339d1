"""A load of HTTP requests over open connections: `python load.py HOST PORT SECONDS CALLERS [RATE] < REQUESTS`.

REQUESTS is a JSON list of whole requests as text. Closed without RATE: each caller asks again when it has its answer.
With RATE, requests a second in all, open: each is due at its time, and what it takes is counted from then, however late
its caller comes to send it. Prints JSON: requests a second, and the median and the 99th percentile in milliseconds.
Bare sockets, so that the load needs less processor than what it loads.
"""

import asyncio
import json
import random
import sys
import time

import uvloop


async def work(host: str, port: int, end_s: float, requests: list[bytes], seed: int, pause_s: float) -> list[float]:
    """The seconds that each answer took. Raises RuntimeError for any other status than 2xx."""
    reader, writer = await asyncio.open_connection(host, port)
    chosen, took_s = random.Random(seed), []
    due_s = time.perf_counter() + chosen.random() * pause_s
    while (begun_s := due_s if pause_s else time.perf_counter()) < end_s:
        if pause_s:
            await asyncio.sleep(max(due_s - time.perf_counter(), 0.0))
            due_s += pause_s
        writer.write(chosen.choice(requests))
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        body = await reader.readexactly(length)
        if head[9:10] != b"2":
            raise RuntimeError(head + body)
        took_s.append(time.perf_counter() - begun_s)
    writer.close()
    return took_s


async def main(host: str, port: int, seconds: float, callers: int, rate: float) -> None:
    """Prints what was seen. `rate` 0: closed."""
    requests = [text.encode() for text in json.load(sys.stdin)]
    end_s = time.perf_counter() + seconds
    pause_s = callers / rate if rate else 0.0
    works = (work(host, port, end_s, requests, seed, pause_s) for seed in range(callers))
    took_s = sorted(each for took in await asyncio.gather(*works) for each in took)
    at = {"p50_ms": 0.5, "p99_ms": 0.99}
    shown = {name: 1000 * took_s[int(len(took_s) * part)] for name, part in at.items()}
    print(json.dumps({"rate": len(took_s) / seconds, **shown}))


if __name__ == "__main__":
    asked_rate = float(sys.argv[5]) if len(sys.argv) > 5 else 0.0  # noqa: PLR2004
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), asked_rate))
