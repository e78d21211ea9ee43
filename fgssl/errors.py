"""Exception for mistakes of the user, and helpers for its messages."""


class UserError(Exception):
    """Bad input: a missing file, a wrong option, an unsuitable checkpoint.

    The command line prints the message without a traceback and exits with status 2. The message names the file or
    option and says what to do.
    """


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
        UserError: names the argument, its value and the lowest allowed value.
    """
    for name, value in values.items():
        if value is None or not value >= low:
            raise UserError(f"{name} is {value}; it must be {low} or more.")


def above(low: float, **values: float | None) -> None:
    """Refuse arguments that are not above ``low``, NaN or None.

    Raises:
        UserError: names the argument, its value and the bound.
    """
    for name, value in values.items():
        if value is None or not value > low:
            raise UserError(f"{name} is {value}; it must be above {low}.")


def between(low: float, high: float, **values: float | None) -> None:
    """Refuse arguments that are below ``low``, above ``high``, NaN or None.

    Raises:
        UserError: names the argument, its value and the bounds.
    """
    for name, value in values.items():
        if value is None or not low <= value <= high:
            raise UserError(f"{name} is {value}; it must be from {low} to {high}.")
