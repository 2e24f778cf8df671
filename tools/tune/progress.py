"""How far a search is: a bar on a terminal, a line for each candidate elsewhere."""

import sys

import tqdm


class Progress:
    def __init__(self, title, total, done):
        self._title, self._total, self._done = title, total, done
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm.tqdm(total=total, initial=done, desc=title, unit="", dynamic_ncols=True)

    def candidate(self, what, best, count):
        """what: of the candidate that is finished; best: the best ratio so far, or None; count: of finished ones."""
        best_text = f"best {best:.3f}" if best else "none yet"
        if self._bar is not None:
            self._bar.set_postfix_str(best_text, refresh=False)
            self._bar.update(max(count - self._done, 0))
        else:
            self.say(f"[{count}/{self._total}] {self._title}: {what}; {best_text}")
        self._done = max(count, self._done)

    def say(self, text):
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self):
        if self._bar is not None:
            self._bar.close()
