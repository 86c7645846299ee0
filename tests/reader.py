"""A second reader of `bitdelta/1`, written from the specification's text alone.

It shares no line with the package, so that an error in one of them shows. It reads whole tensors
into memory and checks digests, but of the other rules only those that it needs to go on.
"""

from __future__ import annotations

import hashlib
import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from tests.hashing import blake3

Array = np.ndarray[Any, Any]
Stored = dict[str, tuple[str, list[int], Array]]  # name -> dtype, shape, bit patterns

WIDTH = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F16": 2, "BF16": 2, "F32": 4, "F64": 8,
}  # fmt: skip
MANTISSA = {"F8_E4M3": 3, "F8_E5M2": 2, "F16": 10, "BF16": 7, "F32": 23, "F64": 52}


def read_safetensors(path: Path) -> Stored:
    """Every array of a safetensors file as bit patterns in its shape."""
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    header.pop("__metadata__", None)
    found: Stored = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        bits = np.frombuffer(data[begin + start : begin + stop], f"<u{WIDTH[entry['dtype']]}")
        found[name] = entry["dtype"], entry["shape"], bits.reshape(entry["shape"])
    return found


def read_delta(delta: Path, base: Path) -> dict[str, bytes]:
    """The bytes of every rebuilt tensor; AssertionError where a digest or hash is another."""
    manifest = json.loads((delta / "bitdelta.json").read_bytes())
    assert manifest["format"] == "bitdelta/1"
    shards: Stored = {}
    for file in manifest["files"] + manifest["shards"]:
        data = (delta / file["file"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["size"], file["sha256"])
    for file in manifest["shards"]:
        shards |= read_safetensors(delta / file["file"])
    bases: Stored = {}
    for path in base.glob("*.safetensors"):
        bases |= read_safetensors(path)
    check({k: bases[k][2].tobytes() for k in manifest["base"]["tensors"]}, manifest["base"])
    rebuilt = {}
    for name, entry in manifest["tensors"].items():
        target = entry.get("tie", name)
        with np.errstate(all="ignore"):  # infinities are values like others
            rebuilt[name] = rebuild(target, manifest["tensors"][target], shards, bases).tobytes()
    check(rebuilt, manifest)
    return rebuilt


def check(found: dict[str, bytes], recorded: dict[str, Any]) -> None:
    if found:
        digests = dict(zip(found, blake3(list(found.values())), strict=True))
        for name, digest in digests.items():
            assert f"blake3:{digest}" == recorded["tensors"][name]["digest"], name


def rebuild(name: str, entry: dict[str, Any], shards: Stored, bases: Stored) -> Array:
    """The bit patterns of one tensor, flat."""
    shape, dtype, terms = entry["shape"], entry["dtype"], entry.get("terms", [])
    view = (prod(shape[:-2]), *([1, 1, *shape][-2:]))
    source, bits = operand(entry.get("base"), dtype, prod(shape), bases)
    parts = [{p: shards[f"{name}_{i}_{p}"][2] for p in t["parts"]} for i, t in enumerate(terms)]
    if entry["kind"] == "sum":
        total = widen(bits, source)
        for term, stored in zip(terms, parts, strict=True):
            if term["codec"] in ADDED:
                ADDED[term["codec"]](total, term["params"], stored, *view)
        bits = narrow(total, dtype)
    for term, stored in zip(terms, parts, strict=True):
        if term["codec"] in SET:
            SET[term["codec"]](bits, term["params"], stored, view[2], dtype)
    return bits


def operand(base: Any, dtype: str, n: int, bases: Stored) -> tuple[str, Array]:
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
    return values.astype({"F16": "<f2", "F32": "<f4"}[dtype]).view(f"<u{WIDTH[dtype]}")


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
    unpack = zstandard.ZstdDecompressor().decompress
    at = 0
    for i, (direct, anchor, *sizes) in enumerate(parts["chunk"].tolist()):
        frames = []
        for size in sizes:
            frames.append(unpack(parts["data"][at : at + size].tobytes()) if size else b"")
            at += size
        part = bits[i * chunk : (i + 1) * chunk]
        part[:] = unstep(part, dtype, direct, anchor, *frames)


def unstep(base: Array, dtype: str, direct: int, anchor: int, *frames: bytes) -> Array:
    """The tuned bit patterns of one chunk of `steps`."""
    symbols, low, escapes = (np.frombuffer(frame, np.uint8) for frame in frames)
    w, p = 8 * WIDTH[dtype], MANTISSA.get(dtype)
    signed, sign = np.dtype(f"<i{w // 8}"), base.dtype.type(1 << (w - 1))
    most = w - 8 if p is None else min(p, w - 8)
    context = np.zeros(len(base), np.int64)
    if p is not None:
        context = ((base & ~sign) >> base.dtype.type(p)).astype(np.int64)
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
        bit = np.unpackbits(plane, count=count, bitorder="little")
        d[:count] |= bit.astype(signed) << signed.type(j)
    origin = sorted_base if p is None else sorted_base & ~sign
    v = np.where(context < direct, d, d + origin.view(signed))
    if p is not None:
        v = np.where(v < 0, v ^ signed.type((1 << (w - 1)) - 1), v)
    tuned = np.empty_like(base)
    tuned[order] = v.view(base.dtype) if p is None else v.view(base.dtype) ^ (sorted_base & sign)
    return tuned


ADDED = {"sign": add_sign, "int": add_int, "codebook": add_codebook}
ADDED |= {"lowrank": add_lowrank, "sparse": add_sparse}
SET = {"raw": set_raw, "rows": set_rows, "patch": set_patch, "steps": set_steps}
