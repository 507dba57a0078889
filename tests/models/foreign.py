"""Dumb stand-ins for the kernels' packages: each function by its own package's name, arguments, defaults, layout and scale.

After the signatures and docstrings of flash-attn 2.8, mamba-ssm 2.3, causal-conv1d 1.7 and flash-linear-attention 0.6; position
by position, in float32 inside, of the type of what comes in. What a package refuses is an assertion.
"""

# ruff: noqa: FBT002, N803, PLR0917
# The signatures are the packages'.

import torch
import torch.nn.functional as F


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), deterministic=False):
    """[batch, time, heads, d_head]; the mask is aligned to the last query and key."""
    assert q.dtype in (torch.bfloat16, torch.float16)
    assert q.dtype == k.dtype == v.dtype
    assert q.shape[-1] % 8 == 0
    assert dropout_p == 0
    assert not deterministic
    group = q.shape[2] // k.shape[2]
    query, key, value = (part.float().transpose(1, 2) for part in (q, k, v))
    key, value = (part.repeat_interleave(group, dim=1) for part in (key, value))
    scores = query @ key.mT * (q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale)
    queries, keys = scores.shape[-2:]
    distance = torch.arange(queries)[:, None] + keys - queries - torch.arange(keys)
    left, right = window_size
    if causal:
        right = 0
    seen = torch.ones_like(distance, dtype=torch.bool)
    seen &= distance <= left if left >= 0 else seen
    seen &= distance >= -right if right >= 0 else seen
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value).transpose(1, 2).to(q.dtype)


def causal_conv1d_fn(
    x, weight, bias=None, seq_idx=None, initial_states=None, return_final_states=False, final_states_out=None, activation=None
):
    """[batch, channels, time]."""
    assert (seq_idx, initial_states, return_final_states, final_states_out) == (None, None, False, None)
    assert activation in (None, "silu", "swish")
    channels, width = weight.shape
    assert 2 <= width <= 4
    assert bias is None or bias.dtype == weight.dtype
    if x.stride(1) == 1 and x.stride(2) > 1:
        assert channels % 8 == x.stride(0) % 8 == x.stride(2) % 8 == 0
    else:
        assert x.stride(2) == 1
    y = F.conv1d(F.pad(x.float(), (width - 1, 0)), weight.float()[:, None], bias, groups=channels)
    return (y if activation is None else F.silu(y)).to(x.dtype)


def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False):
    """u and delta [batch, channels, time], A [channels, states], B and C [batch, states, time]."""
    assert (D, z, delta_bias, delta_softplus, return_last_state) == (None, None, None, False, False)
    assert u.dtype == delta.dtype == B.dtype == C.dtype
    assert A.dtype == torch.float32
    state, outputs = torch.zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[-1]):
        decay = (delta[..., t, None] * A).exp()
        state = decay * state + (delta * u)[..., t, None] * B[:, None, :, t]
        outputs.append((state * C[:, None, :, t]).sum(-1))
    return torch.stack(outputs, -1).to(u.dtype)


def mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, dt_softplus=False):
    """x [batch, time, heads, d_head], dt [batch, time, heads], A [heads], B and C [batch, time, groups, states]."""
    assert (D, z, dt_bias, dt_softplus) == (None, None, None, False)
    assert chunk_size % 16 == 0
    assert x.dtype == B.dtype == C.dtype
    assert A.shape == dt.shape[2:]
    group = x.shape[2] // B.shape[2]
    write, read = (part.float().repeat_interleave(group, dim=2) for part in (B, C))
    state, outputs = 0, []
    for t in range(x.shape[1]):
        added = (dt[:, t, :, None] * x[:, t])[..., None] * write[:, t, :, None]
        state = (dt[:, t] * A).exp()[..., None, None] * state + added
        outputs.append((state * read[:, t, :, None]).sum(-1))
    return torch.stack(outputs, 1).to(x.dtype)


