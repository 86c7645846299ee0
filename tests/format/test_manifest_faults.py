"""Every fault of a manifest: what is done to a good one, and the whole message that follows."""

# ruff: noqa: E501 (a row of the table is one fault with its whole message)

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from bitdelta_hub.errors import FormatError, ManifestError, VersionError
from bitdelta_hub.format.manifest import BaseTensor, Manifest, fingerprint

SHA = "5" * 64
A, B, C = (f"blake3:{digit * 64}" for digit in "abc")
BASE_TENSORS = {
    "w": {"dtype": "BF16", "shape": [4, 8], "digest": A},
    "i": {"dtype": "I32", "shape": [3], "digest": B},
    "h": {"dtype": "F16", "shape": [16], "digest": C},
}
FINGERPRINT = fingerprint(
    {
        name: BaseTensor(dtype=t["dtype"], shape=tuple(t["shape"]), digest=t["digest"])
        for name, t in BASE_TENSORS.items()
    }
)
SIGN = {"codec": "sign", "params": {"axis": "tensor"}, "parts": {"sign": 4, "scale": 4}}
RAW = {"codec": "raw", "params": {}, "parts": {"data": 32}}
ROWS = {"codec": "rows", "params": {"count": 1}, "parts": {"index": 4, "data": 16}}
PATCH = {
    "codec": "patch",
    "params": {"count": 1, "positions": "bitmap", "low_bits": 0},
    "parts": {"bitmap": 4, "value": 2},
}
GOOD: dict[str, Any] = {
    "format": "bitdelta/1",
    "base": {
        "repo": "org/base",
        "revision": None,
        "fingerprint": FINGERPRINT,
        "files": [{"file": "model.safetensors", "size": 140, "sha256": None}],
        "tensors": BASE_TENSORS,
    },
    "tuned": {
        "repo": None,
        "revision": None,
        "bytes": 300,
        "files": ["model-1.safetensors", "model-2.safetensors"],
    },
    "shards": [{"file": "delta.safetensors", "size": 500, "sha256": SHA}],
    "files": [{"file": "config.json", "size": 20, "sha256": SHA}],
    "tensors": {
        "sum": {
            "dtype": "BF16", "shape": [4, 8], "file": 0, "kind": "sum", "digest": A,
            "base": "w", "terms": [SIGN, ROWS, PATCH], "error": 0.25,
        },
        "new": {
            "dtype": "F16", "shape": [4, 4], "file": 0, "kind": "exact", "digest": B,
            "terms": [RAW],
        },
        "copy": {
            "dtype": "I32", "shape": [3], "file": 0, "kind": "copy", "digest": B, "base": "i",
        },
        "padded": {
            "dtype": "F16", "shape": [5, 4], "file": 1, "kind": "exact", "digest": C,
            "base": [["h", 0, 16]], "terms": [PATCH],
        },
        "tied": {
            "dtype": "BF16", "shape": [4, 8], "file": 1, "kind": "tie", "digest": A, "tie": "sum",
        },
    },
    "annotations": {"created_by": "a test"},
}  # fmt: skip

Document = dict[str, Any]


def parse(document: Document) -> Manifest:
    return Manifest.parse(json.dumps(document).encode())


def at(path: str) -> Callable[[Document, Any], None]:
    """A setter of the place `path`, keys and indices separated by `/`."""
    *parents, last = path.split("/")

    def put(document: Document, value: Any) -> None:
        node: Any = document
        for key in parents:
            node = node[int(key) if isinstance(node, list) else key]
        if value is ABSENT:
            del node[last]
        elif isinstance(node, list):
            node[int(last)] = value
        else:
            node[last] = value

    return put


ABSENT = object()
MANY = [["h", 0, 1]] * 4097

