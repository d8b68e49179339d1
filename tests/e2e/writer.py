"""A writer beside a shard: inserts numbered rows as fast as they are acknowledged, through every failure, for a time.

It runs in a pod of the Postgres image: `writer.py HOSTS PASSWORD SECONDS`, the hosts separated by commas, each written
to by a thread of its own; those that are replicas refuse. Each acknowledged number is a line with its time (Unix
seconds) and the place of its host in the list. At the end, also by SIGTERM, a line of JSON says how many there were and
the longest time without one. The test holds them against the table.
"""

import itertools
import json
import os
import signal
import sys
import threading
import time

import psycopg2

PAUSE_S = 0.01
# A peer that vanishes without a word is given up after about three seconds (libpq's manual, 32.1.2).
GIVE_UP = {"connect_timeout": 2, "tcp_user_timeout": 2000, "keepalives_idle": 1, "keepalives_interval": 1}
READ_ONLY = "25006"
TABLE = "CREATE TABLE IF NOT EXISTS t (n int PRIMARY KEY)"


class Count:
    """What all threads acknowledged."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.is_over = threading.Event()
        self.numbers = itertools.count(1)
        self.acknowledged = 0
        self.longest_gap_s = 0.0
        self.last_s = time.time()

    def acknowledge(self, number: int, place: int) -> None:
        """One more row is there."""
        with self.lock:
            now_s = time.time()
            self.acknowledged += 1
            self.longest_gap_s, self.last_s = max(self.longest_gap_s, now_s - self.last_s), now_s
            print(f"{number} {now_s:.3f} {place}", flush=True)

    def refuse(self, number: int, place: int, reason: str) -> None:
        """Whether the row is there is not known. Under the lock, as two threads' lines must not mix."""
        with self.lock:
            print(f"not acknowledged {number} {time.time():.3f} {place}: {reason[:100]}", flush=True)


def write(count: Count, host: str, place: int, password: str) -> None:
    """Runs until the end. A write of unknown outcome is not counted; the next one has the next number."""
    connection = None
    while not count.is_over.is_set():
        number = next(count.numbers)
        try:
            if connection is None:
                connection = psycopg2.connect(
                    host=host, user="postgres", password=password, dbname="postgres", keepalives_count=2, **GIVE_UP
                )
                connection.autocommit = True
                connection.cursor().execute(TABLE)
            connection.cursor().execute("INSERT INTO t VALUES (%s)", (number,))
        except psycopg2.Error as error:
            if error.pgcode == READ_ONLY:  # a replica, for now
                time.sleep(10 * PAUSE_S)
                continue
            count.refuse(number, place, str(error).strip().replace("\n", " "))
            connection = None
            time.sleep(10 * PAUSE_S)
            continue
        count.acknowledge(number, place)
        time.sleep(PAUSE_S)


def main(hosts: list[str], password: str, seconds: float) -> None:
    """Runs for so many seconds, or until SIGTERM. Whoever hangs on a frozen server then is not waited for."""
    count = Count()
    signal.signal(signal.SIGTERM, lambda _number, _frame: count.is_over.set())
    for place, host in enumerate(hosts):
        threading.Thread(target=write, args=(count, host, place, password), daemon=True).start()
    end_s = time.monotonic() + seconds
    while not count.is_over.wait(0.2) and time.monotonic() < end_s:
        pass
    count.is_over.set()
    time.sleep(1.0)  # what is under way
    with count.lock:
        said = {"acknowledged": count.acknowledged, "longest_gap_s": round(count.longest_gap_s, 2)}
        print(json.dumps(said), flush=True)
        os._exit(0)  # nobody's line comes after this one


if __name__ == "__main__":
    main(sys.argv[1].split(","), sys.argv[2], float(sys.argv[3]))
