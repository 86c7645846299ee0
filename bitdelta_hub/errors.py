"""Every error a user can meet.

BitDeltaError                      BDH000  exit 1
├── UsageError                     BDH200  exit 2   arguments that cannot be meant
├── FormatError                    BDH300  exit 1   .rule .at: the bytes break a rule of the spec
│   ├── ManifestError              BDH301           bitdelta.json
│   ├── ContainerError             BDH302           a safetensors file
│   ├── CodecError                 BDH303           params or parts of one term
│   └── VersionError               BDH304           another format version or an unknown codec
├── VerificationError              BDH400  exit 4   .at: bytes are not the recorded ones
│   ├── DigestMismatch             BDH401           a file or rebuilt tensor
│   └── BaseMismatch               BDH402           this is not the base the delta was made from
├── PairError                      BDH1xx  exit 3   the code of `pair.py` says which
└── StorageError                   BDH500  exit 1   disk, permissions, missing or existing files

A message is one line: `place: fact (expected ..., found ...)`. `fix` is what to do next.
"""

from __future__ import annotations

from typing import ClassVar


class BitDeltaError(Exception):
    """Root of the tree: `code` is stable, `fix` the next thing to do, `exit_status` the CLI's."""

    code: str = "BDH000"
    name: ClassVar[str] = "error"
    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


class UsageError(BitDeltaError):
    """Arguments that exclude each other or name nothing."""

    code = "BDH200"
    name = "usage"
    exit_status = 2


class FormatError(BitDeltaError):
    """The bytes break rule `rule` of the specification at place `at`."""

    code = "BDH300"
    name = "format"

    def __init__(self, message: str, *, rule: str, at: str, fix: str = "") -> None:
        super().__init__(f"{at}: {message} [{rule}]", fix=fix)
        self.rule = rule
        self.at = at


class ManifestError(FormatError):
    """`bitdelta.json` breaks a rule."""

    code = "BDH301"
    name = "manifest"


class ContainerError(FormatError):
    """A safetensors file breaks a rule."""

    code = "BDH302"
    name = "container"


class CodecError(FormatError):
    """Params or parts of one term break a rule."""

    code = "BDH303"
    name = "codec"


class VersionError(FormatError):
    """A format version or codec that this release does not know."""

    code = "BDH304"
    name = "version"


class VerificationError(BitDeltaError):
    """Bytes at `at` are not the recorded ones."""

    code = "BDH400"
    name = "verification"
    exit_status = 4

    def __init__(self, message: str, *, at: str, fix: str = "") -> None:
        super().__init__(f"{at}: {message}", fix=fix)
        self.at = at


class DigestMismatch(VerificationError):
    """A file or a rebuilt tensor differs from its recorded digest."""

    code = "BDH401"
    name = "digest-mismatch"


class BaseMismatch(VerificationError):
    """The base at hand is not the one that the delta was made from."""

    code = "BDH402"
    name = "base-mismatch"


class PairError(BitDeltaError):
    """Base and tuned cannot be paired; `code` is one of the outcome codes of `pair.py`."""

    name = "pair"
    exit_status = 3

    def __init__(self, message: str, *, code: str, fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.code = code


class StorageError(BitDeltaError):
    """A file is missing, in the way, unreadable, unwritable, or the disk is full."""

    code = "BDH500"
    name = "storage"