# place -> value put there -> message. Places are as in `at`.
FAULTS: list[tuple[str, Any, str]] = [
    # R2, R3: names
    ("shards/0/file", "", "shards[0].file: not a file name (expected 1 to 255 bytes) [R2]"),
    ("shards/0/file", "é" * 128, "shards[0].file: not a file name (expected 1 to 255 bytes) [R2]"),
    ("shards/0/file", "..", 'shards[0].file: not a bare file name (found "..") [R2]'),
    ("files/0/file", "../x", 'files[0].file: not a bare file name (found "../x") [R2]'),
    ("files/0/file", "a\\b", 'files[0].file: not a bare file name (found "a\\\\b") [R2]'),
    ("base/files/0/file", "/etc", 'base.files[0].file: not a bare file name (found "/etc") [R2]'),
    ("tuned/files/1", "a\0", 'tuned.files[1]: not a bare file name (found "a\\u0000") [R2]'),
    ("tuned/files/1", "a\x9b", 'tuned.files[1]: not a bare file name (found "a\\u009b") [R2]'),
    (
        "shards/0/file",
        "bitdelta.json",
        "shards[0].file: bitdelta.json names the manifest itself [R2]",
    ),
    *(
        (place, name, f'{dotted}.file: other loaders would read "{name}" as a model\'s weights [R3]')
        for place, dotted in (("shards/0/file", "shards[0]"), ("files/0/file", "files[0]"))
        for name in (
            "model.safetensors",
            "Model.SafeTensors",
            "model-00001-of-00002.safetensors",
            "pytorch_model.bin",
            "pytorch_model-00001-of-00002.bin",
        )
    ),
    # R6: the version
    ("format", "bitdelta/2", 'format: another format (expected "bitdelta/1", found "bitdelta/2") [R6]'),
    ("format", "bitdelta/1 ", 'format: another format (expected "bitdelta/1", found "bitdelta/1 ") [R6]'),
    ("format", 1, 'format: another format (expected "bitdelta/1", found 1) [R6]'),
    ("format", ABSENT, 'format: another format (expected "bitdelta/1", found none) [R6]'),
    # R7: keys and types
    ("base", ABSENT, 'bitdelta.json: the key "base" is missing [R7]'),
    ("extra", 1, 'bitdelta.json: unknown key "extra" [R7]'),
    ("base", [], "base: not an object (found a list) [R7]"),
    ("base/name", "x", 'base: unknown key "name" [R7]'),
    ("base/repo", 5, "base.repo: not a string (found 5) [R7]"),
    ("base/revision", True, "base.revision: not a string (found true) [R7]"),
    ("base/files", {}, "base.files: not a list (found an object) [R7]"),
    ("base/tensors", [], "base.tensors: not an object (found a list) [R7]"),
    ("base/tensors/w", "x", 'base.tensors["w"]: not an object (found "x") [R7]'),
    ("base/tensors/w/digest", ABSENT, 'base.tensors["w"]: the key "digest" is missing [R7]'),
    (
        "base/tensors/w/digest",
        "blake3:" + "A" * 64,
        'base.tensors["w"].digest: not a digest (expected blake3: and 64 hex digits, '
        f'found "blake3:{"A" * 64}") [R7]',
    ),
    (
        "base/fingerprint",
        A + "\n",
        "base.fingerprint: not a digest (expected blake3: and 64 hex digits, "
        f'found "{A}\\n") [R7]',
    ),
    ("tuned/repo", [], "tuned.repo: not a string (found a list) [R7]"),
    ("tuned/files", None, "tuned.files: not a list (found null) [R7]"),
    ("shards/0/sha256", None, "shards[0].sha256: not a SHA-256 (expected 64 lower-case hex digits, found null) [R7]"),
    ("files/0/sha256", "5", 'files[0].sha256: not a SHA-256 (expected 64 lower-case hex digits, found "5") [R7]'),
    ("files/0/mode", 1, 'files[0]: unknown key "mode" [R7]'),
    ("annotations/n", 1, 'annotations["n"]: not a string (found 1) [R7]'),
    ("annotations", "x", 'annotations: not an object (found "x") [R7]'),
    ("tensors/sum/kind", "xor", 'tensors["sum"].kind: unknown kind (expected one of copy tie exact sum, found "xor") [R7]'),
    ("tensors/sum/kind", ABSENT, 'tensors["sum"]: the key "kind" is missing [R7]'),
    ("tensors/sum/kind", [], 'tensors["sum"].kind: unknown kind (expected one of copy tie exact sum, found a list) [R7]'),
    ("tensors/sum/tie", "new", 'tensors["sum"]: unknown key "tie" [R7]'),
    ("tensors/copy/base", ABSENT, 'tensors["copy"]: the key "base" is missing [R7]'),
    ("tensors/copy/terms", [], 'tensors["copy"]: unknown key "terms" [R7]'),
    ("tensors/new/error", 0, 'tensors["new"]: unknown key "error" [R7]'),
    ("tensors/sum/error", ABSENT, 'tensors["sum"]: the key "error" is missing [R7]'),
    ("tensors/tied/tie", None, 'tensors["tied"].tie: not a string (found null) [R7]'),
    ("tensors/sum/terms", {}, 'tensors["sum"].terms: not a list (found an object) [R7]'),
    ("tensors/sum/terms/0", 3, 'tensors["sum"].terms[0]: not an object (found 3) [R7]'),
    # R8: sizes, shapes, names, counts
    ("shards/0/size", True, "shards[0].size: not a size (expected an integer from 0 to 9007199254740992, found true) [R8]"),
    ("shards/0/size", -1, "shards[0].size: not a size (expected an integer from 0 to 9007199254740992, found -1) [R8]"),
    ("tuned/bytes", 1.0, "tuned.bytes: not a size (expected an integer from 0 to 9007199254740992, found 1.0) [R8]"),
    ("tensors/sum/shape", 4, 'tensors["sum"].shape: not a shape (expected a list of at most 8) [R8]'),
    ("tensors/sum/shape", [1] * 9, 'tensors["sum"].shape: not a shape (expected a list of at most 8) [R8]'),
    ("tensors/sum/shape", [4, True], 'tensors["sum"].shape[1]: not an extent (expected an integer from 0 to 1099511627776) [R8]'),
    ("tensors/sum/shape", [-4], 'tensors["sum"].shape[0]: not an extent (expected an integer from 0 to 1099511627776) [R8]'),
    ("tensors/sum/shape", [2**40 + 1], 'tensors["sum"].shape[0]: not an extent (expected an integer from 0 to 1099511627776) [R8]'),
    ("tensors/sum/shape", [2**40, 2**13], 'tensors["sum"].shape: too large (expected at most 9007199254740992 bytes) [R8]'),
    ("base/tensors/w/shape", [2**40] * 8, 'base.tensors["w"].shape: too large (expected at most 9007199254740992 bytes) [R8]'),
    ("tensors/", GOOD["tensors"]["copy"], 'tensors[""]: not a tensor name (expected 1 to 512 bytes, found 0) [R8]'),
    ("base/tensors/" + "x" * 513, BASE_TENSORS["w"], f'base.tensors["{"x" * 160}..."]: not a tensor name (expected 1 to 512 bytes, found 513) [R8]'),
    ("tensors/a\nb", GOOD["tensors"]["copy"], 'tensors["a\\nb"]: a tensor name holds a control character [R8]'),
    ("tensors/sum/terms", [SIGN] * 17, 'tensors["sum"].terms: too many (expected at most 16, found 17) [R8]'),
    ("shards", GOOD["shards"] * 10_001, "shards: too many (expected at most 10000, found 10001) [R8]"),
    ("files", GOOD["files"] * 10_001, "files: too many (expected at most 10000, found 10001) [R8]"),
    ("tuned/files", ["a.safetensors"] * 10_001, "tuned.files: too many (expected at most 10000, found 10001) [R8]"),
    ("tensors/sum/terms/0/parts/sign", 4.5, 'tensors["sum"].terms[0].parts["sign"]: not a size (expected an integer from 0 to 9007199254740992, found 4.5) [R8]'),
    # R9: dtypes
    ("tensors/sum/dtype", "F4", 'tensors["sum"].dtype: unknown dtype (expected one of BOOL U8 I8 U16 I16 U32 I32 U64 I64 F8_E4M3 F8_E5M2 F8_E8M0 F16 BF16 F32 F64, found "F4") [R9]'),
    ("base/tensors/w/dtype", 16, 'base.tensors["w"].dtype: unknown dtype (expected one of BOOL U8 I8 U16 I16 U32 I32 U64 I64 F8_E4M3 F8_E5M2 F8_E8M0 F16 BF16 F32 F64, found no string) [R9]'),
    # R10: the base
    ("base/tensors/y", BASE_TENSORS["w"], 'base.tensors["y"]: no operand names this tensor [R10]'),
    ("base/fingerprint", A, f"base.fingerprint: not the fingerprint of base.tensors (expected {FINGERPRINT}, found {A}) [R10]"),
    ("tensors/more", GOOD["tensors"]["copy"] | {"base": "z", "file": 1}, 'tensors["more"].base: base.tensors has no "z" [R10]'),
    ("tensors/padded/base", [["h", 0, 1], ["z", 0, 1]], 'tensors["padded"].base[1]: base.tensors has no "z" [R10]'),
    # R11: files
    ("tuned/files/0", "weights.bin", 'tuned.files[0]: not a .safetensors file (found "weights.bin") [R11]'),
    ("tuned/files/1", "Model-1.safetensors", 'tuned.files: the file "Model-1.safetensors" is named twice [R11]'),
    ("files/0/file", "delta.safetensors", 'files: the file "delta.safetensors" is named twice [R11]'),
    ("files", [GOOD["files"][0], GOOD["files"][0]], 'files: the file "config.json" is named twice [R11]'),
    ("shards", GOOD["shards"] * 2, 'shards: the file "delta.safetensors" is named twice [R11]'),
    ("base/files", GOOD["base"]["files"] * 2, 'base.files: the file "model.safetensors" is named twice [R11]'),
    ("tensors/tied/file", 2, 'tensors["tied"].file: not the next file of tuned.files (expected 1 to 1, found 2) [R11]'),
    ("tensors/tied/file", 0, 'tensors["tied"].file: not the next file of tuned.files (expected 1 to 1, found 0) [R11]'),
    # R12: operands
    ("tensors/padded/base", [], 'tensors["padded"].base: not an operand (expected a name or a list of 1 to 4096 pieces) [R12]'),
    ("tensors/padded/base", MANY, 'tensors["padded"].base: not an operand (expected a name or a list of 1 to 4096 pieces) [R12]'),
    ("tensors/padded/base", None, 'tensors["padded"].base: not an operand (expected a name or a list of 1 to 4096 pieces) [R12]'),
    ("tensors/padded/base/0", ["h", 0], 'tensors["padded"].base[0]: not a piece (expected [name, start, stop]) [R12]'),
    ("tensors/padded/base/0", [0, 0, 1], 'tensors["padded"].base[0][0]: not a string (found 0) [R7]'),
    ("tensors/padded/base/0", ["h", -1, 1], 'tensors["padded"].base[0][1]: not a size (expected an integer from 0 to 9007199254740992, found -1) [R8]'),
    ("tensors/padded/base/0", ["h", 3, 3], 'tensors["padded"].base[0]: not a run of "h" (expected start < stop <= 16, found 3 and 3) [R12]'),
    ("tensors/padded/base/0", ["h", 0, 17], 'tensors["padded"].base[0]: not a run of "h" (expected start < stop <= 16, found 0 and 17) [R12]'),
    ("tensors/padded/base", [["h", 0, 16], ["h", 0, 5]], 'tensors["padded"].base: more elements than the tensor has (expected at most 20, found 21) [R12]'),
    ("tensors/sum/shape", [8, 4], 'tensors["sum"].base: "w" has another shape (expected [8, 4], found [4, 8]) [R12]'),
    # R13: dtypes of operands
    ("tensors/copy/dtype", "U32", 'tensors["copy"].base: "i" has the wrong dtype for this operand (expected U32, found I32) [R13]'),
    ("tensors/padded/dtype", "BF16", 'tensors["padded"].base: "h" has the wrong dtype for this operand (expected BF16, found F16) [R13]'),
    ("tensors/sum/dtype", "F64", 'tensors["sum"].dtype: no sum has this dtype (expected one of F16 BF16 F32, found F64) [R13]'),
    ("tensors/sum/base", [["i", 0, 3], ["w", 0, 1]], 'tensors["sum"].base: "i" has the wrong dtype for this operand (expected F16 or BF16 or F32, found I32) [R13]'),
    ("tensors/sum/base", [["h", 0, 3], ["w", 0, 1]], 'tensors["sum"].base: "w" has the wrong dtype for this operand (expected F16, found BF16) [R13]'),
    # R14: ties
    ("tensors/tied/tie", "nobody", 'tensors["tied"].tie: no tensor "nobody" [R14]'),
    ("tensors/tied/tie", "tied", 'tensors["tied"].tie: "tied" is a tie itself [R14]'),
    ("tensors/tied/dtype", "F16", 'tensors["tied"].tie: "sum" has another dtype [R14]'),
    ("tensors/tied/shape", [8, 4], 'tensors["tied"].tie: "sum" has another shape [R14]'),
    ("tensors/tied/digest", B, 'tensors["tied"].tie: "sum" has another digest [R14]'),
    # R15: exact tensors
    ("tensors/new/terms", [], 'tensors["new"].terms: not one exact term (expected one of raw rows patch steps, found none) [R15]'),
    ("tensors/new/terms", [SIGN], 'tensors["new"].terms: not one exact term (expected one of raw rows patch steps, found sign) [R15]'),
    ("tensors/new/terms", [RAW, PATCH], 'tensors["new"].terms: not one exact term (expected one of raw rows patch steps, found raw patch) [R15]'),
    ("tensors/new/terms", [PATCH], 'tensors["new"]: patch needs an operand [R15]'),
    ("tensors/padded/terms", [RAW], 'tensors["padded"]: raw takes no operand [R15]'),
    # R16: terms of a sum
    ("tensors/sum/terms", [RAW], 'tensors["sum"].terms[0]: raw is no term of a sum [R16]'),
    ("tensors/sum/terms/1", RAW | {"codec": "steps"}, 'tensors["sum"].terms[1]: steps is no term of a sum [R16]'),
    ("tensors/sum/terms", [ROWS, SIGN], 'tensors["sum"].terms[1]: sign comes too late (expected the additive terms, then at most one rows, then at most one patch) [R16]'),
    ("tensors/sum/terms", [PATCH, ROWS], 'tensors["sum"].terms[1]: rows comes too late (expected the additive terms, then at most one rows, then at most one patch) [R16]'),
    ("tensors/sum/terms", [PATCH, PATCH], 'tensors["sum"].terms[1]: patch comes too late (expected the additive terms, then at most one rows, then at most one patch) [R16]'),
    # R18, R19: error and terms
    ("tensors/sum/error", -0.5, 'tensors["sum"].error: not an error (expected null or a number from 0 up, found -0.5) [R18]'),
    ("tensors/sum/error", False, 'tensors["sum"].error: not an error (expected null or a number from 0 up, found false) [R18]'),
    ("tensors/sum/error", "0", 'tensors["sum"].error: not an error (expected null or a number from 0 up, found "0") [R18]'),
    ("tensors/sum/terms/0/codec", "wavelet", 'tensors["sum"].terms[0].codec: unknown codec "wavelet" (expected one of sign int codebook lowrank sparse raw rows patch steps) [R19]'),
    ("tensors/sum/terms/0/params", [], 'tensors["sum"].terms[0].params: not an object (found a list) [R7]'),
    ("tensors/sum/terms/0/params/axis", {}, 'tensors["sum"].terms[0].params["axis"]: a param is no object [R19]'),
    ("tensors/sum/terms/0/params/axis", [1, [{}]], 'tensors["sum"].terms[0].params["axis"][1][0]: a param is no object [R19]'),
    # R22: the parts must fit into the shards
    ("shards/0/size", 81, "shards: the parts do not fit (expected at least 82 bytes, found 81) [R22]"),
    ("shards", [], "shards: the parts do not fit (expected at least 72 bytes, found 0) [R22]"),
]  # fmt: skip


