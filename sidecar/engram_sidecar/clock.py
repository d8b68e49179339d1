"""The clock of everything that waits or ages in a process: the one that event loops go by, without asking for the loop.

Python 3.11 makes a call to the system each time it is asked for the running loop; a read looked at its clock that way
some fifteen times. Moments of this clock may be given to `call_at` and `timeout_at`: on Linux it is CLOCK_MONOTONIC,
as theirs.
"""

import time
from typing import Final

monotonic_s: Final = time.monotonic
