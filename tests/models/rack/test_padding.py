"""Padding masks: every mixer that takes one runs through the same body, and each form is compared with a dumb one."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from models import MIXERS
from models.ops.attention import attend as forms
from models.ops.attention import windows
from models.ops.attention.attend import attend, is_blocked
from models.ops.attention.kernel_attention import kernel_attention
from models.ops.attention.kernel_features import draw_frequencies, kernel_features, least_sum
from models.ops.kernels import dispatch, run_kernel
from models.ops.kernels.kernel import HOPPER
from models.ops.kernels.table import OPS
from tests.models.cases import D_MODEL, MIXER_CASES, build, noise

BOTH_WAYS = {
    "attention both ways": {"kind": "attention", "n_heads": 4, "n_kv_heads": 2, "causal": False},
    "attention both ways window": {"kind": "attention", "n_heads": 2, "causal": False, "window": 6, "sinks": True},
    **{
        f"{kernel_type} both ways": {"kind": "kernel_attention", "n_heads": 2, "kernel_type": kernel_type, "causal": False}
        for kernel_type in ("favor", "rff_gaussian", "rff_laplacian", "elu")
    },
}
CASES = {
    name: options for name, options in MIXER_CASES.items() if MIXERS[options["kind"]].takes_attention_mask is True
} | BOTH_WAYS
FIRST, END = [0, 0, 3, 7, 2, 39], [40, 25, 40, 20, 3, 40]
"""Of each row, where what it holds begins and ends."""
TIME = 40

each_mixer = pytest.mark.parametrize("options", CASES.values(), ids=CASES)


def pads(first, end, time=TIME):
    places = torch.arange(time)
    return (places >= torch.tensor(first)[:, None]) & (places < torch.tensor(end)[:, None])


def run(mixer, x, attention_mask):
    """Outputs at what is kept, and the gradients of a weighted sum of them by parameters and input."""
    x = x.clone().requires_grad_()
    weighting = noise(*x.shape, seed=2) * (1 if attention_mask is None else attention_mask[..., None])
    y = mixer(x, attention_mask) * (1 if attention_mask is None else attention_mask[..., None])
    return y.detach(), torch.autograd.grad((y * weighting).sum(), [x, *mixer.parameters()])


def test_these_take_a_mask():
    assert {options["kind"] for options in CASES.values()} == {"attention", "kernel_attention", "mla"}


@each_mixer
def test_a_mask_that_keeps_all_is_none(options):
    mixer, x = build(MIXERS, options), noise(3, TIME, D_MODEL)
    kept = torch.ones(3, TIME, dtype=torch.bool)
    torch.testing.assert_close(run(mixer, x, kept), run(mixer, x, None), rtol=1e-4, atol=1e-4)


@each_mixer
def test_a_padded_batch_is_its_rows_one_by_one(options):
    # Estimates of kernels change with the place, and sink tokens are the first ones: a block has its tokens first.
    first = [0] * len(END) if options["kind"] == "kernel_attention" or options.get("n_sink_tokens") else FIRST
    mixer, x, attention_mask = build(MIXERS, options), noise(len(END), TIME, D_MODEL), pads(first, END)
    together = mixer(x, attention_mask)
    for row, (start, stop) in enumerate(zip(first, END, strict=True)):
        torch.testing.assert_close(together[row, start:stop], mixer(x[row : row + 1, start:stop])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel_type", ["favor", "rff_gaussian", "rff_laplacian", "elu"])
@pytest.mark.parametrize("causal", [True, False])
def test_kernels_without_positions_take_pads_at_the_beginning(kernel_type, causal):
    options = {"kind": "kernel_attention", "n_heads": 2, "kernel_type": kernel_type, "causal": causal, "rope_base": None}
    mixer, x, attention_mask = build(MIXERS, options), noise(len(END), TIME, D_MODEL), pads(FIRST, END)
    x = torch.where(attention_mask[..., None], x, 50 * x)  # the largest peaks are pads'
    together = mixer(x, attention_mask)
    for row, (start, stop) in enumerate(zip(FIRST, END, strict=True)):
        torch.testing.assert_close(together[row, start:stop], mixer(x[row : row + 1, start:stop])[0], rtol=1e-4, atol=1e-5)


@each_mixer
def test_what_stands_at_a_pad_does_not_count(options):
    mixer, attention_mask = build(MIXERS, options), pads(FIRST, END)
    attention_mask[0, 5], attention_mask[2, 20] = False, False
    x = noise(len(END), TIME, D_MODEL)
    changed = torch.where(attention_mask[..., None], x, 30 * noise(*x.shape, seed=3))
    assert torch.equal(mixer(x, attention_mask)[attention_mask], mixer(changed, attention_mask)[attention_mask])
    gradient, *_ = run(mixer, x, attention_mask)[1]
    assert gradient[~attention_mask].abs().max() == 0
    assert gradient[attention_mask].abs().amax(-1).min() > 0


@pytest.mark.parametrize("options", [options for options in CASES.values() if options.get("causal", True)], ids=str)
@pytest.mark.parametrize("is_padded", [True, False])
def test_causal_mixers_stay_so_with_a_mask(options, is_padded):
    """With as many rows as positions, too: which axis is which must not be guessed from sizes."""
    mixer, x = build(MIXERS, options), noise(17, 17, D_MODEL)
    attention_mask = pads([row % 4 for row in range(17)], [17 - row % 3 for row in range(17)], 17) if is_padded else None
    before = mixer(x, attention_mask)
    for place in (0, 3, 9, 16):
        changed = x.clone()
        changed[:, place] += 1
        after = mixer(changed, attention_mask)
        assert torch.equal(before[:, :place], after[:, :place])
        moved = (before != after).any(-1)
        assert moved[:, place].all() if attention_mask is None else moved[:, place][attention_mask[:, place]].all()
        assert attention_mask is None or not (moved & attention_mask)[~attention_mask[:, place]].any()


@pytest.mark.parametrize("options", BOTH_WAYS.values(), ids=BOTH_WAYS)
def test_as_many_rows_as_positions(options):
    mixer, x, attention_mask = build(MIXERS, options), noise(9, 9, D_MODEL), pads([0] * 9, range(1, 10), 9)
    together = mixer(x, attention_mask)
    for row in range(9):
        torch.testing.assert_close(together[row, : row + 1], mixer(x[row : row + 1, : row + 1])[0], rtol=1e-4, atol=1e-5)


@each_mixer
def test_rows_of_pads_give_numbers(options):
    mixer, x = build(MIXERS, options), noise(4, TIME, D_MODEL).requires_grad_()
    attention_mask = pads([0, 10, 40, 39], [0, 30, 40, 40])
    y = mixer(x, attention_mask)
    found = torch.autograd.grad((y * noise(*y.shape, seed=2)).sum(), [x, *mixer.parameters()])
    assert all(value.isfinite().all() for value in (y, *found))


@each_mixer
@pytest.mark.parametrize("has_own_keep", [True, False])
def test_packed_models_take_masks(options, has_own_keep):
    mixers, x = [build(MIXERS, options, seed=seed) for seed in range(2)], noise(2, 2, TIME, D_MODEL)
    keeps = torch.stack((pads([0, 3], [20, 40]), pads([7, 0], [40, 30] if has_own_keep else [40, 40])))
    parameters, _ = torch.func.stack_module_state(mixers)

    def call(weights, x, attention_mask):
        return torch.func.functional_call(mixers[0], weights, (x, attention_mask))

    with sdpa_kernel(SDPBackend.MATH):
        attention_mask, in_dims = (keeps, (0, 0, 0)) if has_own_keep else (keeps[0], (0, 0, None))
        together = torch.vmap(call, in_dims=in_dims)(parameters, x, attention_mask)
        for index, mixer in enumerate(mixers):
            alone = mixer(x[index], keeps[index] if has_own_keep else keeps[0])
            torch.testing.assert_close(together[index], alone, rtol=1e-4, atol=1e-5)


def plain(query, key, value, *, causal, window, attention_mask, sinks=None):
    """Position by position."""
    group = query.shape[1] // key.shape[1]
    rows = []
    for b in range(len(query)):
        heads = []
        for h in range(query.shape[1]):
            outputs = []
            for t in range(query.shape[2]):
                seen = [
                    s
                    for s in range(query.shape[2])
                    if (attention_mask[b, s] or s == t) and (not causal or s <= t) and (window is None or abs(s - t) < window)
                ]
                scores = key[b, h // group, seen] @ query[b, h, t] / query.shape[-1] ** 0.5
                weights = scores.exp() / (scores.exp().sum() + (0 if sinks is None else sinks[h].exp()))
                outputs.append(weights @ value[b, h // group, seen])
            heads.append(torch.stack(outputs))
        rows.append(torch.stack(heads))
    return torch.stack(rows)


@pytest.mark.parametrize("n_queries", [None, 4, 64])
@pytest.mark.parametrize("has_sinks", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 3, 5, 12])
def test_attention_by_its_formula(causal, window, has_sinks, n_queries, monkeypatch):
    """In the form for other devices, and in blocks of the one for a CPU."""
    time = 11
    monkeypatch.setattr(forms, "_is_looped", lambda _: n_queries is not None)
    monkeypatch.setattr(windows, "N_QUERIES", n_queries)
    monkeypatch.setattr(forms, "saves_half", lambda *_, **__: True)
    assert is_blocked(time, causal=causal, window=window) == (causal and window in {1, 3, 5})
    inputs = [noise(3, heads, time, 6, seed=seed, dtype=torch.float64) for seed, heads in enumerate((4, 2, 2))]
    sinks = noise(4, seed=3, dtype=torch.float64) if has_sinks else None
    options = {"causal": causal, "window": window, "sinks": sinks, "attention_mask": pads([0, 4, 0], [8, 11, 0], time)}
    torch.testing.assert_close(attend(*inputs, **options), plain(*inputs, **options))


@pytest.mark.parametrize("kernel_type", ["favor", "rff_gaussian", "elu"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("time", [1, 17, 70])
def test_linear_is_quadratic(kernel_type, causal, time):
    attention_mask = pads([0, time // 3, time], [time, time - time // 4, time], time)
    attention_mask[0, time // 2] = time == 1
    inputs = [noise(3, 2, time, size, seed=seed, dtype=torch.float64).requires_grad_() for seed, size in enumerate((6, 6, 4))]
    frequencies = draw_frequencies(kernel_type, 10, 6, seed=1)
    log_scale = torch.zeros(2, dtype=torch.float64) if kernel_type.startswith("rff") else None
    parts = [kernel_features(part, None if frequencies is None else frequencies.double(), kernel_type) for part in inputs[:2]]
    (query, _), (key, peak) = parts
    places = torch.arange(time)
    seen = attention_mask[:, None, None, :] & ((places[:, None] >= places) | (not causal))
    count = seen.sum(-1, keepdim=True)
    least = least_sum(count, log_scale, query.shape[-1]).masked_fill(count == 0, 1)
    kernels = (query @ key.mT) * peak.mT.exp() * seen
    quadratic = (kernels @ inputs[2]) / kernels.sum(-1, keepdim=True).maximum(least)
    linear = kernel_attention(
        query, key, peak, inputs[2], causal=causal, least=least if causal else least[..., -1:, :], attention_mask=attention_mask
    )
    torch.testing.assert_close(linear, quadratic, rtol=1e-9, atol=1e-9)
    found = [
        torch.autograd.grad((y * noise(*y.shape, seed=9, dtype=y.dtype)).sum(), inputs, retain_graph=True)
        for y in (linear, quadratic)
    ]
    torch.testing.assert_close(*found, rtol=1e-7, atol=1e-7)


@pytest.mark.filterwarnings("ignore:kernel = auto runs attend by the reference")
@pytest.mark.parametrize("name", ["flash-attn-4", "flash-attn-3", "flash-attn", "flex"])
def test_kernels_know_no_mask(name, monkeypatch):
    """Where they could run without one."""
    monkeypatch.setattr(dispatch, "load_package", lambda *_: lambda: None)
    monkeypatch.setattr(dispatch, "is_on_cuda", lambda _: True)
    monkeypatch.setattr(dispatch, "compute_capability", lambda _: HOPPER)
    for kernel in OPS["attend"].kernels:
        monkeypatch.setitem(vars(kernel), "call", lambda *_, _name=kernel.name, **__: _name)
    tensors, options = [noise(2, 2, 12, 16).bfloat16()] * 3, {"causal": True, "window": 4 if name == "flex" else None}
    assert run_kernel("attend", name, *tensors, **options) == name
    attention_mask = pads([0, 2], [12, 12], 12)
    with pytest.raises(ValueError, match=f"kernel = {name} cannot run attend: it knows no padding mask"):
        run_kernel("attend", name, *tensors, **options, attention_mask=attention_mask)
    assert torch.equal(
        run_kernel("attend", "auto", *tensors, **options, attention_mask=attention_mask),
        attend(*tensors, **options, attention_mask=attention_mask),
    )