def remember(q, k, v, scale, decay, *, rate=None):
    """S_t = diag(decay_t) S_{t-1} + k_t u_t^T and y_t = scale q_t S_t, [batch, time, heads, size]; with a rate, u corrects."""
    assert q.dtype == k.dtype == v.dtype
    assert min(q.shape[-1], v.shape[-1]) >= 16
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    query, key, value = (part.float() for part in (q, k, v))
    state, outputs = torch.zeros(q.shape[0], *q.shape[2:], v.shape[-1]), []
    for t in range(q.shape[1]):
        state = decay[:, t][..., None] * state
        update = value[:, t] if rate is None else rate[:, t, :, None] * (value[:, t] - (key[:, t, :, None] @ state)[..., 0, :])
        state = state + key[:, t][..., None] * update[..., None, :]
        outputs.append(scale * (query[:, t, :, None] @ state)[..., 0, :])
    return torch.stack(outputs, 1).to(v.dtype), None


def chunk_linear_attn(q, k, v, scale=None, initial_state=None, output_final_state=False, normalize=True):
    assert (initial_state, output_final_state) == (None, False)
    mixed, state = remember(q, k, v, scale, torch.ones_like(k))
    return (mixed / (q * k.cumsum(1)).sum(-1, keepdim=True) if normalize else mixed), state


def chunk_simple_gla(q, k, v, g=None, g_gamma=None, scale=None):
    assert g is None
    assert g_gamma.shape == q.shape[2:3]
    return remember(q, k, v, scale, g_gamma.exp()[:, None].expand_as(k))


def chunk_gla(q, k, v, g, scale=None):
    assert g.shape == k.shape
    return remember(q, k, v, scale, g.exp())


def chunk_gated_delta_rule(q, k, v, g, beta, scale=None):
    assert g.shape == beta.shape == q.shape[:3]
    return remember(q, k, v, scale, g.exp()[..., None].expand_as(k), rate=beta)


def chunk_delta_rule(q, k, v, beta, scale=None):
    assert q.dtype != torch.float32
    assert beta.shape == q.shape[:3]
    return remember(q, k, v, scale, torch.ones_like(k), rate=beta)


def chunk_rwkv6(r, k, v, w, u, scale=None):
    assert w.shape == k.shape
    assert u.shape == k.shape[2:]
    scale = r.shape[-1] ** -0.5 if scale is None else scale
    # A position reads what was there before it came: the memory of the one before, moved on by one.
    nothing = torch.zeros_like(k[:, :1])
    later = [torch.cat((nothing.to(part), part[:, :-1]), dim=1) for part in (k, w)]
    value = torch.cat((torch.zeros_like(v[:, :1]), v[:, :-1]), dim=1)
    mixed, state = remember(r.float(), later[0].float(), value.float(), scale, later[1].exp())
    here = scale * (r.float() * u * k.float()).sum(-1, keepdim=True) * v.float()
    return (mixed + here).to(v.dtype), state


def chunk_rwkv7(r, w, k, v, a, b, scale=1.0):
    """S_t = diag(e^w_t) S_{t-1} + b_t (a_t S_{t-1}) + k_t v_t^T."""
    assert r.dtype == k.dtype == v.dtype == a.dtype == b.dtype != torch.float32
    assert w.shape == a.shape == b.shape == k.shape
    query, key, value, read, write = (part.float() for part in (r, k, v, a, b))
    state, outputs = torch.zeros(*k.shape[:1], *k.shape[2:], v.shape[-1]), []
    for t in range(r.shape[1]):
        added = write[:, t][..., None] * (read[:, t, :, None] @ state) + key[:, t][..., None] * value[:, t, :, None]
        state = w[:, t].exp()[..., None] * state + added
        outputs.append(scale * (query[:, t, :, None] @ state)[..., 0, :])
    return torch.stack(outputs, 1).to(v.dtype), None


def chunk_kda(q, k, v, g, beta, scale=None):
    assert g.shape == k.shape
    assert beta.shape == q.shape[:3]
    return remember(q, k, v, scale, g.exp(), rate=beta)
