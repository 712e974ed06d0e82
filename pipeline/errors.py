"""What can go wrong, by exit code.

Every message says three things: what came, what was expected, what to do next.
The command line prints the message alone; `--debug` adds the traceback.
"""


class PipelineError(Exception):
    """Base of all errors that the user is told about; `exit_code` is the command's."""

    exit_code = 1


class InputError(PipelineError):
    """A bad config or input, or a refusal to do harm."""

    exit_code = 2


class SingularCovariance(InputError):
    """A covariance that has no inverse: rows that lie in fewer dimensions than there are."""


class StorageError(PipelineError):
    """Reading or writing failed, or what was read is damaged."""

    exit_code = 3


class ClusterLost(PipelineError):
    """The scheduler or all workers are gone; the last checkpoint is intact."""

    exit_code = 4


class Stopped(PipelineError):
    """Stopped on request with a checkpoint; `resume` goes on."""

    exit_code = 75
