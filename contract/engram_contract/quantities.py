"""The written forms of amounts in a resource, and what they are in our units: bytes, millicores, seconds.

Grammar
- bytes: a Kubernetes quantity without sign and exponent: `10Gi` (powers of 1024), `1000M` (powers of 1000), `4096`.
- CPU: `2`, `0.5` or `500m`; three decimals are the finest step.
- duration: days, hours, minutes, seconds, in this order, each at most once: `30d`, `1d12h`, `0s`.
- schedule: the five fields of cron (minute hour day-of-month month day-of-week; numbers, `*`, lists, ranges, steps;
  0 and 7 are Sunday), or one of `@hourly @daily @weekly @monthly @yearly`.

The patterns are the same text as in the CRDs: no look-ahead, so Go, ECMA and Python read them alike.
Sources: Kubernetes API conventions (quantities), POSIX crontab.
"""

import re
from decimal import ROUND_CEILING, Decimal
from typing import Final

BYTES_PATTERN: Final = r"^[0-9]{1,15}(\.[0-9]{1,6})?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$"
CPU_PATTERN: Final = r"^([0-9]{1,6}(\.[0-9]{1,3})?|[0-9]{1,9}m)$"
DURATION_PATTERN: Final = r"^([0-9]{1,5}d)?([0-9]{1,5}h)?([0-9]{1,5}m)?([0-9]{1,5}s)?$"

_POWER: Final = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15} | {
    unit: 1024 ** (exponent + 1) for exponent, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi"))
}
_POSTGRES_UNIT: Final = {None: 8192, "B": 1, "kB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}
_SECONDS: Final = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}


def _cron_field(number: str) -> str:
    item = rf"(\*|({number})(-({number}))?)(/[1-9][0-9]?)?"
    return f"{item}(,{item})*"


_CRON_NUMBERS: Final = ("[0-5]?[0-9]", "[01]?[0-9]|2[0-3]", "0?[1-9]|[12][0-9]|3[01]", "0?[1-9]|1[0-2]", "[0-7]")
_CRON_FIELDS: Final = " ".join(_cron_field(number) for number in _CRON_NUMBERS)
CRON_PATTERN: Final = f"^(@(hourly|daily|weekly|monthly|yearly)|{_CRON_FIELDS})$"


def bytes_of(text: str) -> int:
    """The bytes of a quantity such as `10Gi`, rounded up; ValueError if the text is none."""
    if re.fullmatch(BYTES_PATTERN, text) is None:
        raise ValueError(f"{text!r} is no amount of bytes: write a number with Ki Mi Gi Ti Pi or k M G T P, as 10Gi")
    number = text.rstrip("KMGTPik")
    return int((Decimal(number) * _POWER[text[len(number) :]]).to_integral_value(ROUND_CEILING))


def blocks_bytes_of(text: str) -> int | None:
    """The bytes of a setting that Postgres counts in blocks, as `128MB` or `16384`; None if it is not of that form.

    Source: Postgres manual, 19.1.1 (case counts in units; a number without one is in blocks of 8 kB).
    """
    found = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]{1,6})?)\s*(B|kB|MB|GB|TB)?\s*", text)
    return None if found is None else int(Decimal(found[1]) * _POSTGRES_UNIT[found[2]])


def millicores_of(text: str) -> int:
    """The thousandths of a CPU written as `500m`, `0.5` or `2`; ValueError if the text is none."""
    if re.fullmatch(CPU_PATTERN, text) is None:
        raise ValueError(f"{text!r} is no amount of CPU: write cores, as 2 or 0.5, or thousandths, as 500m")
    return int(text[:-1]) if text.endswith("m") else int(Decimal(text) * 1000)


def seconds_of(text: str) -> int:
    """The seconds of a duration such as `1d12h`; ValueError if the text is none."""
    if not text or re.fullmatch(DURATION_PATTERN, text) is None:
        raise ValueError(
            f"{text!r} is no duration: write days, hours, minutes, seconds in this order, as 30d, 1d12h or 0s"
        )
    return sum(int(number) * _SECONDS[unit] for number, unit in re.findall(r"([0-9]+)([dhms])", text))


def schedule_of(text: str) -> str:
    """The schedule as it was written; ValueError if it is none or a range in it runs backwards."""
    if re.fullmatch(CRON_PATTERN, text) is None:
        raise ValueError(f"{text!r} is no schedule: write minute hour day month weekday, as '0 2 * * *', or @daily")
    for first, last in re.findall(r"([0-9]+)-([0-9]+)", text):
        if int(first) > int(last):
            raise ValueError(f"{text!r}: the range {first}-{last} runs backwards")
    return text
