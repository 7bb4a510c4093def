"""Who has loaded and stored each place of a memory since threads last met: finds two whose order nothing says."""

import numpy as np

SHARED = np.int64(0)  # several have loaded it
STORED, ATOMIC = np.int64(1), np.int64(2)  # how whoever was alone there stored; both by themselves: several have added
BOTH = STORED | ATOMIC
CODES = np.int64(1 << 32)  # an epoch has so many


def grown(numbers, places):
    """The same numbers and zeros behind them, so many in all: zeros that nobody writes take no memory."""
    more = np.zeros(places, numbers.dtype)
    more[: len(numbers)] = numbers
    return more


class Shadow:
    """One number a place: the epoch of its last access, and in it who was alone there and whether it stored, if by
    atomic operations alone.

    An epoch is the time between two meetings of those who are watched. Epochs count from 1 and never return, so nothing
    is cleared between them.
    """

    def __init__(self, places):
        self._states = np.zeros(places, np.int64)

    def grow(self, places):
        """Let there be so many places."""
        if places > len(self._states):
            self._states = grown(self._states, places)

    def load(self, places, who, epoch):
        """Take loads in: which are the first in this epoch, which are in a race. places: (accesses, threads)."""
        states, base, mine = self._states, epoch * CODES, (who.astype(np.int64) + 1) * 4
        now = states[places]
        first = now < base
        if first.any():
            states[places[first]] = (base + np.broadcast_to(mine, places.shape))[first]
            now = states[places]
        code = now - base
        others = (code | BOTH) != (mine | BOTH)
        if others.any():
            race = others & (code & STORED != 0)
            states[places[others & ~race]] = base + SHARED
        else:
            race = others
        if (added := (code & ATOMIC != 0) & ~others).any():  # which is no longer all
            states[places[added]] -= ATOMIC
        return first, race

    def store(self, places, who, epoch):
        """Take stores in: which are in a race, as places."""
        states, base, mine = self._states, epoch * CODES, (who.astype(np.int64) + 1) * 4 + STORED
        now = states[places]
        race = (now >= base) & (((now - base) | BOTH) != mine | BOTH)
        states[places] = base + np.broadcast_to(mine, places.shape)
        return race | (states[places] != base + mine)

    def add(self, places, who, epoch):
        """Take atomic additions in, which are in no race with each other: which are the first, which are in a race."""
        states, base, mine = self._states, epoch * CODES, (who.astype(np.int64) + 1) * 4 + BOTH
        code = states[places] - base
        first, others = code < 0, (code | BOTH) != mine
        race = ~first & others & (code & ATOMIC == 0)
        several = ~first & others & ~race
        states[places] = base + np.where(several, BOTH, np.where(first | (code & ATOMIC != 0), mine, mine - ATOMIC))
        met = states[places]
        states[places[met | BOTH != base + mine]] = base + BOTH
        return first, race

    def touched(self, places, epoch):
        """Which of a slice of places have been touched in this epoch, and which of them stored."""
        states = self._states[places] - epoch * CODES
        return states >= 0, (states > 0) & (states & STORED != 0)
