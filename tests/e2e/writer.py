"""A writer beside a shard: inserts numbered rows as fast as they are acknowledged, through every failure, for a time.

It runs in a pod of the Postgres image: `writer.py HOST PASSWORD SECONDS`. Each acknowledged number is one line; at the
end a line of JSON says how many there were and the longest time without one. The test holds them against the table.
"""

import json
import sys
import time

import psycopg2

PAUSE_S = 0.01
# A peer that vanishes without a word is given up after about three seconds (libpq's manual, 32.1.2).
GIVE_UP = {"connect_timeout": 2, "tcp_user_timeout": 2000, "keepalives_idle": 1, "keepalives_interval": 1}


def write(host: str, password: str, seconds: float) -> None:
    """Runs for so many seconds. A write of unknown outcome is not counted; the next one has the next number."""
    begun_s = last_s = time.monotonic()
    acknowledged, number, longest_gap_s = 0, 0, 0.0
    connection = None
    while time.monotonic() < begun_s + seconds:
        number += 1
        try:
            if connection is None:
                connection = psycopg2.connect(
                    host=host, user="postgres", password=password, dbname="postgres", keepalives_count=2, **GIVE_UP
                )
                connection.autocommit = True
                connection.cursor().execute("CREATE TABLE IF NOT EXISTS t (n int PRIMARY KEY)")
            connection.cursor().execute("INSERT INTO t VALUES (%s)", (number,))
        except psycopg2.Error as error:
            print(f"not acknowledged {number}: {str(error).strip()[:100]}", flush=True)
            connection = None
            time.sleep(10 * PAUSE_S)
            continue
        print(number, flush=True)
        acknowledged += 1
        longest_gap_s, last_s = max(longest_gap_s, time.monotonic() - last_s), time.monotonic()
        time.sleep(PAUSE_S)
    print(json.dumps({"acknowledged": acknowledged, "longest_gap_s": round(longest_gap_s, 2)}), flush=True)


if __name__ == "__main__":
    write(sys.argv[1], sys.argv[2], float(sys.argv[3]))
