"""`sanderling pack`, `unpack`, `inspect`, `diff` and `apply`: files in, files out. All of the coding is elsewhere."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import CodecError

if TYPE_CHECKING:
    from typing import BinaryIO

    from .limits import CodecLimits

SUFFIX = ".sndl"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    _register_pack(subparsers)
    _register_patch(subparsers)
    look = subparsers.add_parser(
        "inspect",
        help="show what a model or a coded file consists of, tensor by tensor",
        description="Show a table of the tensors of a model (.onnx, .tflite, .npz, .npy, .safetensors) as they would "
        "be packed, or of a file that pack, diff or the codec's functions wrote.",
        epilog="Columns: zeros, the share of items that are 0; entropy, bits per item that an ideal coder takes that "
        "knows only how often each value occurs; coded, bits per item here; form, how the tensor becomes integers; "
        "mode, how these are coded.",
    )
    look.add_argument("file", type=Path, metavar="FILE", help="a model, or what pack, diff or encode_... wrote")
    look.add_argument("--json", action="store_true", help="print JSON, sizes in bytes, entropy and coded in bits")
    look.set_defaults(handler=lambda options: _report("inspect", lambda: _do_inspect(options.file, options.json)))


def _register_pack(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    pack = subparsers.add_parser(
        "pack",
        help="compress a model or arrays, losslessly",
        description="Pack a file without loss; .onnx, .tflite, .npz, .npy and .safetensors pack best. Weights are "
        "found and Huffman-coded, the rest goes through a general coder; the result is unpacked and compared before "
        "it is kept. Files of any size take less than 100 MB of memory.",
        epilog="example: sanderling pack model.onnx    writes model.onnx.sndl",
    )
    pack.add_argument("file", type=Path, metavar="FILE", help="the file to pack, such as model.onnx or arrays.npz")
    pack.add_argument("-o", "--output", type=Path, metavar="PACKED", help=f"where to write (else: FILE{SUFFIX})")
    pack.set_defaults(handler=lambda o: _report("pack", lambda: _do_pack(o.file, o.output, o.force)))
    unpack = subparsers.add_parser(
        "unpack",
        help="restore a packed file, bit for bit",
        description="Restore a packed file, bit for bit. It is written whole or not at all.",
        epilog="example: sanderling unpack model.onnx.sndl    writes model.onnx",
    )
    unpack.add_argument("file", type=Path, metavar="PACKED", help="what `sanderling pack` wrote")
    unpack.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="where to write (its own name, beside PACKED, if not given)"
    )
    unpack.set_defaults(handler=lambda o: _report("unpack", lambda: _do_unpack(o.file, o.output, o.force)))
    for command in (pack, unpack):
        command.add_argument("-f", "--force", action="store_true", help="overwrite a file that exists")


def _register_patch(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    diff = subparsers.add_parser(
        "diff",
        help="what changed between two versions of a model, as a small file",
        description="Write what changed from OLD to NEW. Tensors of the same name and shape are compared; `apply` "
        "gives NEW back, bit for bit, from OLD and this. With --quality, changes of float32 weights are sent only "
        "about as they are: the result is then not NEW byte for byte, but much smaller to send.",
        epilog="example: sanderling diff v1.onnx v2.onnx -o v1-v2.sndl; sanderling apply v1.onnx v1-v2.sndl -o v2.onnx",
    )
    diff.add_argument("old", type=Path, metavar="OLD", help="the version that the other side has")
    diff.add_argument("new", type=Path, metavar="NEW", help="the version that it is to get")
    diff.add_argument("-o", "--output", type=Path, metavar="DELTA", required=True, help="where to write")
    diff.add_argument(
        "-q", "--quality", type=float, metavar="Q",
        help="the share of the energy of each tensor's change that is sent, above 0 and below 1, such as 0.99 (else: "
        "all, exactly)",
    )  # fmt: skip
    diff.set_defaults(handler=lambda o: _report("diff", lambda: _do_diff(o.old, o.new, o.output, o.quality, o.force)))
    apply = subparsers.add_parser(
        "apply",
        help="make the new version of a model from the old one and what changed",
        description="Make the new version from OLD and what `diff` wrote. OLD is refused if it is not the file that "
        "the difference was taken from, and the result is checked before it is kept.",
        epilog="example: sanderling apply v1.onnx v1-v2.sndl -o v2.onnx",
    )
    apply.add_argument("old", type=Path, metavar="OLD", help="the version that `diff` was given as OLD")
    apply.add_argument("delta", type=Path, metavar="DELTA", help="what `sanderling diff` wrote")
    apply.add_argument(
        "-o", "--output", type=Path, metavar="NEW", help="where to write (its own name, beside DELTA, if not given)"
    )
    apply.set_defaults(handler=lambda o: _report("apply", lambda: _do_apply(o.old, o.delta, o.output, o.force)))
    for command in (diff, apply):
        command.add_argument("-f", "--force", action="store_true", help="overwrite a file that exists")


def _do_pack(file: Path, output: Path | None, force: bool) -> str:
    from .durable import written
    from .files.check import Comparison
    from .files.pack import pack_stream, unpack_stream

    target = output or file.with_name(file.name + SUFFIX)
    with file.open("rb") as data, written(target, force=force) as packed:
        _note_external(data, file)
        pack_stream(data, file.name, packed, limits=_limits())
        comparison = Comparison(data)
        name = unpack_stream(packed, comparison, limits=_limits())
        if name != file.name or not comparison.complete:
            raise CodecError(f"{file} does not come back bit for bit: nothing was written; please report this file")
        size, small = comparison.size, packed.seek(0, 2)
    return f"{file}: {size:,} bytes packed into {target}: {_sizes(small, size)}"


def _do_unpack(file: Path, output: Path | None, force: bool) -> str:
    from .durable import written
    from .files.pack import FileOutput, packed_name, unpack_stream

    with file.open("rb") as packed:
        try:
            target = output or file.with_name(packed_name(packed, limits=_limits()))
            with written(target, force=force) as data:
                unpack_stream(packed, FileOutput(data), limits=_limits())
                size = data.seek(0, 2)
        except CodecError as error:
            raise CodecError(f"{file}: {error}; give what `sanderling pack` wrote, whole") from error
    return f"{file}: unpacked into {target}: {size:,} bytes"


def _do_diff(old: Path, new: Path, output: Path, quality: float | None, force: bool) -> str:
    from .durable import written
    from .files.check import Comparison
    from .files.patch import apply_stream, patch_stream

    with old.open("rb") as before, new.open("rb") as after, written(output, force=force) as patch:
        _note_external(after, new)
        patch_stream(before, after, new.name, patch, quality, limits=_limits())
        comparison = Comparison(after)
        apply_stream(before, patch, comparison, limits=_limits())
        if not comparison.complete and quality is None:
            raise CodecError(f"{new} does not come back bit for bit: nothing was written; please report both files")
        size, small = comparison.size, patch.seek(0, 2)
    kind = "bit for bit" if comparison.complete else f"about: {comparison.different:,} bytes will differ from {new}"
    return f"{old} -> {new}: {size:,} bytes as changes in {output}: {_sizes(small, size)}, {kind}"


def _do_apply(old: Path, patch: Path, output: Path | None, force: bool) -> str:
    from .durable import written
    from .files.pack import FileOutput, packed_name
    from .files.patch import apply_stream

    with old.open("rb") as before, patch.open("rb") as changes:
        try:
            target = output or patch.with_name(packed_name(changes, limits=_limits()))
            with written(target, force=force) as data:
                apply_stream(before, changes, FileOutput(data), limits=_limits())
                size = data.seek(0, 2)
        except CodecError as error:
            raise CodecError(f"{patch} on {old}: {error}") from error
    return f"{old} and {patch}: {target}, {size:,} bytes"


def _do_inspect(file: Path, as_json: bool) -> str:
    import json

    from .files.inspection import inspect_file

    with file.open("rb") as data:
        try:
            found = inspect_file(data, limits=_limits())
        except CodecError as error:
            raise CodecError(f"{file}: {error}") from error
    return json.dumps({"file": str(file), **found.as_json()}, indent=2) if as_json else found.as_text(str(file))


def _note_external(data: BinaryIO, file: Path) -> None:
    from .files.in_onnx import external_files
    from .files.source import Source

    others = external_files(Source(data)) if file.suffix == ".onnx" else []
    if others:
        print(
            f"note: weights of {file} are in other files ({', '.join(others[:3])}), which are not included: "
            "handle these as well, or save the model with its weights inside",
            file=sys.stderr,
        )


def _sizes(small: int, size: int) -> str:
    return f"{small:,} bytes ({100 * small / max(1, size):.1f} %)"


def _limits() -> CodecLimits:
    """Files that were named by whoever sits here may be as large as the disk is; memory is that for a group anyway."""
    from .limits import CodecLimits

    return CodecLimits(blob_bytes=2**46, decoded_bytes=2**46, file_bytes=2**46, elements=2**46, array_elements=2**46)


def _report(command: str, work: Callable[[], str]) -> int:
    try:
        print(work())
    except BrokenPipeError:
        raise
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
