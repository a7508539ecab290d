"""What can go wrong in `codec`, and whose fault it is.

::

    CodecError            the bytes or the arguments: always about data, never a bug of ours
    ├── MessageError      a peer sent (or a caller built) something that is not a message of this protocol
    ├── TopicError        a topic or a name in it is not of this protocol
    └── SignatureError    a release is not signed by a key that this device trusts
"""

from __future__ import annotations


class CodecError(ValueError):
    """The bytes are not what they claim to be, or an argument cannot be encoded. Nothing was changed."""


class MessageError(CodecError):
    """A payload is not a message of this protocol, or is of a version that we do not know."""


class TopicError(CodecError):
    """A topic, or a name that should stand in one, is not of this protocol."""


class SignatureError(CodecError):
    """No trusted key has signed these bytes. The operator's or an attacker's doing; nothing was used."""
