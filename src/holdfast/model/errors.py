"""Errors named by what the caller should do; `cri.boundary` maps each to one gRPC code.

HoldfastError
 ├ InvalidArgument      correct the request; the message names the field
 ├ NotFound             the named thing does not exist
 ├ AlreadyExists        the name is taken; `holder` is the id that has it
 ├ FailedPrecondition   the object is in a state that does not allow this
 ├ Unavailable          try again later: a shim, the keeper or a registry did not answer
 ├ Cancelled            nothing: whoever asked for it has given it up
 ├ DeadlineExceeded     it did not finish in time and may still do so
 ├ ResourceExhausted    free space or memory first
 ├ Unimplemented        this build cannot do it
 └ Damaged              stored data cannot be read; it is kept aside, never deleted

Below the `linux` door plain OSError is raised; the caller that knows the object turns it into one of these.
"""


class HoldfastError(Exception):
    """Base of the errors a client can act on; the text reads "cannot <verb> <thing>: <cause>"."""


class InvalidArgument(HoldfastError):
    pass


class NotFound(HoldfastError):
    pass


class AlreadyExists(HoldfastError):
    """`holder` is the id of the object that owns the name, or "" when it is not known."""

    def __init__(self, message: str, holder: str = "") -> None:
        super().__init__(message)
        self.holder = holder


class FailedPrecondition(HoldfastError):
    pass


class Unavailable(HoldfastError):
    pass


class Cancelled(HoldfastError):
    pass


class DeadlineExceeded(HoldfastError):
    pass


class ResourceExhausted(HoldfastError):
    pass


class Unimplemented(HoldfastError):
    pass


class Damaged(HoldfastError):
    pass
