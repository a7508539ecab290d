"""The verifier child: checks a release's signature.

A process of its own because the cryptography library takes 7 MB and would stay in the supervisor for ever.
"""

from __future__ import annotations

import hashlib

import msgspec

from sanderling.codec.errors import CodecError
from sanderling.codec.release import verify

from . import children
from .jobs import VerifyDone, VerifyJob


def check(job: VerifyJob) -> VerifyDone:
    """Who signed is decided by `codec.release`; the digest is over the content, so a re-signed release keeps it."""
    try:
        release = verify(job.envelope, job.trusted_keys)
    except CodecError as error:
        return VerifyDone(None, "", str(error))
    return VerifyDone(release, hashlib.sha256(msgspec.json.encode(release, order="sorted")).hexdigest(), "")


if __name__ == "__main__":
    children.work(VerifyJob, check)
