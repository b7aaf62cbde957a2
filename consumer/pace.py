"""Pure: when INSERTs that are not full may go, so that ClickHouse gets few of them however many partitions there are.

A generic cell rate algorithm: `per_second` in the long run, BURST_S of them at once. Whoever comes is given the next
time that is free, so all partitions have their turn; what they gather till then goes along. Full batches do not wait.
"""

BURST_S = 1.0


class Pace:
    def __init__(self, per_second: float) -> None:
        self._step_s = 1 / per_second
        self._spent_until = 0.0

    def next_at(self, now: float) -> float:
        """When the caller may go: `now`, or later. That time is taken thereby."""
        spent_until = max(now, self._spent_until)
        self._spent_until = spent_until + self._step_s
        return max(now, spent_until + self._step_s - max(BURST_S, self._step_s))

    def give_back(self) -> None:
        """A time that was taken and is not used: somebody else's then, or all would wait for nobody."""
        self._spent_until -= self._step_s

    def forget(self) -> None:
        """Those who took times are gone, and what they took with them."""
        self._spent_until = 0.0
