"""Random numbers without a state: functions of the seed, the serial number of the sample and the purpose.

A sample gets the same crops and colours with any number of workers and processes and after a resume, and a checkpoint
holds no generator state.
"""

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's step: 2**64 over the golden ratio


def _mix(x: np.ndarray) -> np.ndarray:
    """Scatter the bits of uint64 numbers: the finaliser of splitmix64 (Steele, Lea & Flood, OOPSLA 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def seed_of(*numbers: int) -> int:
    """A 64-bit seed that is a function of whole numbers, such as (seed, epoch, batch)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def uniform(seed: int, draws: np.ndarray, stream: int, count: int) -> np.ndarray:
    """Random numbers in [0, 1), ``count`` for each of B samples.

    Args:
        seed: seed of the run.
        draws: [B] int64 serial numbers of the samples (``Batch.draw``).
        stream: number of the purpose; different streams are independent.
        count: numbers per sample.

    Returns:
        [B, count] float64.
    """
    seed_1, stream_1 = np.array([seed], dtype=np.uint64), np.array([stream], dtype=np.uint64)
    key_1 = _mix(_mix(seed_1 + GOLDEN) + stream_1 * GOLDEN)
    state_B1 = _mix(np.asarray(draws).astype(np.uint64)[:, None] * GOLDEN + key_1)
    steps = np.arange(1, count + 1, dtype=np.uint64) * GOLDEN
    return (_mix(state_B1 + steps) >> np.uint64(11)) * 2.0**-53