def test_the_good_one_is_read() -> None:
    assert list(parse(GOOD).tensors) == list(GOOD["tensors"])


@pytest.mark.parametrize(
    ("place", "value", "message"),
    FAULTS,
    ids=[f"{place[:40]}-{i}" for i, (place, *_) in enumerate(FAULTS)],
)
def test_fault(place: str, value: Any, message: str) -> None:
    document = copy.deepcopy(GOOD)
    at(place)(document, value)
    with pytest.raises(FormatError) as caught:
        parse(document)
    assert str(caught.value) == message
    versions = caught.value.rule == "R6" or "unknown codec" in message
    assert type(caught.value) is (VersionError if versions else ManifestError)


TEXT_FAULTS = {
    "empty": (b"", "bitdelta.json: not JSON at line 1, column 1 [R5]"),
    "cut": (b'{"format": "bitdelta/1"', "bitdelta.json: not JSON at line 1, column 24 [R5]"),
    "two": (b"{}\n{}", "bitdelta.json: not JSON at line 2, column 1 [R5]"),
    "list": (b"[]", "bitdelta.json: not a JSON object (found a list) [R5]"),
    "number": (b"7", "bitdelta.json: not a JSON object (found 7) [R5]"),
    "mark": (b"\xef\xbb\xbf{}", "bitdelta.json: begins with a byte order mark [R5]"),
    "latin-1": (b'{"\xe9": 1}', "bitdelta.json: not UTF-8 at byte 2 [R5]"),
    "utf-16": ("{}".encode("utf-16-le"), "bitdelta.json: not JSON at line 1, column 2 [R5]"),
    "encoded surrogate": (b'{"\xed\xa0\x80": 1}', "bitdelta.json: not UTF-8 at byte 2 [R5]"),
    "surrogate": (
        b'{"format": "\\ud800"}',
        "bitdelta.json: a string holds half a surrogate pair [R5]",
    ),
    "surrogate key": (
        b'{"\\udc00": 1}',
        "bitdelta.json: a string holds half a surrogate pair [R5]",
    ),
    "twice": (
        b'{"format": "bitdelta/1", "format": "bitdelta/1"}',
        'bitdelta.json: the key "format" stands twice in one object [R5]',
    ),
    "twice, escaped": (
        b'{"tensors": {"a": 1, "\\u0061": 2}}',
        'bitdelta.json: the key "a" stands twice in one object [R5]',
    ),
    "NaN": (b'{"a": NaN}', "bitdelta.json: NaN is not JSON [R5]"),
    "Infinity": (b'{"a": [Infinity]}', "bitdelta.json: Infinity is not JSON [R5]"),
    "-Infinity": (b'{"a": -Infinity}', "bitdelta.json: -Infinity is not JSON [R5]"),
    "1e999": (b'{"a": 1e999}', "bitdelta.json: a number beyond all doubles (found 1e999) [R5]"),
    "2^53 + 1": (
        b'{"a": 9007199254740993}',
        "bitdelta.json: an integer beyond 2^53 (found 9007199254740993) [R5]",
    ),
    "-2^53 - 1": (
        b'{"a": -9007199254740993}',
        "bitdelta.json: an integer beyond 2^53 (found -9007199254740993) [R5]",
    ),
    "many digits": (
        b'{"a": ' + b"9" * 100_000 + b"}",
        f"bitdelta.json: an integer beyond 2^53 (found {'9' * 24}) [R5]",
    ),
    "17 deep": (
        b'{"a": ' + b"[" * 16 + b"]" * 16 + b"}",
        "bitdelta.json: nested too deep (expected at most 16) [R5]",
    ),
    "a million deep": (
        b'{"a": ' + b"[" * 1_000_000,
        "bitdelta.json: nested too deep (expected at most 16) [R5]",
    ),
    "tab in a string": (b'{"a\tb": 1}', "bitdelta.json: not JSON at line 1, column 4 [R5]"),
    "version": (
        b'{"format": "bitdelta/2", "anything": {"may": ["stand", "here"]}}',
        'format: another format (expected "bitdelta/1", found "bitdelta/2") [R6]',
    ),
}


@pytest.mark.parametrize("fault", TEXT_FAULTS)
def test_text_fault(fault: str) -> None:
    data, message = TEXT_FAULTS[fault]
    with pytest.raises(FormatError) as caught:
        Manifest.parse(data)
    assert str(caught.value) == message


def test_16_levels_are_not_too_deep() -> None:
    with pytest.raises(VersionError):
        Manifest.parse(b'{"a": ' + b"[" * 15 + b"]" * 15 + b"}")


def test_more_than_64_mib_are_not_parsed() -> None:
    with pytest.raises(ManifestError) as caught:
        Manifest.parse(b" " * (64 * 2**20 + 1))
    assert str(caught.value) == (
        "bitdelta.json: too large (expected at most 67108864 bytes, found 67108865) [R5]"
    )


def test_an_unknown_codec_and_a_newer_format_name_the_way_on() -> None:
    for place, value in (("format", "bitdelta/2"), ("tensors/sum/terms/0/codec", "wavelet")):
        document = copy.deepcopy(GOOD)
        at(place)(document, value)
        with pytest.raises(VersionError) as caught:
            parse(document)
        assert "pip install -U bitdelta-hub" in caught.value.fix
