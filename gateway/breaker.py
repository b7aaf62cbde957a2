"""Circuit breaker. Pure: it is told outcomes and times, and says whether to try.

Closed, everything is tried. It opens on CONSECUTIVE_MAX failures in a row, or when most of the last WINDOW
outcomes are failures; then nothing is tried until a cool-down is over, when one probe may go: its success closes
the breaker, its failure begins the next, longer cool-down.
"""

from collections import deque

CONSECUTIVE_MAX = 3
WINDOW = 20
COOL_DOWN_S = (0.5, 10.0)
PROBE_S_MAX = 30.0  # a probe that was never answered is forgotten


class Breaker:
    def __init__(self) -> None:
        self._recent: deque[bool] = deque(maxlen=WINDOW)
        self._consecutive = 0
        self._cool_down_s = COOL_DOWN_S[0]
        self._retry_at = 0.0
        self.is_open = False

    def would_admit(self, now: float) -> bool:
        return not self.is_open or now >= self._retry_at

    def admits(self, now: float) -> bool:
        """Whether to try. While open, True for one probe after each cool-down."""
        if not self.would_admit(now):
            return False
        if self.is_open:
            self._retry_at = now + PROBE_S_MAX
        return True

    def record(self, success: bool, now: float) -> None:
        if success:
            self._consecutive = 0
            if self.is_open:
                self.is_open = False
                self._recent.clear()
                self._cool_down_s = COOL_DOWN_S[0]
            self._recent.append(True)
            return
        self._consecutive += 1
        self._recent.append(False)
        if self.is_open:
            self._cool_down_s = min(self._cool_down_s * 2, COOL_DOWN_S[1])
            self._retry_at = now + self._cool_down_s
        elif self._consecutive >= CONSECUTIVE_MAX or self._most_failed():
            self.is_open = True
            self._retry_at = now + self._cool_down_s

    def _most_failed(self) -> bool:
        return len(self._recent) == WINDOW and self._recent.count(False) * 2 > WINDOW
