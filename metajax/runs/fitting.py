"""The largest value of a setting that fits into the memory, from few compiled programs."""

from collections.abc import Callable

_MOST = 4096  # The limit of the search.


def largest_fitting(total: Callable[[int], int], start: int, memory: float) -> int:
    """Find the largest value whose total fits into the memory; 0 if none fits.

    If the total is linear in the value, the result is exact to 5%. The search follows the line
    through two known totals. It stops when this line leaves no room for a value 5% larger than the
    largest that is known to fit.

    Args:
        total: memory by value, which grows with the value.
        start: the first value to try.
        memory: the limit.
    """
    totals: dict[int, int] = {}
    probe = start
    while True:
        totals[probe] = total(probe)
        fitting = sorted(value for value in totals if totals[value] <= memory)
        failing = sorted(value for value in totals if totals[value] > memory)
        fits, fails = max(fitting, default=0), min(failing, default=_MOST + 1)
        nearest = fitting[-2:] if len(fitting) > 1 else (fitting + failing)[:2]
        limit, larger = _crossing(totals, nearest, memory), fits + 1 + fits // 20
        if fails <= larger or (fits and len(nearest) > 1 and limit < larger):
            return fits
        if failing and limit >= fails:
            limit = _crossing(totals, [fits, fails], memory)
        # A bracket loses an eighth at least, however far the totals are from a line.
        margin = (fails - fits) // 8 if fits and failing else 0
        limit = min(max(limit, fits + margin), fails - margin)
        probe = int(min(max(limit, fits + 1), fails - 1))


def _crossing(totals: dict[int, int], values: list[int], memory: float) -> float:
    """Return where the line through two totals reaches the memory. One total: from the origin."""
    low, high = values if len(values) > 1 else (0, values[0])
    base = totals.get(low, 0)
    rise = totals[high] - base
    return low + (memory - base) * (high - low) / rise if rise > 0 else 2.0 * high
