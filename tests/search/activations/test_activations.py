"""The activation cache: whatever the mode, the order and the accidents, the bits of the trunk, and of no other."""

import copy
import hashlib
import json
import os
import re
import signal
import time
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from configs import ConfigError
from configs.records import DamagedError
from models import RackSpec
from models.linears.adapters import AdaptedLinear, Adapter
from search.activations import folder
from search.activations import trunk as trunk_file
from search.activations.cache import ActivationCache
from search.activations.choice import Limits, Rates, Reuse, break_even_parameters, choose_cache_mode
from search.activations.key import CacheKey
from search.activations.previous_cache import PreviousCache
from search.activations.rows import Names, RowIndex
from search.activations.shard import CacheShard, write_shard
from search.activations.trunk import Trunk, trunk_hash
from tests.search.ranks import started

N_SAMPLES, N_VARIANTS, TIME, D_MODEL = 10, 2, 6, 16
N_ROWS = N_SAMPLES * N_VARIANTS
PAIRS = list(product(range(100, 100 + N_SAMPLES), range(N_VARIANTS)))
ALL_KEPT = ["memory", "arrow"]


class Growing(nn.Module):
    """An embedding and a stack with dropout, an adapter, and quantised bytes that no checkpoint holds."""

    def __init__(self):
        super().__init__()
        block = {"mixer": {"kind": "attention", "n_heads": 2}, "mlp": {"kind": "mlp", "d_ff": 24}, "dropout": 0.3}
        rack = RackSpec(d_model=D_MODEL, vocab_size=11, stacks=[{"n_blocks": 2, "block": block}]).build(seed=0)
        self.embedding, self.stack = rack.embedding, rack.stacks[0]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.out = AdaptedLinear(nn.Linear(D_MODEL, D_MODEL), {"stack": Adapter(D_MODEL, D_MODEL, rank=2, alpha=4.0)})
            nn.init.normal_(self.out.adapters["stack"].up)
        self.register_buffer("packed", torch.arange(D_MODEL, dtype=torch.uint8), persistent=False)

    def forward(self, tokens):
        return self.out(self.stack(self.embedding(tokens)) * (1 + self.packed / 64))


def inputs_of(pairs):
    """The corrupted tokens of (sample, variant), a function of these alone."""
    return torch.stack([torch.randint(0, 11, (TIME,), generator=torch.Generator().manual_seed(7 * s + v)) for s, v in pairs])


def batch_of(pairs):
    samples, variants = zip(*pairs, strict=True)
    return list(samples), torch.tensor(variants), inputs_of(pairs)


def batches_of(pairs, size):
    return [batch_of(pairs[first : first + size]) for first in range(0, len(pairs), size)]


def shuffled(seed):
    return [PAIRS[place] for place in np.random.default_rng(seed).permutation(N_ROWS)]


def make_key(trunk, **keys):
    sizes = {"time": TIME, "d_model": D_MODEL, "dtype": "float32", "rows_per_forward": trunk.rows_per_forward}
    return CacheKey(**{"trunk_hash": trunk.hash, "data": "some text", **sizes, **keys})


def make_cache(module=None, *, mode="arrow", keys=None, rows_per_forward=1, n_rows=N_ROWS, **options):
    trunk = Trunk(Growing() if module is None else module, rows_per_forward=rows_per_forward)
    return ActivationCache(make_key(trunk, **(keys or {})), trunk, mode=mode, n_rows=n_rows, **options)


def plain(module, pairs, dtype=torch.float32):
    """What the trunk makes of rows, one by one."""
    module = copy.deepcopy(module).eval()
    with torch.no_grad():
        return torch.cat([module(row[None]) for row in inputs_of(pairs)]).to(dtype)


def same_bits(first, second):
    assert first.dtype == second.dtype
    return torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8))


