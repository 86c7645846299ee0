"""Compress: the published rule, the same bytes always, what enters a scale, shards, refusals."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import bitdelta_hub.source
import bitdelta_hub.workers
from bitdelta_hub import Manifest, compress, plan, rebuild
from bitdelta_hub.errors import FormatError, PairError, StorageError, UsageError
from tests.handmade import bits, content, moved, noise, round_trip, save, save_pair
from tests.models import as_pickle, tensors


def stored(delta: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Every stored part of a delta."""
    found = {k: v for path in delta.glob("*.safetensors") for k, v in load_file(path).items()}
    # numpy has no bf16
    return {
        k: v.view(torch.int16).numpy() if v.dtype == torch.bfloat16 else v.numpy()
        for k, v in found.items()
    }


# The published rule


@pytest.mark.parametrize("shape", [(64, 48), (33, 47), (700, 1000), (3, 40, 24)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_bitdelta_is_the_published_rule(
    shape: tuple[int, ...], dtype: torch.dtype, tmp_path: Path
) -> None:
    base, tuned = noise(*shape, dtype=dtype), moved(noise(*shape, dtype=dtype), by=0.01)
    tuned[..., :5] = base[..., :5]
    trip = round_trip(tmp_path, save_pair(tmp_path, {"w": base}, {"w": tuned}), recipe="bitdelta")
    assert trip.codecs("w") == ["sign"]

    diff = (tuned.float() - base.float()).bfloat16().float()
    signs = np.packbits((diff >= 0).numpy().reshape(-1, shape[-1]), axis=1, bitorder="little")
    matrices = diff.abs().double().reshape(-1, math.prod(shape[-2:]))
    alpha = matrices.mean(dim=1).numpy()
    parts = stored(trip.delta)
    assert np.array_equal(parts["w_0_sign"], signs)
    assert parts["w_0_scale"].dtype == np.float32
    np.testing.assert_allclose(parts["w_0_scale"], alpha, rtol=1e-6)

    if dtype == torch.bfloat16:
        stored_alpha = torch.from_numpy(parts["w_0_scale"]).reshape(*shape[:-2], 1, 1)
        published = base + torch.where(diff >= 0, stored_alpha, -stored_alpha).bfloat16()
        gap = (trip.rebuilt["w"].float() - published.float()).abs()
        # A bf16 number has 8 significant bits; where base and scale cancel, those of the scale.
        exponent = torch.frexp(torch.maximum(published.float().abs(), stored_alpha)).exponent
        assert bool((gap <= 2.0 ** (exponent - 8)).all())


# The same bytes always


def shapes() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A pair with tensors of several blocks, odd widths, few changes, and every policy."""
    base = {
        "model.embed_tokens.weight": noise(300, 64),
        "tall.weight": noise(60_000, 17),
        "wide.weight": noise(20, 33_000),
        "square.weight": noise(900, 1000, dtype=torch.float32),
        "few.weight": noise(200, 300),
        "rows.weight": noise(200, 300, seed=3),
        "norm.weight": noise(512),
        "same.weight": noise(64, 64),
    }
    tuned = {name: moved(tensor) for name, tensor in base.items()}
    tuned["few.weight"] = base["few.weight"].clone()
    tuned["few.weight"][::50, ::50] += 1
    tuned["rows.weight"] = base["rows.weight"].clone()
    tuned["rows.weight"][7] += 1
    tuned["same.weight"] = base["same.weight"]
    tuned["wide.weight"][3, 7] = math.inf
    return base, tuned


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(base, tuned) of `shapes`."""
    return save_pair(tmp_path_factory.mktemp("varied"), *shapes())


REFERENCE: dict[tuple[Path, str], dict[str, bytes]] = {}
STEADY = ("bitdelta", "row1", "bitdelta-2", "magnitude-3", "exact")


def reference(varied: tuple[Path, Path], recipe: str, root: Path) -> dict[str, bytes]:
    """The files of the pair's delta as made with default settings, once a recipe."""
    key = (varied[0], recipe)
    if key not in REFERENCE:
        compress(varied[1], varied[0], root / "reference", recipe=recipe)
        REFERENCE[key] = content(root / "reference")
    return REFERENCE[key]


@pytest.mark.parametrize("recipe", STEADY)
@pytest.mark.parametrize("count", [1, 5])
def test_the_same_bytes_for_any_number_of_workers(
    count: int,
    recipe: str,
    varied: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = reference(varied, recipe, tmp_path)
    # The number follows from the cores; there is no argument for it.
    monkeypatch.setattr(bitdelta_hub.workers.os, "cpu_count", lambda: count)
    compress(varied[1], varied[0], tmp_path / "delta", recipe=recipe)
    assert content(tmp_path / "delta") == wanted


@pytest.mark.parametrize("threads", [1, 4])
def test_the_same_bytes_for_any_number_of_threads(
    threads: int, varied: tuple[Path, Path], tmp_path: Path
) -> None:
    wanted = reference(varied, "row1", tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        compress(varied[1], varied[0], tmp_path / "delta", recipe="row1")
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert content(tmp_path / "delta") == wanted


@pytest.mark.parametrize("recipe", STEADY)
@pytest.mark.parametrize("runs", [1, 16])
def test_the_same_bytes_for_any_size_of_block(
    runs: int,
    recipe: str,
    varied: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = reference(varied, recipe, tmp_path)
    # Blocks are a matter of speed, tuned per device: a user never sets them, a GPU has larger ones.
    sizes = dict.fromkeys(bitdelta_hub.source.BLOCK, runs * bitdelta_hub.source.RUN)
    monkeypatch.setattr(bitdelta_hub.source, "BLOCK", sizes)
    compress(varied[1], varied[0], tmp_path / "delta", recipe=recipe)
    assert content(tmp_path / "delta") == wanted
    rebuild(tmp_path / "delta", tmp_path / "out", base=varied[0])


def test_without_compiled_loops_the_bytes_are_the_same(
    varied: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = reference(varied, "row1", tmp_path)
    from bitdelta_hub.codecs import sign, sums

    found = [module for module in (sign, sums, bitdelta_hub.source) if hasattr(module, "compiled")]
    # numba is optional; where it is installed there is no argument to leave it out.
    for module in found:
        monkeypatch.setattr(module, "compiled", lambda: None)
    compress(varied[1], varied[0], tmp_path / "delta", recipe="row1")
    assert content(tmp_path / "delta") == wanted


def test_overwriting_gives_the_same_bytes(varied: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "delta"
    compress(varied[1], varied[0], out, recipe="exact", annotations={"made": "first"})
    (out / "stray").write_text("")
    compress(varied[1], varied[0], out, recipe="row1", overwrite=True)
    assert content(out) == reference(varied, "row1", tmp_path)


# What is not finite


def broken(tensor: torch.Tensor, values: dict[tuple[int, int], float]) -> torch.Tensor:
    changed = tensor.clone()
    for place, value in values.items():
        changed[place] = value
    return changed


NAN, INF = math.nan, math.inf
PLACES = [(0, 0), (5, 9), (63, 47)]


@pytest.mark.parametrize(
    ("recipe", "dtype"),
    [
        ("bitdelta", torch.bfloat16),
        ("bitdelta-2", torch.bfloat16),
        ("row1", torch.float16),
        ("int4", torch.float32),
        ("magnitude-3", torch.bfloat16),
    ],
)
@pytest.mark.parametrize(
    ("in_base", "in_tuned"),
    [(None, NAN), (None, INF), (NAN, None), (-INF, None), (INF, INF), (INF, -INF), (NAN, NAN)],
)
def test_elements_that_are_not_finite_are_kept_and_enter_no_scale(
    in_base: float | None,
    in_tuned: float | None,
    recipe: str,
    dtype: torch.dtype,
    tmp_path: Path,
) -> None:
    base, tuned = noise(64, 48, dtype=dtype), moved(noise(64, 48, dtype=dtype))
    for place in PLACES:  # as if these elements had not changed
        tuned[place] = base[place]
    plain = round_trip(
        tmp_path / "plain", save_pair(tmp_path / "plain", {"w": base}, {"w": tuned}), recipe=recipe
    )
    if in_base is not None:
        base = broken(base, dict.fromkeys(PLACES, in_base))
    if in_tuned is not None:
        tuned = broken(tuned, dict.fromkeys(PLACES, in_tuned))
    trip = round_trip(
        tmp_path / "bad", save_pair(tmp_path / "bad", {"w": base}, {"w": tuned}), recipe=recipe
    )
    assert trip.codecs("w") == [*plain.codecs("w"), "patch"]
    assert trip.entry("w").terms[-1].params["count"] == len(PLACES)
    scales = stored(trip.delta)
    for name, part in stored(plain.delta).items():
        assert scales[name].tobytes() == part.tobytes(), name
    for place in PLACES:
        assert bits(trip.rebuilt["w"][place]) == bits(tuned[place])
    assert trip.entry("w").error == pytest.approx(plain.entry("w").error, rel=0.01)


@pytest.mark.parametrize("choices", [{"recipe": "row1"}, {"skip": ["w"]}])
def test_unchanged_rows_with_a_nan_are_patched_too(choices: dict[str, Any], tmp_path: Path) -> None:
    """A sum may give a NaN another payload on other hardware, so none may pass through one."""
    base = broken(noise(4000, 48), {(1, 1): NAN})
    tuned = base.clone()
    tuned[-500:] = moved(base[-500:])
    trip = round_trip(tmp_path, save_pair(tmp_path, {"w": base}, {"w": tuned}), **choices)
    assert trip.codecs("w")[-1] == "patch"
    assert trip.entry("w").terms[-1].params["count"] == 1


def test_a_cast_base_with_a_nan_is_patched(tmp_path: Path) -> None:
    base = broken(noise(64, 48, dtype=torch.float32), {(1, 1): NAN, (2, 2): -INF})
    other = {"v.weight": noise(64, 48)}
    pair = save_pair(
        tmp_path, {"w": base, **other}, {"w": base.bfloat16(), "v.weight": moved(noise(64, 48))}
    )
    trip = round_trip(tmp_path, pair)
    assert trip.codecs("w") == ["patch"]
    assert trip.entry("w").error == 0
    assert bytes(bits(trip.rebuilt["w"])) == bytes(bits(base.bfloat16()))


def test_sums_that_overflow_are_kept_exactly(tmp_path: Path) -> None:
    """Every number is finite, but base plus scale is not in fp16."""
    base = torch.full((64, 48), 65_000.0, dtype=torch.float16)
    tuned = base.clone()
    tuned[:32] -= 4000
    tuned[32:] += 256
    trip = round_trip(tmp_path, save_pair(tmp_path, {"w": base}, {"w": tuned}))
    assert trip.codecs("w") == ["sign", "patch"]
    assert torch.isfinite(trip.rebuilt["w"]).all()
    assert torch.equal(trip.rebuilt["w"][32:], tuned[32:])


def test_diffs_that_overflow_fp32_are_kept_exactly(tmp_path: Path) -> None:
    base = noise(64, 48, dtype=torch.float32)
    tuned = moved(base)
    base[3], tuned[3] = -3e38, 3e38
    trip = round_trip(
        tmp_path, save_pair(tmp_path, {"w": base}, {"w": tuned}), allow_distant_base=True
    )
    assert torch.equal(trip.rebuilt["w"][3], tuned[3])
    assert trip.entry("w").terms[-1].params["count"] == 48
    assert 0 < trip.entry("w").error < 1  # type: ignore[operator]


def test_a_sign_of_zero_is_a_change(tmp_path: Path) -> None:
    zeros = torch.zeros(64, 48)
    turned = zeros.clone()
    turned[7, 7] = -0.0
    other = {"v.weight": noise(64, 48)}
    pair = save_pair(
        tmp_path, {"w": zeros, **other}, {"w": turned, "v.weight": moved(noise(64, 48))}
    )
    trip = round_trip(tmp_path, pair, recipe="exact")
    assert trip.codecs("w") == ["patch"]
    assert bytes(bits(trip.rebuilt["w"])) == bytes(bits(turned))


# Tensors of every kind


def test_tensors_of_every_shape_and_dtype(tmp_path: Path) -> None:
    odd = {
        "zero": torch.empty(0), "no_rows": torch.empty(0, 5), "no_cols": torch.empty(5, 0),
        "scalar": torch.tensor(1.5), "one": noise(1), "long": noise(5001), "column": noise(5001, 1),
        "narrow": noise(70_000, 3), "odd.weight": noise(33, 17), "deep": noise(2, 3, 20, 18),
        "double": torch.linspace(0, 1, 3000, dtype=torch.float64).reshape(50, 60),
        "int": torch.arange(5000).reshape(50, 100), "int8": torch.arange(100, dtype=torch.int8),
        "bool": torch.arange(5000).reshape(50, 100) % 3 == 0,
        "f8": noise(64, 64, dtype=torch.float32).to(torch.float8_e4m3fn),
        "f8x": noise(64, 64, dtype=torch.float32).to(torch.float8_e5m2),
        "fp32.weight": noise(64, 48, dtype=torch.float32),
        "fp16.weight": noise(64, 48, dtype=torch.float16),
        "model.embed_tokens.weight": noise(64, 64).double(),
    }  # fmt: skip
    changed = {name: shifted(tensor) for name, tensor in odd.items()}
    quantised = {"quant_method": "fp8"}
    pair = save_pair(tmp_path, odd, changed, quantization_config=quantised)
    for recipe in ("bitdelta", "exact", "int4", "dare"):
        trip = round_trip(tmp_path / recipe, pair, recipe=recipe)
        for name, tensor in changed.items():
            kind = trip.entry(name).kind
            if recipe == "exact":
                assert kind == "exact"
            elif tensor.dtype not in (torch.bfloat16, torch.float16, torch.float32):
                assert kind == "exact", name
            assert trip.rebuilt[name].shape == tensor.shape
            if kind == "exact":
                assert bytes(bits(trip.rebuilt[name])) == bytes(bits(tensor)), name
        lossy = {name for name in changed if trip.entry(name).kind == "sum"}
        assert lossy == (
            set() if recipe == "exact" else {"odd.weight", "fp32.weight", "fp16.weight"}
        )


def shifted(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype == torch.bool:
        return ~tensor
    if not tensor.is_floating_point():
        return tensor + 1
    return moved(tensor) if tensor.ndim else tensor + 1


@pytest.mark.parametrize("recipe", ["bitdelta", "row1", "delta-come", "exact"])
@pytest.mark.parametrize("ours", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("theirs", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes_mix(ours: torch.dtype, theirs: torch.dtype, recipe: str, tmp_path: Path) -> None:
    base = noise(64, 48, dtype=torch.float32)
    pair = save_pair(
        tmp_path,
        {"w.weight": base.to(theirs), "cast.weight": base.to(theirs).clone()},
        {"w.weight": moved(base).to(ours), "cast.weight": base.to(theirs).to(ours).clone()},
    )
    trip = round_trip(tmp_path, pair, recipe=recipe)
    assert trip.rebuilt["w.weight"].dtype == ours
    assert trip.manifest.exact("w.weight") == (recipe == "exact")
    assert trip.manifest.exact("cast.weight")
    assert trip.codecs("cast.weight") == []


# Shards, carried files, annotations


def test_shards_hold_whole_tensors_in_order(varied: tuple[Path, Path], tmp_path: Path) -> None:
    trip = round_trip(tmp_path, varied, max_shard_size=100_000)
    files = [shard.file for shard in trip.manifest.shards]
    assert len(files) > 2
    assert files == [f"delta-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    order = list(trip.manifest.tensors)
    places: list[int] = []
    for file in files:
        keys = load_file(trip.delta / file)
        inside = {name for name in order for key in keys if key.startswith(f"{name}_0_")}
        places += sorted(order.index(name) for name in inside)
    assert places == sorted(set(places))
    compress(varied[1], varied[0], tmp_path / "whole")
    rebuild(tmp_path / "whole", tmp_path / "again", base=varied[0])
    assert content(trip.out) == content(tmp_path / "again")


def test_the_manifest_in_the_folder_is_the_one_returned(
    varied: tuple[Path, Path], tmp_path: Path
) -> None:
    result = compress(
        varied[1], varied[0], tmp_path / "delta", annotations={"zeta": "z", "alpha": "a"}
    )
    text = (tmp_path / "delta" / "bitdelta.json").read_bytes()
    assert Manifest.parse(text) == result.manifest
    assert list(Manifest.parse(text).annotations) == ["alpha", "zeta"]
    assert result.delta_bytes == sum(map(len, content(tmp_path / "delta").values()))
    assert result.tuned_bytes == (varied[1] / "model.safetensors").stat().st_size
    assert result.ratio == result.tuned_bytes / result.delta_bytes
    assert result.exact_tensors + result.lossy_tensors == len(shapes()[0])


def test_nothing_changed_stores_nothing(tmp_path: Path) -> None:
    base = save(tmp_path / "base", {"w": noise(64, 48), "n": noise(9)})
    trip = round_trip(tmp_path, (base, base))
    assert [entry.kind for entry in trip.manifest.tensors.values()] == ["copy", "copy"]
    assert trip.written < 50
    assert content(trip.out) == content(base)


@pytest.mark.parametrize("side", ["base", "tuned", "both"])
def test_pickles_are_read_where_allowed(side: str, tmp_path: Path) -> None:
    base, tuned = save_pair(
        tmp_path, {"w": noise(64, 48), "n": noise(9)}, {"w": moved(noise(64, 48)), "n": noise(9)}
    )
    if side != "tuned":
        base = as_pickle(base, tmp_path / "base-bin")
    if side != "base":
        tuned = as_pickle(tuned, tmp_path / "tuned-bin")
    with pytest.raises(PairError) as caught:
        compress(tuned, base, tmp_path / "delta")
    assert caught.value.code == "BDH107"
    trip = round_trip(tmp_path, (base, tuned), allow_pickle=True)
    assert sorted(content(trip.out)) == ["config.json", "model.safetensors"]
    assert set(tensors(trip.out)) == {"w", "n"}


def test_numbered_pickles_become_numbered_safetensors(tmp_path: Path) -> None:
    base = save(tmp_path / "base", {"a": noise(64, 48), "b": noise(32, 32)})
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    torch.save({"a": moved(noise(64, 48))}, tuned / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": moved(noise(32, 32))}, tuned / "pytorch_model-00002-of-00002.bin")
    trip = round_trip(tmp_path, (base, tuned), allow_pickle=True, recipe="exact")
    assert sorted(content(trip.out)) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]


def test_a_distant_base_is_refused_unless_allowed(tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path, {"w": noise(64, 48)}, {"w": noise(64, 48, seed=9)})
    with pytest.raises(PairError) as caught:
        compress(tuned, base, tmp_path / "delta")
    assert caught.value.code == "BDH104"
    assert "pass --allow-distant-base" in caught.value.fix
    assert not (tmp_path / "delta").exists()
    round_trip(tmp_path, (base, tuned), allow_distant_base=True)


# What is refused


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return save_pair(tmp_path, {"w": noise(64, 48)}, {"w": moved(noise(64, 48))})


def refused(pair: tuple[Path, Path], out: Path, **options: Any) -> tuple[str, str, str]:
    """(code, message, fix) of the StorageError that `compress` raises."""
    before = content(pair[0]) | content(pair[1])
    with pytest.raises(StorageError) as caught:
        compress(pair[1], pair[0], out, **options)
    assert content(pair[0]) | content(pair[1]) == before
    return caught.value.code, str(caught.value), caught.value.fix


def test_what_stands_in_the_way_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder, file = tmp_path / "there", tmp_path / "file"
    folder.mkdir()
    file.write_text("mine")
    again = "pass --overwrite or choose another folder"
    assert refused(pair, folder) == ("BDH500", f"{folder}: already exists", again)
    assert refused(pair, file) == ("BDH500", f"{file}: already exists", again)
    assert refused(pair, file, overwrite=True) == (
        "BDH500",
        f"{file}: not a folder",
        "choose another folder",
    )
    assert refused(pair, file / "below") == (
        "BDH500",
        f"{file / 'below'}: a part of the path is not a folder",
        "check the path",
    )
    assert file.read_text() == "mine"


def test_the_output_is_never_an_input(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for out in (*pair, tmp_path):
        for overwrite in (False, True):
            assert refused(pair, out, overwrite=overwrite) == (
                "BDH500",
                f"{out}: holds an input of this run",
                "choose another output folder",
            )


def test_an_output_inside_an_input_leaves_the_input_alone(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    base, tuned = pair
    compress(tuned, base, tmp_path / "delta")
    before = content(tuned)
    compress(tuned, base, tuned / "delta")
    assert content(tuned / "delta") == content(tmp_path / "delta")
    shutil.rmtree(tuned / "delta")
    assert content(tuned) == before


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda base, tuned: (base, tuned / "none"), "{tuned}/none: no such file or folder"),
        (lambda base, tuned: (base / "none", tuned), "{base}/none: no such file or folder"),
    ],
)
def test_an_input_that_is_missing(
    broken: Callable[[Path, Path], tuple[Path, Path]],
    message: str,
    pair: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    base, tuned = broken(*pair)
    with pytest.raises(StorageError) as caught:
        compress(tuned, base, tmp_path / "delta")
    assert str(caught.value) == message.format(base=pair[0], tuned=pair[1])
    assert caught.value.fix == "check the path"


def test_a_delta_is_no_checkpoint(pair: tuple[Path, Path], tmp_path: Path) -> None:
    compress(pair[1], pair[0], tmp_path / "delta")
    with pytest.raises(StorageError) as caught:
        compress(tmp_path / "delta", pair[0], tmp_path / "again")
    assert str(caught.value) == f"{tmp_path / 'delta'}: a delta, not a checkpoint"
    assert caught.value.fix == f"bdhub rebuild {tmp_path / 'delta'} --base BASE --out FOLDER"


def test_names_that_no_manifest_can_hold_are_refused_before_anything_is_left(
    tmp_path: Path,
) -> None:
    long = "w" * 540
    pair = save_pair(tmp_path, {long: noise(64, 48)}, {long: moved(noise(64, 48))})
    with pytest.raises(FormatError) as caught:
        compress(pair[1], pair[0], tmp_path / "delta")
    assert caught.value.rule == "R8"
    assert not (tmp_path / "delta").exists()


def test_annotations_are_strings(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(FormatError) as caught:
        compress(pair[1], pair[0], tmp_path / "delta", annotations={"n": 1})  # type: ignore[dict-item]
    assert caught.value.rule == "R7"
    assert not (tmp_path / "delta").exists()


def test_choices_are_checked_before_anything_is_written(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError):
        compress(pair[1], pair[0], tmp_path / "delta", recipe="none")
    with pytest.raises(UsageError):
        plan(pair[1], pair[0], embeddings="none")
    with pytest.raises(TypeError, match=r"^unknown argument 'recipie' \(expected one of recipe, "):
        compress(pair[1], pair[0], tmp_path / "delta", recipie="row1")  # type: ignore[call-arg]
    assert not (tmp_path / "delta").exists()


def test_an_error_in_the_callers_progress_ends_the_run(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    def progress(phase: str, done: int, total: int) -> None:
        if phase == "compress" and done:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        compress(pair[1], pair[0], tmp_path / "delta", progress=progress)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "tuned"]


def test_progress_ends_at_the_total_of_every_phase(
    varied: tuple[Path, Path], tmp_path: Path
) -> None:
    last: dict[str, tuple[int, int]] = {}

    def progress(phase: str, done: int, total: int) -> None:
        assert last.get(phase, (0, 0))[0] <= done
        last[phase] = (done, total)

    compress(varied[1], varied[0], tmp_path / "delta", progress=progress)
    assert list(last) == ["plan", "compress", "digest base"]
    assert all(done == total for done, total in last.values())


# Any pair at all


FLOAT_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
CHOICES: list[dict[str, Any]] = [
    {"recipe": name}
    for name in ("bitdelta", "row1", "bitdelta-2", "int2", "magnitude-2", "svd", "topk", "exact")
]
CHOICES += [{"embeddings": "base"}, {"embeddings": "exact"}, {"skip": ["*"]}, {"scale": "row_col"}]


@st.composite
def any_pair(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, str]:
    """A tensor of any bit patterns, what became of it, and its name."""
    theirs, ours = (draw(st.sampled_from([*FLOAT_BITS])) for _ in range(2))
    shape = draw(st.lists(st.integers(0, 40), max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    if draw(st.booleans()):  # every bit pattern, NaN of every payload among them
        width = FLOAT_BITS[theirs]
        limits = torch.iinfo(width)
        base = torch.randint(limits.min, limits.max, shape, generator=generator, dtype=width)
        base = base.view(theirs)
    else:
        base = torch.randn(shape, generator=generator).to(theirs)
    gap = torch.randn(shape, generator=generator) * draw(st.sampled_from([0, 1e-30, 0.01, 1e30]))
    gap *= torch.rand(shape, generator=generator) < draw(st.sampled_from([1, 0.5, 0.01]))
    tuned = torch.where(gap == 0, base.to(ours), (base.float() + gap).to(ours))
    if ours == theirs and draw(st.booleans()):
        tuned = torch.where(gap == 0, base, tuned)
    return base, tuned, draw(st.sampled_from(["w.weight", "model.embed_tokens.weight", "w"]))


@settings(max_examples=60)
@given(any_pair(), st.sampled_from(CHOICES))
def test_any_pair_there_and_back(
    pair: tuple[torch.Tensor, torch.Tensor, str], choices: dict[str, Any]
) -> None:
    base, tuned, name = pair
    other = noise(20, 20)
    with tempfile.TemporaryDirectory() as root:
        folders = save_pair(Path(root), {name: base, "o": other}, {name: tuned, "o": moved(other)})
        trip = round_trip(Path(root), folders, allow_distant_base=True, **choices)
        rebuilt, entry = trip.rebuilt[name], trip.entry(name)
        assert (rebuilt.dtype, rebuilt.shape) == (tuned.dtype, tuned.shape)
        if trip.manifest.exact(name):
            assert bytes(bits(rebuilt)) == bytes(bits(tuned))
        bad = ~(torch.isfinite(tuned) & torch.isfinite(base)) if base.numel() else None
        if bad is not None and bad.any():
            assert bytes(bits(rebuilt[bad])) == bytes(bits(tuned[bad]))
        if trip.plan.upper_bound and entry.kind != "sum":
            assert trip.written <= trip.plan.shard_bytes
        elif "patch" not in trip.codecs(name):
            assert trip.written <= trip.plan.shard_bytes
            assert trip.plan.upper_bound or trip.written == trip.plan.shard_bytes
