"""The one kind of error that is meant for the person at the keyboard."""


class UserError(Exception):
    """Something a user can mend: the message is a sentence that names the object, the field and the way out.

    The command line prints it without a traceback and exits with status 1.
    """


class WrongUsage(UserError):
    """The command line itself is wrong: exit status 2."""


def sentences(error: BaseException) -> list[str]:
    """The messages of a UserError, or of a group in which nothing but UserErrors failed; else nothing."""
    if isinstance(error, UserError):
        return [str(error)]
    if not isinstance(error, BaseExceptionGroup) or error.split(UserError)[1] is not None:
        return []
    return list(dict.fromkeys(sentence for inner in error.exceptions for sentence in sentences(inner)))


def in_words(error: BaseException) -> str:
    """What went wrong, for one line; of a group, what went wrong in it."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(dict.fromkeys(in_words(inner) for inner in error.exceptions))
    return str(error) or type(error).__name__
