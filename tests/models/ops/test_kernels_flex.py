"""FlexAttention for windows: what it gives, and that it stays compiled whatever the masks of a run."""

from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention

from models.ops.kernels import attention, run_kernel
from search.evaluation.memory_count import peak_bytes
from tests.models.cases import noise
from tests.models.kernel_cases import arguments, kernel_of

WINDOWS = [(causal, window) for causal in (True, False) for window in (1, 5, 40, 150)]


@pytest.fixture
def n_forms(monkeypatch):
    """Compiles as torch does but for the last step, and counts the compiled forms; what is computed is torch's plain form."""
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    attention._compiled.cache_clear()
    torch._dynamo.reset()
    yield lambda: counter.frame_count
    attention._compiled.cache_clear()
    torch._dynamo.reset()


def assert_is_attention(window, *, causal, batch, time, d_head=16, n_kv_heads=2):
    query, key, value = (noise(batch, heads, time, d_head, seed=heads) for heads in (4, n_kv_heads, n_kv_heads))
    options = {"causal": causal, "window": window}
    kernel = kernel_of("attend", "flex")
    assert kernel.misfit(query, key, value, **options) is None
    mixed = kernel.call(flex_attention, query, key, value, **options)
    torch.testing.assert_close(mixed, run_kernel("attend", "reference", query, key, value, **options))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("case", [2, 3])
def test_windows_of_flex_attention(monkeypatch, case):
    monkeypatch.setattr(attention, "_compiled", lambda function: function)
    kernel = kernel_of("attend", "flex")
    (query, key, value), options = arguments("attend", case, 65)
    assert kernel.misfit(query, key, value, **options) is None
    mixed = kernel.call(flex_attention, query, key, value, **options)
    torch.testing.assert_close(mixed, run_kernel("attend", "reference", query, key, value, **options))


def test_flex_attention_is_for_windows():
    misfit, query = kernel_of("attend", "flex").misfit, noise(1, 1, 20, 16)
    assert misfit(query, query, query, causal=True, window=5) is None
    for window in (None, 20):
        assert "windows shorter" in misfit(query, query, query, causal=True, window=window)
    assert "power of two" in misfit(*[noise(1, 1, 20, 24)] * 3, causal=True, window=5)


@torch.no_grad()
def test_all_masks_of_a_run_are_one_compiled_form(n_forms):
    """Sizes that happen to be equal would be taken for the same at first: three, five and six blocks, two and four heads."""
    for time in (300, 515, 700):
        for causal, window in WINDOWS:
            assert_is_attention(window, causal=causal, batch=7, time=time)
    assert n_forms() == 1


@torch.no_grad()
def test_more_forms_than_torch_keeps_by_itself_stay_compiled(n_forms):
    """The warning that it goes on without compiling is an error here."""
    sizes = [
        (d_head, n_kv_heads, batch, time)
        for d_head in (16, 32)
        for n_kv_heads in (1, 2, 4)
        for batch, time in [(1, 20), (2, 200)]
    ]
    for d_head, n_kv_heads, batch, time in sizes:
        assert_is_attention(5, causal=True, batch=batch, time=time, d_head=d_head, n_kv_heads=n_kv_heads)
    assert torch._dynamo.config.recompile_limit < n_forms() <= len(sizes)


@pytest.mark.parametrize("time", [1, 127, 128, 129, 600])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [1, 64, 128, 129, 257, 999])
def test_the_mask_of_flex_attention_is_what_torch_makes_of_the_window(time, causal, window):
    found = attention._window_mask(time, causal, window, "cpu")
    expected = create_block_mask(found.mask_mod, None, None, time, time, device="cpu")
    for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert (found.seq_lengths, found.BLOCK_SIZE) == (expected.seq_lengths, expected.BLOCK_SIZE)
    distance = torch.arange(time)[:, None] - torch.arange(time)
    seen = (distance < window) & (distance > (-1 if causal else -window))
    assert torch.equal(create_mask(found.mask_mod, None, None, time, time, device="cpu")[0, 0], seen)


def test_the_mask_of_a_long_sequence_takes_little_memory():
    assert peak_bytes(lambda: attention._window_mask(2**14, True, 1024, "cpu")) < 2**21
