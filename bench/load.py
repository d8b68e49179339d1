"""A closed load of HTTP requests over open connections: `python load.py HOST PORT SECONDS CALLERS < REQUESTS`.

REQUESTS is a JSON list of whole requests as text. Prints JSON: requests a second, and the median and the 99th
percentile in milliseconds. Bare sockets, so that the load needs less processor than what it loads.
"""

import asyncio
import json
import random
import sys
import time

import uvloop


async def work(host: str, port: int, end_s: float, requests: list[bytes], seed: int) -> list[float]:
    """The seconds that each answer took. Raises RuntimeError for any other status than 2xx."""
    reader, writer = await asyncio.open_connection(host, port)
    chosen, took_s = random.Random(seed), []
    while (begun_s := time.perf_counter()) < end_s:
        writer.write(chosen.choice(requests))
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        body = await reader.readexactly(length)
        if head[9:10] != b"2":
            raise RuntimeError(head + body)
        took_s.append(time.perf_counter() - begun_s)
    writer.close()
    return took_s


async def main(host: str, port: int, seconds: float, callers: int) -> None:
    """Prints what was seen."""
    requests = [text.encode() for text in json.load(sys.stdin)]
    end_s = time.perf_counter() + seconds
    works = (work(host, port, end_s, requests, seed) for seed in range(callers))
    took_s = sorted(each for took in await asyncio.gather(*works) for each in took)
    at = {"p50_ms": 0.5, "p99_ms": 0.99}
    shown = {name: 1000 * took_s[int(len(took_s) * part)] for name, part in at.items()}
    print(json.dumps({"rate": len(took_s) / seconds, **shown}))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])))
