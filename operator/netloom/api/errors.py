"""The one kind of error that is meant for the person at the keyboard."""


class UserError(Exception):
    """Something a user can mend: the message is a sentence that names the object, the field and the way out.

    The command line prints it without a traceback and exits with status 1.
    """
