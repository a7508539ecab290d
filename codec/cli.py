"""`sanderling pack` and `sanderling unpack`: files in, files out. All of the coding is in `pack.py`."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from .errors import CodecError

SUFFIX = ".sndl"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the two commands."""
    pack = subparsers.add_parser(
        "pack",
        help="compress a model or integer arrays, losslessly",
        description="Pack a file (.onnx and .npz pack best) without loss. Weights are found and Huffman-coded, "
        "the rest is deflated; the result is unpacked and compared before it is kept.",
    )
    pack.add_argument("file", type=Path, metavar="FILE", help="the file to pack, such as model.onnx or arrays.npz")
    pack.add_argument("-o", "--output", type=Path, metavar="PACKED", help=f"where to write (else: FILE{SUFFIX})")
    pack.set_defaults(handler=_pack)
    unpack = subparsers.add_parser(
        "unpack", help="restore a packed file, bit for bit", description="Restore a packed file, bit for bit."
    )
    unpack.add_argument("file", type=Path, metavar="PACKED", help="what `sanderling pack` wrote")
    unpack.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="where to write (its own name, beside PACKED, if not given)"
    )
    for command in (pack, unpack):
        command.add_argument("-f", "--force", action="store_true", help="overwrite a file that exists")
    unpack.set_defaults(handler=_unpack)


def _pack(options: argparse.Namespace) -> int:
    return _report("pack", lambda: _do_pack(options.file, options.output, options.force))


def _unpack(options: argparse.Namespace) -> int:
    return _report("unpack", lambda: _do_unpack(options.file, options.output, options.force))


def _do_pack(file: Path, output: Path | None, force: bool) -> str:
    from .files.pack import pack_file, unpack_file

    data = file.read_bytes()
    blob = pack_file(data, file.name)
    if unpack_file(blob) != (file.name, data):
        raise CodecError(f"{file} does not come back bit for bit: nothing was written; please report this file")
    target = output or file.with_name(file.name + SUFFIX)
    _write(target, blob, force)
    share = 100 * len(blob) / max(1, len(data))
    return f"{file}: {len(data):,} bytes packed into {target}: {len(blob):,} bytes ({share:.1f} %)"


def _do_unpack(file: Path, output: Path | None, force: bool) -> str:
    from .files.pack import unpack_file

    try:
        name, data = unpack_file(file.read_bytes())
    except CodecError as error:
        raise CodecError(f"{file}: {error}; give what `sanderling pack` wrote, whole") from error
    target = output or file.with_name(name)
    _write(target, data, force)
    return f"{file}: unpacked into {target}: {len(data):,} bytes"


def _report(command: str, work: Callable[[], str]) -> int:
    try:
        print(work())
    except FileNotFoundError as error:
        return _failed(command, f"{error.filename} does not exist: check the path")
    except FileExistsError as error:
        return _failed(command, f"{error.filename} exists: choose another with -o, or overwrite it with --force")
    except OSError as error:
        return _failed(command, f"{error.filename or 'writing'}: {error.strerror}; name a file, and a place with room")
    except CodecError as error:
        return _failed(command, str(error))
    return 0


def _failed(command: str, reason: str) -> int:
    print(f"sanderling {command}: {reason}", file=sys.stderr)
    return 1


def _write(target: Path, data: bytes, force: bool) -> None:
    """Whole or not at all: a reader never sees half a file, and a full disk leaves the old one."""
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(target.parent))
    if target.exists() and not force:
        raise FileExistsError(errno.EEXIST, "exists", str(target))
    handle, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
