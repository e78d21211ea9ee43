"""The one exception for mistakes that a user can mend."""


class UserError(Exception):
    """Bad input: a missing file, a wrong option, a foreign checkpoint.

    The command line prints the message alone, without a traceback, and exits with status 2. The message names the
    file or the field and says what to do.
    """


def did_you_mean(word: str, known) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest of ``known``, or an empty string when none is near."""
    import difflib

    near = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


def at_least(low: float, **values: float | None) -> None:
    """Refuse arguments below ``low`` (and NaN, and none at all) by name.

    Raises:
        UserError: naming the argument, what it is and what it may be.
    """
    for name, value in values.items():
        if value is None or not value >= low:
            raise UserError(f"{name} is {value}, and has to be {low} or more.")
