"""What can go wrong in `server`, whose fault it is, and what to do.

::

    ServerError                 base; `what` says what happened and where, `remedy` what to do about it
    ├── ConfigurationError      the operator's: a setting in server.toml, a missing key file, a folder of another fleet
    ├── RequestError            the caller's: a name, version or file that cannot be accepted; nothing was changed
    │   ├── NotFoundError       the caller asked for a device, model, version or file that does not exist
    │   └── ConflictError       the request was fine a moment ago: something else (a merge, another push) came first
    ├── DeltaError              a device's: a delta that does not fit its base; answered by a receipt with the reason
    ├── StorageError            the machine's: disk full, read-only, damaged database; nothing was half written
    └── MergeError              a merge could not be computed: the model's or the proxy data's fault, in its text
"""

from __future__ import annotations


class ServerError(Exception):
    """Something that a person can put right: `what` happened, and the `remedy`."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what}: {remedy}" if remedy else what)
        self.what = what
        self.remedy = remedy


class ConfigurationError(ServerError):
    """The configuration cannot be used. The operator's to repair; the server has not started."""


class RequestError(ServerError):
    """The request cannot be accepted as it stands. The caller's; nothing was changed."""


class NotFoundError(RequestError):
    """There is no such device, model, version or file."""


class ConflictError(RequestError):
    """Something else came first; asking again with what is true now may succeed. Nothing was changed."""


class DeltaError(ServerError):
    """A delta that cannot be merged, ever: the device gets the reason in its receipt."""


class StorageError(ServerError):
    """The disk or the database failed. What was not committed has not been acknowledged."""


class MergeError(ServerError):
    """No model came out of a merge; the deltas are untouched."""
