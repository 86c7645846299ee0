"""A second reader of `bitdelta/1`, written from the specification's text alone.

It shares no line with the package, so that an error in one of them shows. It reads whole tensors
into memory and checks digests, but of the other rules only those that it needs to go on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

Array = np.ndarray[Any, Any]
Stored = tuple[str, list[int], Array]  # dtype, shape, bit patterns

WIDTH = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F16": 2, "BF16": 2, "F32": 4, "F64": 8,
}  # fmt: skip
MANTISSA = {"F8_E4M3": 3, "F8_E5M2": 2, "F16": 10, "BF16": 7, "F32": 23, "F64": 52}

IV = (
    0x6A09E667,
    0xBB67AE85,
    0x3C6EF372,
    0xA54FF53A,
    0x510E527F,
    0x9B05688C,
    0x1F83D9AB,
    0x5BE0CD19,
)
ORDER = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
MIXES = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
         (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))  # fmt: skip
START, END, PARENT, ROOT = 1, 2, 4, 8


def _compress(cv: Array, words: Array, counter: Array, length: Array, flags: Array) -> Array:
    """BLAKE3's compression of `words` `[16, n]` with chaining values `[8, n]`, side by side."""
    n = words.shape[1]
    low, high = counter & 0xFFFFFFFF, counter >> 32
    s = [*cv, *(np.full(n, IV[i], np.uint32) for i in range(4))]
    s += [x.astype(np.uint32) for x in (low, high, length, flags)]
    for _ in range(7):
        for i, (a, b, c, d) in enumerate(MIXES):
            for word, left, right in ((words[2 * i], 16, 12), (words[2 * i + 1], 8, 7)):
                s[a] = s[a] + s[b] + word
                s[d] = _turn(s[d] ^ s[a], left)
                s[c] = s[c] + s[d]
                s[b] = _turn(s[b] ^ s[c], right)
        words = words[list(ORDER)]
    return np.stack([s[i] ^ s[i + 8] for i in range(8)])


def _turn(x: Array, by: int) -> Array:
    return (x >> np.uint32(by)) | (x << np.uint32(32 - by))


