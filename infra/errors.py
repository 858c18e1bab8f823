"""What a user can understand and mend."""


class ExplainedError(Exception):
    """Its message says all there is to say, in one line: the command line prints it without a traceback."""
