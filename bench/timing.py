"""Times several things in turns, so that whatever else the machine does hits all of them alike."""

import statistics
import time

_SAMPLE_SECONDS = 0.002  # a shorter call is repeated to this length
_LONG_SECONDS = 0.02  # from here on a call is its own warm-up
_SETTLE_SECONDS = 0.03  # idle threads of OpenMP and TBB spin for some milliseconds
_WAKE_SECONDS = 0.015  # until threads that slept that long share the work: a virtual machine wakes them on one core


class Samples(list):
    """One number a round."""

    median = property(statistics.median)


# What a user waits; or what this process computes, which on a busy machine says more about one thread.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def _timed(run, repeats, clock):
    start = clock()
    for _ in range(repeats):
        run()
    return (clock() - start) / repeats


def take_turns(runs, peak, threads, seconds, min_rounds, clock):
    """Seconds per call of every entry of `runs` (name -> function), and the rates that peak() returns, round by round.

    An entry's turn is one call that is not counted, for caches and clocks, and then enough of them for the clock. With
    more than one thread, a pause comes first: else one library's idle threads, which spin for a while, would take cores
    from the other. Then there are as many calls before as it takes to wake all threads.
    """
    estimates = {}
    for name, run in runs.items():
        estimates[name] = _timed(run, 1, clock)
        if estimates[name] < _LONG_SECONDS:
            estimates[name] = min(_timed(run, 1, clock) for _ in range(2))
    repeats = {name: max(1, round(_SAMPLE_SECONDS / max(estimate, 1e-7))) for name, estimate in estimates.items()}
    times, peaks = {name: Samples() for name in runs}, Samples()
    end = time.perf_counter() + seconds
    order = list(runs.items())
    while len(peaks) < min_rounds or time.perf_counter() < end:
        peaks.append(peak())
        for name, run in order:
            if threads > 1:
                time.sleep(_SETTLE_SECONDS)
            if estimates[name] < _LONG_SECONDS:
                run()
                awake = time.perf_counter() + _WAKE_SECONDS
                while threads > 1 and time.perf_counter() < awake:
                    run()
            times[name].append(_timed(run, repeats[name], clock))
        order.reverse()  # who goes first alternates
    return times, peaks