def blake3(data: bytes) -> str:
    """The 32-byte BLAKE3 hash of `data` in hex."""
    n = max(1, -(-len(data) // 1024))
    sizes = np.minimum(1024, len(data) - 1024 * np.arange(n))
    words = np.frombuffer(data.ljust(1024 * n, b"\0"), "<u4").reshape(n, 16, 16).T.astype(np.uint32)
    cv = np.tile(np.array(IV, np.uint32)[:, None], n)
    root = ROOT if n == 1 else 0
    for block in range(16):
        live = n if block == 0 or 64 * block < sizes[-1] else n - 1  # all but the last are full
        left = sizes[:live] - 64 * block
        flags = START * (block == 0) + np.where(left <= 64, END | root, 0)
        part = words[:, block, :live]
        cv[:, :live] = _compress(cv[:, :live], part, np.arange(live), np.minimum(left, 64), flags)
    while (n := cv.shape[1]) > 1:
        half = n // 2
        pairs = cv[:, : 2 * half].T.reshape(half, 16).T
        flags = np.full(half, PARENT | (ROOT if n == 2 else 0))
        zero, full = np.zeros(half, np.int64), np.full(half, 64)
        merged = _compress(
            np.tile(np.array(IV, np.uint32)[:, None], half), pairs, zero, full, flags
        )
        cv = np.concatenate([merged, cv[:, 2 * half :]], axis=1)
    return cv[:, 0].astype("<u4").tobytes().hex()


def read_safetensors(path: Path) -> dict[str, Stored]:
    """Every array of a safetensors file as bit patterns in its shape."""
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        bits = np.frombuffer(data[begin + start : begin + stop], f"<u{WIDTH[entry['dtype']]}")
        found[name] = entry["dtype"], entry["shape"], bits.reshape(entry["shape"])
    return found


def read_delta(delta: Path, base: Path) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of every rebuilt tensor; AssertionError where a digest or hash is another."""
    manifest = json.loads((delta / "bitdelta.json").read_bytes())
    assert manifest["format"] == "bitdelta/1"
    shards: dict[str, Stored] = {}
    for file in manifest["shards"] + manifest["files"]:
        data = (delta / file["file"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["size"], file["sha256"])
    for file in manifest["shards"]:
        shards |= read_safetensors(delta / file["file"])
    bases: dict[str, Stored] = {}
    for path in sorted(base.glob("*.safetensors")):
        bases |= read_safetensors(path)
    for name, known in manifest["base"]["tensors"].items():
        assert f"blake3:{blake3(bases[name][2].tobytes())}" == known["digest"]
    for name, entry in manifest["tensors"].items():
        target = entry.get("tie", name)
        with np.errstate(all="ignore"):  # infinities are values like others
            rebuilt = rebuild(target, manifest["tensors"][target], shards, bases).tobytes()
        assert f"blake3:{blake3(rebuilt)}" == entry["digest"], name
        yield name, rebuilt


def rebuild(name: str, entry: dict[str, Any], shards: dict[str, Stored], bases: dict[str, Stored]) -> Array:  # fmt: skip
    """The bit patterns of one tensor, flat."""
    shape, dtype, terms = entry["shape"], entry["dtype"], entry.get("terms", [])
    view = (prod(shape[:-2]), *([1, 1, *shape][-2:]))
    source, bits = operand(entry.get("base"), dtype, prod(shape), bases)
    if entry["kind"] == "sum":
        total = widen(bits, source)
        for i, term in enumerate(terms):
            if term["codec"] in ADDED:
                parts = {p: shards[f"{name}_{i}_{p}"][2] for p in term["parts"]}
                ADDED[term["codec"]](total, term["params"], parts, *view)
        bits = narrow(total, dtype)
    for i, term in enumerate(terms):
        if term["codec"] in SET:
            parts = {p: shards[f"{name}_{i}_{p}"][2] for p in term["parts"]}
            SET[term["codec"]](bits, term["params"], parts, view[2], dtype)
    return bits


def operand(base: Any, dtype: str, n: int, bases: dict[str, Stored]) -> tuple[str, Array]:
    """Dtype and bit patterns of what a tensor of `n` elements starts from."""
    pieces = [[base, 0, n]] if isinstance(base, str) else base or []
    dtype = bases[pieces[0][0]][0] if pieces else dtype
    out = np.zeros(n, f"<u{WIDTH[dtype]}")
    at = 0
    for name, start, stop in pieces:
        out[at : at + stop - start] = bases[name][2].reshape(-1)[start:stop]
        at += stop - start
    return dtype, out


def widen(bits: Array, dtype: str) -> Array:
    if dtype == "BF16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view({"F16": np.float16, "F32": np.float32}[dtype]).astype(np.float32)


def narrow(values: Array, dtype: str) -> Array:
    """Rounded once, to nearest, ties to even; too large is infinite."""
    if dtype == "BF16":
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    with np.errstate(over="ignore"):
        kind = {"F16": np.float16, "F32": np.float32}[dtype]
        return values.astype(kind).view(f"<u{WIDTH[dtype]}")


def codes(runs: Array, n: int, bits: int) -> Array:
    """The `n` codes of each run along the last axis, int64."""
    stream = np.unpackbits(runs, axis=-1, bitorder="little")[..., : n * bits]
    return stream.reshape(*runs.shape[:-1], n, bits).astype(np.int64) @ (1 << np.arange(bits))


def half(part: Array, exponent: int) -> Array:
    return part.view(np.float16).astype(np.float32) * np.float32(2.0**exponent)


def add_sign(total: Array, params: Any, parts: Any, b: int, r: int, c: int) -> None:
    scale = np.ones((1, 1, 1), np.float32)
    if params["axis"] == "tensor":
        scale = parts["scale"].view(np.float32).reshape(b, 1, 1)
    if "row_scale" in parts:
        scale = half(parts["row_scale"], params["row_exponent"]).reshape(b, r, 1)
    if "col_scale" in parts:
        scale = scale * half(parts["col_scale"], params["col_exponent"]).reshape(b, 1, c)
    bits = codes(parts["sign"], c, 1).reshape(b, r, c)
    total += np.where(bits, scale, -scale).reshape(-1)


def add_int(total: Array, params: Any, parts: Any, b: int, r: int, c: int) -> None:
    bits = params["bits"]
    group = np.arange(c) // (params["group"] or max(c, 1))
    q = 2 * codes(parts["code"], c, bits) - (2**bits - 1)
    if params["zeros"]:
        q = q + parts["zero"].view(np.int8)[:, group]
    scale = half(parts["scale"], params["exponent"])[:, group]
    with np.errstate(over="ignore"):
        total += (scale * q.astype(np.float32)).reshape(-1)


def add_codebook(total: Array, params: Any, parts: Any, b: int, r: int, c: int) -> None:
    levels = half(parts["levels"], params["exponent"])
    each = -(-r // params["rows"]) if params["rows"] else 1
    within = np.arange(r) // params["rows"] if params["rows"] else np.zeros(r, np.int64)
    table = (np.arange(b)[:, None] * each + within).reshape(b * r, 1)
    total += levels[table, codes(parts["index"], c, params["bits"])].reshape(-1)


def add_lowrank(total: Array, params: Any, parts: Any, b: int, r: int, c: int) -> None:
    value = np.float32(0)
    for g, (_, u_bits, v_bits) in enumerate(params["groups"]):
        u = 2 * codes(parts[f"u{g}"], r, u_bits) - (2**u_bits - 1)
        v = 2 * codes(parts[f"v{g}"], c, v_bits) - (2**v_bits - 1)
        scaled = parts[f"gain{g}"].astype(np.int64)[:, :, None] * u
        exact = np.swapaxes(scaled, 1, 2) @ v
        scale = parts["scale"].view(np.float32)[:, g].reshape(b, 1, 1)
        group = exact.astype(np.float32) * scale
        value = value + group if g else group
    total += value.reshape(-1)


def positions(params: Any, parts: Any) -> Array:
    count, low = params["count"], params["low_bits"]
    if params["positions"] == "bitmap":
        return np.flatnonzero(np.unpackbits(parts["bitmap"], bitorder="little"))
    ones = np.flatnonzero(np.unpackbits(parts["high"], bitorder="little"))
    return (ones - np.arange(count)) * 2**low + codes(parts["low"], count, low)


def add_sparse(total: Array, params: Any, parts: Any, b: int, r: int, c: int) -> None:
    bits = params["bits"]
    if bits == 16:
        value = half(parts["value"], params["exponent"])
    else:
        q = 2 * codes(parts["code"], params["count"], bits) - (2**bits - 1)
        value = parts["scale"].view(np.float32) * q.astype(np.float32)
    total[positions(params, parts)] += value


def set_raw(bits: Array, params: Any, parts: Any, c: int, dtype: str) -> None:
    bits[:] = parts["data"].reshape(-1)


def set_rows(bits: Array, params: Any, parts: Any, c: int, dtype: str) -> None:
    if params["count"] and c:
        bits.reshape(-1, c)[parts["index"]] = parts["data"]


def set_patch(bits: Array, params: Any, parts: Any, c: int, dtype: str) -> None:
    bits[positions(params, parts)] = parts["value"]


def set_steps(bits: Array, params: Any, parts: Any, c: int, dtype: str) -> None:
    chunk = max(1, 2**17 // max(1, c)) * c
    at = 0
    for i, head in enumerate(parts["chunk"].tolist()):
        frames = []
        for size in head[2:]:
            frame = parts["data"][at : at + size].tobytes()
            frames.append(zstandard.ZstdDecompressor().decompress(frame) if frame else b"")
            at += size
        part = bits[i * chunk : (i + 1) * chunk]
        part[:] = unstep(
            part, head[0], head[1], dtype, *(np.frombuffer(f, np.uint8) for f in frames)
        )


def unstep(base: Array, direct: int, anchor: int, dtype: str, symbols: Array, low: Array, escapes: Array) -> Array:  # fmt: skip
    """The tuned bit patterns of one chunk of `steps`."""
    w, p = 8 * WIDTH[dtype], MANTISSA.get(dtype)
    signed, sign = np.dtype(f"<i{w // 8}"), base.dtype.type(1 << (w - 1))
    most = w - 8 if p is None else min(p, w - 8)
    context = np.zeros(len(base), np.int64)
    if p is not None:
        context = (base >> base.dtype.type(p) & base.dtype.type((1 << (w - 1 - p)) - 1)).astype(
            np.int64
        )
    if dtype == "F64":
        context = np.clip(context - 896, 0, 255)
    order = np.argsort(context, kind="stable")
    context, sorted_base = context[order], base[order]
    k = np.where(context < direct, most, np.clip(anchor - context, 0, most))
    h = symbols.view(np.int8).astype(signed)
    far = h == -128
    h[far] = np.ascontiguousarray(escapes.reshape(w // 8, -1).T).view(signed)[:, 0]
    d = h << k.astype(signed)
    for j in range(most):
        count = int(np.sum(k > j))
        plane, low = low[: -(-count // 8)], low[-(-count // 8) :]
        d[:count] |= np.unpackbits(plane, count=count, bitorder="little").astype(
            signed
        ) << signed.type(j)
    origin = sorted_base if p is None else sorted_base & ~sign
    v = np.where(context < direct, d, d + origin.view(signed))
    if p is not None:
        v = np.where(v < 0, v ^ signed.type((1 << (w - 1)) - 1), v)
    tuned = np.empty_like(base)
    tuned[order] = v.view(base.dtype) if p is None else v.view(base.dtype) ^ (sorted_base & sign)
    return tuned


ADDED = {"sign": add_sign, "int": add_int, "codebook": add_codebook, "lowrank": add_lowrank, "sparse": add_sparse}  # fmt: skip
SET = {"raw": set_raw, "rows": set_rows, "patch": set_patch, "steps": set_steps}
