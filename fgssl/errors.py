"""Exceptions for mistakes of the user, and functions that check arguments or complete a message."""


class UserError(Exception):
    """Bad input: a missing file, a wrong option, an unsuitable checkpoint.

    The command line prints the message without a traceback and exits with status 2. The message names the file or
    option and says what to do.
    """


class OutOfRange(UserError):
    """An argument whose value is beyond a bound; the command line names the option that it came from.

    Attributes:
        name: the argument.
        value: its value.
        bound: what it must be, in words.
    """

    def __init__(self, name: str, value: float | None, bound: str):
        super().__init__(f"{name} is {value}; it must be {bound}.")
        self.name, self.value, self.bound = name, value, bound


def did_you_mean(word: str, known) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest of ``known``, or an empty string when none is near.

    Case, hyphens and underscores do not count: ``obd_sd`` is nearest to ``OBDSD``.
    """
    import difflib

    plain = {_plain(name): name for name in sorted(known, reverse=True)}
    near = difflib.get_close_matches(_plain(word), sorted(plain), n=1, cutoff=0.6)
    return f" Did you mean '{plain[near[0]]}'?" if near else ""


def _plain(word: str) -> str:
    return word.lower().replace("-", "").replace("_", "")


def at_least(low: float, **values: float | None) -> None:
    """Refuse arguments that are below ``low``, NaN or None.

    Raises:
        OutOfRange: names the argument, its value and the lowest allowed value.
    """
    for name, value in values.items():
        if value is None or not value >= low:
            raise OutOfRange(name, value, f"{low} or more")


def above(low: float, **values: float | None) -> None:
    """Refuse arguments that are not above ``low``, NaN or None.

    Raises:
        OutOfRange: names the argument, its value and the bound.
    """
    for name, value in values.items():
        if value is None or not value > low:
            raise OutOfRange(name, value, f"above {low}")


def between(low: float, high: float, **values: float | None) -> None:
    """Refuse arguments that are below ``low``, above ``high``, NaN or None.

    Raises:
        OutOfRange: names the argument, its value and the bounds.
    """
    for name, value in values.items():
        if value is None or not low <= value <= high:
            raise OutOfRange(name, value, f"from {low} to {high}")
