"""Errors meant for a person."""


class UserError(Exception):
    """A mistake the user can mend.

    The message is one line that names the file, line or key and the fix. The command line prints
    it without a traceback and exits with status 2.
    """


class Terminated(Exception):  # noqa: N818 (the run is well)
    """A process of the run was told to end (SIGTERM); what was done is saved and continues."""