def shrink_files(monkeypatch, n_rows=4):
    monkeypatch.setattr(folder, "SHARD_BYTES", n_rows * TIME * D_MODEL * 4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("mode", ["memory", "arrow", "stream"])
def test_every_mode_gives_the_bits_of_the_trunk_in_any_order(tmp_path, monkeypatch, mode, dtype):
    shrink_files(monkeypatch)
    module = Growing().train()
    module.out.eval()
    cache = make_cache(module, mode=mode, keys={"dtype": dtype}, folder=tmp_path / "cache")
    cache.fill(batches_of(PAIRS, 3))
    at_first = cache.statistics.forwards
    assert at_first == (0 if mode == "stream" else N_ROWS)
    for epoch, size in enumerate((7, 3)):
        for position, (samples, variants, inputs) in enumerate(batches_of(shuffled(epoch), size)):
            with torch.autocast("cpu", enabled=position % 2 == 0):  # the loop's, not the trunk's
                hidden = cache.hidden(samples, variants, inputs)
            expected = plain(module, list(zip(samples, variants.tolist(), strict=True)), getattr(torch, dtype))
            assert same_bits(hidden, expected)
            assert not hidden.requires_grad
    assert module.training
    assert module.stack.training
    assert not module.out.training
    found = cache.statistics
    if mode == "stream":
        assert (found.hits, found.misses, found.forwards, found.bytes_held) == (0, 2 * N_ROWS, 2 * N_ROWS, 0)
    else:
        assert (found.hits, found.misses, found.forwards, found.hit_rate) == (2 * N_ROWS, 0, at_first, 1.0)
        n_bytes = N_ROWS * TIME * D_MODEL * getattr(torch, dtype).itemsize
        assert (found.bytes_held, found.bytes_written, found.bytes_read) == (n_bytes, n_bytes, 2 * n_bytes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ALL_KEPT)
def test_every_pattern_of_bits_comes_back(tmp_path, mode, dtype):
    """Quiet and signalling NaNs with payloads, denormals, negative zeros."""
    rng = np.random.default_rng(0)
    table = torch.from_numpy(rng.integers(0, 256, (N_ROWS, TIME, D_MODEL * dtype.itemsize), dtype=np.uint8)).view(dtype)
    assert table.isnan().any()
    trunk = Trunk(nn.Identity(), lambda rows: table[rows[:, 0]])
    key = make_key(trunk, dtype=str(dtype).removeprefix("torch."))
    cache = ActivationCache(key, trunk, mode=mode, n_rows=N_ROWS, folder=tmp_path / "cache")
    order = torch.from_numpy(rng.permutation(N_ROWS))
    cache.fill([(order, torch.zeros(N_ROWS, dtype=torch.long), order[:, None])])
    again = torch.from_numpy(rng.permutation(N_ROWS))
    assert same_bits(cache.hidden(again, [0] * N_ROWS, again[:, None]), table[again])
    assert cache.statistics.forwards == N_ROWS


@pytest.mark.parametrize("mode", ["memory", "arrow", "stream"])
def test_several_rows_at_a_time_are_padded_to_one_shape(tmp_path, mode):
    shapes = []
    trunk = Trunk(module := Growing(), lambda rows: (shapes.append(len(rows)), module(rows))[1], rows_per_forward=4)
    cache = ActivationCache(make_key(trunk), trunk, mode=mode, n_rows=N_ROWS, folder=tmp_path / "cache")
    samples, variants, inputs = batch_of(PAIRS[:6])
    torch.testing.assert_close(cache.hidden(samples, variants, inputs), plain(module, PAIRS[:6]))
    assert shapes == [4, 4]


def test_memory_keeps_what_it_computes_and_files_do_not(tmp_path):
    for mode, n_more in (("memory", 0), ("arrow", 5)):
        cache = make_cache(mode=mode, folder=tmp_path / "cache")
        pairs = [*PAIRS[:4], PAIRS[0]]  # one of them twice
        first = cache.hidden(*batch_of(pairs))
        assert (cache.statistics.misses, cache.statistics.forwards) == (5, 5)
        assert same_bits(cache.hidden(*batch_of(pairs)), first)
        assert cache.statistics.forwards == 5 + n_more
        mixed = cache.hidden(*batch_of([PAIRS[7], *pairs]))
        assert same_bits(mixed[1:], first)
        assert same_bits(mixed[:1], plain(cache.trunk.module, PAIRS[7:8]))


def test_an_empty_batch_has_no_hidden_states():
    assert make_cache(mode="memory").hidden([], [], torch.zeros(0, TIME, dtype=torch.long)).shape == (0, TIME, D_MODEL)


CHANGES = {
    "weight": lambda module: next(module.stack.blocks[1].mlp.parameters()),
    "adapter": lambda module: module.out.adapters["stack"].down,
    "buffer": lambda module: module.packed,
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("mode", ["memory", "arrow", "stream"])
def test_a_change_of_one_element_is_refused(tmp_path, mode, what):
    cache = make_cache(module := Growing(), mode=mode, folder=tmp_path / "cache")
    cache.fill([batch_of(PAIRS[:4])])
    cache.hidden(*batch_of(PAIRS[:4]))
    before = trunk_hash(module)
    with torch.no_grad():
        CHANGES[what](module).view(-1)[-1] += 1
    after = trunk_hash(module)
    assert before != after
    with pytest.raises(ConfigError, match=f"the trunk has changed: .*{before}.*{after}"):
        cache.hidden(*batch_of(PAIRS[:4]))
    if mode == "arrow":
        with pytest.raises(ConfigError, match=f"stale: .*{before}.*{after}.*delete"):
            make_cache(module, folder=tmp_path / "cache")


def test_a_write_that_torch_does_not_count_is_noticed_before_filling():
    cache = make_cache(module := Growing(), mode="memory")
    module.out.weight.data[0, 0] += 1
    with pytest.raises(ConfigError, match="the trunk has changed"):
        cache.fill([batch_of(PAIRS[:4])])


def test_a_change_in_the_middle_of_filling_is_refused(tmp_path):
    cache = make_cache(module := Growing(), folder=tmp_path)

    def batches():
        yield batch_of(PAIRS[:4])
        with torch.no_grad():
            module.out.bias[0] += 1
        yield batch_of(PAIRS[4:])

    with pytest.raises(ConfigError, match="the trunk has changed"):
        cache.fill(batches())
    assert set(rows_on_disk(tmp_path)) == set(PAIRS[:4])


def test_a_trunk_that_is_written_the_same_again_is_the_same(monkeypatch):
    cache, hashed = make_cache(module := Growing(), mode="memory"), []
    monkeypatch.setattr(trunk_file, "trunk_hash", lambda module: hashed.append(1) or trunk_hash(module))
    cache.hidden(*batch_of(PAIRS[:4]))
    assert not hashed
    module.load_state_dict(copy.deepcopy(module.state_dict()))
    cache.hidden(*batch_of(PAIRS[:4]))
    cache.hidden(*batch_of(PAIRS[:4]))
    assert len(hashed) == 1  # not at every step
    module.out.adapters["progressive"] = Adapter(D_MODEL, D_MODEL, rank=1, alpha=1.0)
    with pytest.raises(ConfigError, match="the trunk has changed"):
        cache.hidden(*batch_of(PAIRS[:4]))


def test_the_hash_is_of_names_types_shapes_and_content():
    def single(**tensors):
        module = nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return trunk_hash(module)

    base = torch.arange(6.0)
    modules = [{"a": base}, {"b": base}, {"a": base.view(2, 3)}, {"a": base.view(torch.int32)}, {"a": base, "b": base}, {}]
    modules += [{"a": base[:3], "b": base[3:]}, {"a": torch.tensor(1.0)}, {"a": base.bfloat16()}, {"a": base > 2}]
    assert len({single(**module) for module in modules}) == len(modules)
    assert single(a=base.view(2, 3)) == single(a=base.view(2, 3).t().contiguous().t())
    assert single(a=base, b=base) == single(b=base, a=base.clone())
    assert trunk_hash(module := Growing()) == trunk_hash(copy.deepcopy(module).train())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_hash_is_the_same_on_another_device():
    assert trunk_hash(Growing()) == trunk_hash(Growing().cuda())


def test_other_hidden_states_are_refused_by_name_and_have_a_folder_of_their_own(tmp_path):
    trunk = Trunk(Growing())
    key = make_key(trunk)
    ActivationCache(key, trunk, mode="arrow", n_rows=1, folder=tmp_path / "cache")
    others = [{"corruption": {"ratio": 0.3}}, {"data": "more text"}, {"dtype": "bfloat16"}, {"time": 7}, {"precision": "bf16"}]
    others += [{"torch_version": "1.0"}, {"architecture": {"window": 3}}]
    for keys in others:
        other = make_key(trunk, **keys)
        with pytest.raises(ConfigError, match=f"other hidden states .*{next(iter(keys))} is "):
            ActivationCache(other, trunk, mode="arrow", n_rows=1, folder=tmp_path / "cache")
    folders = {made.folder_in(tmp_path) for made in (key, *(make_key(trunk, **keys) for keys in others))}
    assert len(folders) == len(others) + 1
    with pytest.raises(ConfigError, match=f"deadbeef.*{trunk.hash}"):
        ActivationCache(make_key(trunk, trunk_hash="deadbeef"), trunk, mode="memory", n_rows=1)


def test_any_spec_may_describe_the_corruption():
    trunk = Trunk(Growing())
    small, large = (RackSpec(d_model=8, vocab_size=size, layers=[{"kind": "mlp", "d_ff": 8}]) for size in (3, 4))
    keys = [make_key(trunk, corruption=spec) for spec in (small, small, large)]
    assert keys[0].fingerprint() == keys[1].fingerprint() != keys[2].fingerprint()
    assert CacheKey(**json.loads(json.dumps(keys[0].to_dict()))) == keys[0]


@pytest.mark.parametrize("mode", ALL_KEPT)
def test_other_inputs_for_a_cached_sample_are_refused(tmp_path, mode):
    cache = make_cache(mode=mode, folder=tmp_path / "cache")
    samples, variants, inputs = batch_of(PAIRS[:4])
    cache.fill([(samples, variants, inputs)])
    inputs[2, 1] = (inputs[2, 1] + 1) % 11
    with pytest.raises(ConfigError, match=f"sample {PAIRS[2][0]}, variant {PAIRS[2][1]}: .* other inputs"):
        cache.hidden(samples, variants, inputs)


@pytest.mark.parametrize("names", [([1, 2], [0]), ([1], [0, 0]), ([1.5, 2.0], [0, 0]), ([1, 2], [0, 2**31]), ([1, -2], [0, 0])])
def test_names_that_are_none_are_refused(names):
    with pytest.raises(ValueError, match=r"sample_ids|variants"):
        make_cache(mode="memory").hidden(*names, torch.zeros(2, TIME, dtype=torch.long))


def test_the_index_finds_what_a_dict_finds():
    rng = np.random.default_rng(0)
    pairs = np.unique(rng.integers(0, 40, (300, 2)) * [10**12, 1], axis=0)
    rng.shuffle(pairs)
    index = RowIndex(Names(pairs[:, 0], pairs[:, 1].astype(np.int32)))
    by_pair = {tuple(pair): place for place, pair in enumerate(pairs.tolist())}
    asked = Names.of(rng.integers(0, 42, 900) * 10**12, rng.integers(0, 42, 900), 900)
    assert index.find(asked).tolist() == [by_pair.get(pair, -1) for pair in asked.pairs()]


def rows_on_disk(path):
    """(sample, variant) -> bytes, every row of every file; each may be there once."""
    found = []
    for file in sorted(path.glob("shard-*.arrow")):
        batch = pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0)
        found += zip(*(batch.column(name).to_pylist() for name in ("sample_id", "variant", "hidden")), strict=True)
    rows = {(sample, variant): hidden for sample, variant, hidden in found}
    assert len(rows) == len(found)
    return rows


def fill_until(path, moment):
    """In a process of its own: fill the cache of a folder, and be killed there."""

    def replace(self, target):
        if target.name == "shard-000002.arrow":
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    def batches():
        for position, batch in enumerate(batches_of(PAIRS, 3)):
            if moment == "between" and position == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    rename = Path.replace
    with pytest.MonkeyPatch.context() as patch:
        shrink_files(patch)
        cache = make_cache(folder=path)
        if moment == "writing":
            patch.setattr(Path, "replace", replace)
        cache.fill(batches())


@pytest.mark.parametrize(("moment", "n_files"), [("between", 2), ("writing", 2)])
def test_a_killed_filling_goes_on(tmp_path, monkeypatch, moment, n_files):
    path = tmp_path / "cut"
    killed = started(fill_until, path, moment)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    left = rows_on_disk(path)
    assert len(list(path.glob("shard-*.arrow"))) == n_files
    assert len(left) == n_files * 6  # batches of 3 rows, at least 4 rows a file
    assert len(list(path.glob(".shard-*"))) == (moment == "writing")
    shrink_files(monkeypatch)
    cache = make_cache(folder=path)
    cache.fill(batches_of(PAIRS, 3))
    assert cache.statistics.forwards == N_ROWS - len(left)
    whole = make_cache(folder=tmp_path / "whole")
    whole.fill(batches_of(PAIRS, 7))
    assert rows_on_disk(path) == rows_on_disk(tmp_path / "whole")
    assert set(rows_on_disk(path)) == set(PAIRS)
    assert not list(path.glob(".shard-*"))
    again = make_cache(folder=path)
    again.fill(batches_of(shuffled(0), 5))
    assert again.statistics.forwards == 0


@pytest.mark.parametrize("mode", ALL_KEPT)
def test_a_row_that_comes_twice_is_kept_once(tmp_path, mode):
    cache = make_cache(mode=mode, folder=tmp_path, n_rows=6)
    cache.fill([batch_of([*PAIRS[:4], PAIRS[2]]), batch_of(PAIRS[3:6])])
    assert cache.statistics.bytes_held == 6 * cache.key.row_bytes
    if mode == "arrow":
        assert set(rows_on_disk(tmp_path)) == set(PAIRS[:6])


def test_an_interrupt_loses_nothing(tmp_path):
    def interrupted():
        yield batch_of(PAIRS[:3])
        raise KeyboardInterrupt

    cache = make_cache(folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cache.fill(interrupted())
    assert set(rows_on_disk(tmp_path)) == set(PAIRS[:3])


def test_one_process_fills_at_a_time(tmp_path):
    first, second = make_cache(folder=tmp_path), make_cache(folder=tmp_path)

    def batches():
        with pytest.raises(ConfigError, match="another process is filling"):
            second.fill([])
        yield from batches_of(PAIRS, 6)

    first.fill(batches())
    second.fill(batches_of(PAIRS, 6))
    assert second.statistics.forwards == 0
    assert len(rows_on_disk(tmp_path)) == N_ROWS


def read_all(path, size):
    """What the cache holds, as a hash, and that it came from there, with no copy of the files in Arrow's memory."""
    cache, digest = make_cache(folder=path), hashlib.sha256()
    for batch in batches_of(PAIRS, size):
        digest.update(cache.hidden(*batch).numpy().data)
    return digest.hexdigest(), cache.statistics.hits, cache.statistics.forwards, pa.total_allocated_bytes()


def tell_all(path, told):
    told.write_text(json.dumps([read_all(path, 7) for _ in range(10)]))


def test_processes_read_one_cache_at_the_same_time(tmp_path, monkeypatch):
    path, told = tmp_path / "cache", tmp_path / "told.json"
    shrink_files(monkeypatch)
    make_cache(folder=path).fill(batches_of(PAIRS, 6))
    before = pa.total_allocated_bytes()
    digest, *_ = read_all(path, 3)
    other = started(tell_all, path, told)
    while other.is_alive():
        assert read_all(path, 3) == (digest, N_ROWS, 0, before)
        time.sleep(0.01)
    assert other.exitcode == 0
    assert json.loads(told.read_text()) == [[digest, N_ROWS, 0, 0]] * 10


@pytest.mark.parametrize(("mode", "limit"), [("memory", "memory_bytes"), ("arrow", "disk_bytes")])
def test_a_cache_over_its_limit_is_refused_with_the_numbers_before_anything_is_written(tmp_path, mode, limit):
    n_bytes = N_ROWS * TIME * D_MODEL * 4
    text = (
        f"{N_ROWS} samples x {TIME} time x {D_MODEL} d_model x 4 bytes = {n_bytes} bytes, over the limit of {n_bytes - 1} bytes"
    )
    with pytest.raises(ConfigError, match=text):
        make_cache(mode=mode, limits=Limits(**{limit: n_bytes - 1}), folder=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    cache = make_cache(mode=mode, limits=Limits(**{limit: n_bytes}), folder=tmp_path / "cache")
    cache.fill(batches_of(PAIRS, 6))
    with pytest.raises(ConfigError, match=f"n_rows = {N_ROWS} .* at least {N_ROWS + 1}"):
        cache.fill([batch_of([(1, 1)])])


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path):
    cache = make_cache(folder=tmp_path, n_rows=10**15)
    with pytest.raises(ConfigError, match=r"still to be written, but \d+ are free"):
        cache.fill([batch_of(PAIRS[:4])])
    assert not rows_on_disk(tmp_path)


def cut(file):
    file.write_bytes(file.read_bytes()[:-30])


def empty(file):
    file.write_bytes(b"")


def flip_hidden(file):
    flip(file, next(iter(rows_on_disk(file.parent).values())))


def flip_sample(file):
    flip(file, np.array([pair[0] for pair in PAIRS[:4]], dtype=np.int64).tobytes())


def flip(file, content):
    whole = bytearray(file.read_bytes())
    place = whole.find(content)
    assert place > 0
    whole[place + 5] ^= 16
    file.write_bytes(whole)


@pytest.mark.parametrize("damage", [cut, empty, flip_hidden, flip_sample])
def test_a_damaged_file_is_told_and_its_rows_are_computed_again(tmp_path, monkeypatch, damage, caplog):
    shrink_files(monkeypatch)
    make_cache(folder=tmp_path).fill(batches_of(PAIRS, 4))
    before = rows_on_disk(tmp_path)
    file = tmp_path / "shard-000000.arrow"
    damage(file)
    cache = make_cache(folder=tmp_path)
    cache.fill(batches_of(PAIRS, 4))
    assert cache.statistics.forwards == 4
    assert rows_on_disk(tmp_path) == before
    (told,) = caplog.messages
    assert f"{file}: damaged: " in told


@pytest.mark.parametrize("kind", [pa.float64(), pa.duration("s")], ids=str)
def test_columns_of_another_type_are_damage(tmp_path, kind):
    """One bit of a header makes them: their bytes are those that were written, and so is the checksum."""
    key = CacheKey(trunk_hash="", data="", dtype="float32", time=1, d_model=2)
    rows, sums = np.arange(16, dtype=np.uint8).reshape(2, 8), np.zeros(2, dtype=np.uint32)
    path = tmp_path / "shard.arrow"
    write_shard(path, key, Names.of([5, 6], [0, 1], 2), inputs_checksums=sums, rows=rows)
    assert CacheShard(path, key).names.pairs() == [(5, 0), (6, 1)]
    with pa.memory_map(str(path)) as file:
        batch = pa.ipc.open_file(file).get_batch(0)
    columns = {**dict(zip(batch.schema.names, batch.columns, strict=True)), "sample_id": batch["sample_id"].view(kind)}
    other = pa.record_batch(columns).replace_schema_metadata(batch.schema.metadata)
    path.unlink()
    with pa.ipc.new_file(str(path), other.schema) as writer:
        writer.write_batch(other)
    with pytest.raises(DamagedError, match="its columns are of other types"):
        CacheShard(path, key)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", b"\xff"])
def test_a_damaged_manifest_is_told_and_written_again(tmp_path, text, caplog):
    make_cache(folder=tmp_path)
    path = tmp_path / "manifest.json"
    whole = path.read_bytes()
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    make_cache(folder=tmp_path)
    assert path.read_bytes() == whole
    (told,) = caplog.messages
    assert told.startswith(f"{path}: damaged: ")


@pytest.mark.parametrize("manifest", ["theirs", None])
def test_nothing_is_written_or_removed_behind_a_link_that_lies_where_a_cache_would(tmp_path, manifest):
    theirs, folder = tmp_path / "theirs", tmp_path / "caches" / "activations"
    folder.parent.mkdir()
    if manifest is None:
        make_cache(folder=theirs)
    else:
        theirs.mkdir()
        (theirs / "manifest.json").write_text(manifest)
    (theirs / "shard-000000.arrow").write_text("theirs")
    before = {path.name: path.read_bytes() for path in theirs.iterdir()}
    folder.symlink_to(theirs)
    with pytest.raises(ConfigError, match=f"{folder} is a link, and what lies behind one is never written to"):
        make_cache(folder=folder).fill(batches_of(PAIRS, 4))
    assert {path.name: path.read_bytes() for path in theirs.iterdir()} == before


def test_the_break_even_is_that_of_the_known_figures():
    trunk = Trunk(nn.Identity())
    key = make_key(trunk, time=512, d_model=1024, dtype="bfloat16")
    assert break_even_parameters(key, flops_per_second=4e14, bytes_per_second=3e9) == pytest.approx(137e6, rel=0.01)
    assert break_even_parameters(key, flops_per_second=4e14, bytes_per_second=5e10) == pytest.approx(8e6, rel=0.03)


@pytest.mark.parametrize(
    ("options", "mode", "reason"),
    [
        ({}, "memory", "fit"),
        ({"memory": 1}, "arrow", "fit"),
        ({"memory": 1, "disk": 1}, "stream", "mode memory would take 20 samples x .*; mode arrow would take"),
        ({"memory": 1, "has_folder": False}, "stream", "mode memory would take"),
        ({"epochs": 1}, "stream", "no hidden state is asked for twice"),
        ({"epochs": 1.2, "memory": 1}, "stream", r"mode arrow pays from 7.04e\+04 parameters on, the trunk has 50000"),
        ({"parameters": 6000}, "memory", "over 3.2e"),
        ({"parameters": 6000, "memory": 1}, "stream", r"mode arrow pays from 7.11e\+03 parameters on, the trunk has 6000"),
        ({"parameters": 3000}, "stream", r"mode memory pays from 3.2e\+03"),
    ],
)
def test_auto_goes_by_size_reuse_and_rates(tmp_path, options, mode, reason):
    options = {"epochs": 19, "parameters": 50000, "memory": None, "disk": None, "has_folder": True, **options}
    rates = Rates(flops_per_second=1e11, memory_bytes_per_second=1e9, disk_bytes_per_second=5e8)
    reuse = Reuse(epochs=options["epochs"], trunk_parameters=options["parameters"], rates=rates)
    limits = Limits(memory_bytes=options["memory"], disk_bytes=options["disk"])
    trunk = Trunk(Growing())
    found = choose_cache_mode(make_key(trunk), N_ROWS, reuse, limits=limits, has_folder=options["has_folder"])
    assert found.mode == mode
    assert re.search(reason, found.reason), found.reason
    path = tmp_path / "cache" if options["has_folder"] else None
    cache = make_cache(mode="auto", reuse=reuse, limits=limits, folder=path)
    assert (cache.mode, cache.decision) == (mode, found)


def test_what_a_mode_needs_is_asked_for():
    with pytest.raises(ValueError, match="auto needs `reuse`"):
        make_cache(mode="auto")
    with pytest.raises(ValueError, match="arrow needs a folder"):
        make_cache(mode="arrow")
    with pytest.raises(ValueError, match="rows_per_forward = 0"):
        Trunk(nn.Identity(), rows_per_forward=0)
    with pytest.raises(ValueError, match=r"hidden states \[1, 6, 16\]; the cache is of \[1, 5, 16\]"):
        make_cache(mode="stream", keys={"time": 5}).hidden(*batch_of(PAIRS[:1]))


# Trunks that grow


class Tower(nn.Module):
    """The first stacks of a rack that grows; the modules are the same ones at every height."""

    def __init__(self, rack, height):
        super().__init__()
        self.embedding, self.stacks = rack.embedding, rack.stacks[:height]

    def forward(self, tokens):
        return self.above(self.embedding(tokens), tokens)

    def above(self, hidden, tokens, start=0):
        del tokens
        for stack in self.stacks[start:]:
            hidden = stack(hidden)
        return hidden


def tall_rack(seed=0):
    block = {"mixer": {"kind": "attention", "n_heads": 2}, "mlp": {"kind": "mlp", "d_ff": 24}, "dropout": 0.3}
    return RackSpec(d_model=D_MODEL, vocab_size=11, stacks=[{"n_blocks": 1, "block": block}] * 4).build(seed=seed)


def counted(rack):
    """Calls of each stack, one row each."""
    calls = [0] * len(rack.stacks)
    for position, stack in enumerate(rack.stacks):
        stack.register_forward_hook(lambda *_, position=position: calls.__setitem__(position, calls[position] + 1))
    return calls


@pytest.mark.parametrize("rows_per_forward", [1, 4])
@pytest.mark.parametrize("mode", ALL_KEPT)
def test_a_trunk_that_has_grown_goes_on_from_the_cache_before(tmp_path, mode, rows_per_forward):
    calls, cache = counted(rack := tall_rack()), None
    n_calls = -(-N_ROWS // rows_per_forward)
    for height in range(1, 5):
        calls[:] = [0] * 4
        tower, before = Tower(rack, height), cache
        options = {"mode": mode, "rows_per_forward": rows_per_forward, "folder": tmp_path / f"cache {height}"}
        cache = make_cache(tower, **options)
        previous = (
            None if before is None else PreviousCache(before, lambda *rows, tower=tower, at=height - 1: tower.above(*rows, at))
        )
        cache.fill([batch_of(PAIRS)], compute=previous and previous.rows_for(cache.key, cache.trunk))
        proving = 0 if before is None else 1
        assert calls == [proving] * (height - 1) + [n_calls + proving] + [0] * (4 - height)
        plain = make_cache(tower, mode="stream", rows_per_forward=rows_per_forward)
        order = shuffled(height)
        assert same_bits(cache.hidden(*batch_of(order)), plain.hidden(*batch_of(order)))
        assert cache.statistics.misses == 0


def grown(keys=None, *, own=None, height=2, start=1, rack=None, lower=None):
    """The cache of a grown trunk, and a previous one that holds half of the rows."""
    rack = rack or tall_rack()
    cache = make_cache(lower or Tower(rack, 1), mode="memory", keys=keys)
    cache.fill([batch_of(PAIRS[:10])])
    tower = Tower(rack, height)
    return make_cache(tower, mode="memory", keys=own), PreviousCache(cache, lambda *rows: tower.above(*rows, start))


def test_rows_that_no_cache_has_are_computed_from_inputs():
    cache, previous = grown()
    cache.fill([batch_of(PAIRS[5:15])], compute=previous.rows_for(cache.key, cache.trunk))
    assert previous.cache.statistics.hits == 5
    assert previous.cache.statistics.misses == 5
    again = cache.statistics.forwards
    cache.fill([batch_of(PAIRS[5:15])], compute=previous.rows_for(cache.key, cache.trunk))
    assert cache.statistics.forwards == again == 11  # the first row goes both ways
    assert same_bits(
        cache.hidden(*batch_of(PAIRS[5:15])), make_cache(cache.trunk.module, mode="stream").hidden(*batch_of(PAIRS[5:15]))
    )


def other_weight():
    rack = tall_rack()
    lower = copy.deepcopy(Tower(rack, 1))
    with torch.no_grad():
        lower.embedding.weight[10, 0] += 1  # a token that need not be among the rows that go both ways
    return grown(rack=rack, lower=lower)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grown({"corruption": {"ratio": 0.3}}), r"holds other hidden states \(corruption is {}, there {'ratio': 0.3}\)"),
        (lambda: grown({"data": "more text"}), "data is 'some text', there 'more text'"),
        (other_weight, r"is of a trunk \(.*\) that is no part of this one"),
        (lambda: grown(start=2), "does not make of its hidden states what this trunk computes"),
        (lambda: grown(height=3, start=2), "does not make of its hidden states what this trunk computes"),
        (lambda: grown({"dtype": "bfloat16"}, own={"dtype": "bfloat16"}), "computed in torch.float32 and kept in torch.bfloat16"),
    ],
)
def test_a_previous_cache_that_is_none_is_refused(make, message):
    cache, previous = make()
    with pytest.raises(ConfigError, match=message):
        cache.fill([batch_of(PAIRS)], compute=previous.rows_for(cache.key, cache.trunk))
    assert cache.statistics.bytes_written == 0


def test_a_previous_trunk_that_has_changed_is_refused():
    rack = tall_rack()
    _, previous = grown(rack=rack)
    with torch.no_grad():
        rack.stacks[0].blocks[0].mlp.down.weight[0, 0] += 1
    cache = make_cache(Tower(rack, 2), mode="memory")
    with pytest.raises(ConfigError, match="the trunk has changed"):
        cache.fill([batch_of(PAIRS)], compute=previous.rows_for(cache.key, cache.trunk))
