"""Errors a user can act on. Entry points print their message as one paragraph, without a traceback."""


class DeftError(Exception):
    """Something the user can put right: the message says where it is and what was expected."""


class DataError(DeftError):
    """A data set that is missing, corrupt, half-written, or does not hold what was asked for."""


class ConfigError(DeftError):
    """An unknown name or an impossible combination in the configuration."""


class ContractError(DeftError):
    """An observation or action that does not fit what a policy was trained for."""


class TrainingError(DeftError):
    """Training cannot go on (a loss that is not finite, a run folder in use)."""


def nearest(name: str, known: list[str]) -> str:
    """ "Did you mean ...?" for an unknown ``name`` among ``known``, or the whole list when nothing is near."""
    import difflib

    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(map(repr, close))}?"
    return f"Known: {', '.join(sorted(known))}."
