"""The recurrences against flash-linear-attention's own references in plain torch, where that is installed (no GPU needed)."""

import importlib
import math
import warnings

import pytest
import torch
import torch.nn.functional as F

from models.ops.recurrences.delta_rule import gated_delta_rule
from models.ops.recurrences.gated_linear_attention import gated_linear_attention
from models.ops.recurrences.kimi_delta_rule import kimi_delta_rule
from models.ops.recurrences.retention import retention
from models.ops.recurrences.rwkv6_recurrence import rwkv6_recurrence
from models.ops.recurrences.rwkv7_recurrence import rwkv7_recurrence
from models.ops.recurrences.ungated_delta_rule import delta_rule
from tests.models.cases import noise

N_HEADS, D_KEY, D_VALUE = 3, 8, 5

with warnings.catch_warnings():
    # Without a GPU it says so when it is imported.
    warnings.simplefilter("ignore")
    pytest.importorskip("fla.ops")

each_length = pytest.mark.parametrize("time", [1, 33, 100])


def naive(module, function):
    return getattr(importlib.import_module(f"fla.ops.{module}"), function)


def inputs(time, d_value=D_VALUE):
    """Query, unit key and value [batch, n_heads, time, size], rate [batch, n_heads, time]."""
    query, key, value, rate = (noise(2, N_HEADS, time, size, seed=seed) for seed, size in enumerate((D_KEY, D_KEY, d_value, 1)))
    return query, F.normalize(key, dim=-1), value, rate[..., 0].sigmoid()


def decays(time, *, lowest, seed=7):
    return (lowest * noise(2, N_HEADS, time, D_KEY, seed=seed).sigmoid()).contiguous()


def time_first(*parts):
    return (part.transpose(1, 2) for part in parts)


def assert_equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def scaled(query):
    """What their functions do with a query inside."""
    return query / math.sqrt(D_KEY)


@each_length
def test_delta_rule(time):
    query, key, value, rate = inputs(time)
    expected, _ = naive("delta_rule.naive", "delta_rule_recurrence")(query, key, value, rate)
    assert_equal(delta_rule(scaled(query), key, value, rate), expected)


@each_length
def test_gated_delta_rule(time):
    query, key, value, rate = inputs(time)
    decay = decays(time, lowest=-3.0)[..., 0]
    expected, _ = naive("gated_delta_rule.naive", "naive_recurrent_gated_delta_rule")(
        *time_first(query, key, value, rate, decay), scale=D_KEY**-0.5
    )
    assert_equal(gated_delta_rule(scaled(query), key, value, rate, decay), expected.transpose(1, 2))


@each_length
def test_kimi_delta_rule(time):
    query, key, value, rate = inputs(time)
    decay = decays(time, lowest=-5.0)
    expected, _ = naive("kda.naive", "naive_recurrent_kda")(*time_first(query, key, value, decay, rate))
    assert_equal(kimi_delta_rule(scaled(query), key, value, rate, decay), expected.transpose(1, 2))


@each_length
def test_gated_linear_attention(time):
    query, key, value, _ = inputs(time)
    decay = decays(time, lowest=-5.0)
    expected, _ = naive("gla.naive", "naive_recurrent_gla")(*time_first(query, key, value, decay))
    assert_equal(gated_linear_attention(scaled(query), key, value, decay), expected.transpose(1, 2))


@each_length
def test_retention(time):
    query, key, value, _ = inputs(time, d_value=D_KEY)
    log_decay = torch.log1p(-torch.exp2(-5.0 - torch.arange(N_HEADS)))
    assert_equal(retention(scaled(query), key, value, log_decay), naive("retention.naive", "naive_retention")(query, key, value))


@each_length
def test_rwkv6_recurrence(time):
    query, key, value, _ = inputs(time)
    decay, bonus = decays(time, lowest=-5.0), noise(N_HEADS, D_KEY)
    expected, _ = naive("rwkv6.recurrent_naive", "naive_recurrent_rwkv6")(query, key, value, decay, bonus, scale=1.0)
    assert_equal(rwkv6_recurrence(query, key, value, decay, bonus), expected)


@each_length
def test_rwkv7_recurrence(time):
    query, removal, value, _ = inputs(time)
    key, rate, decay = noise(2, N_HEADS, time, D_KEY, seed=5), -decays(time, lowest=-1.0), decays(time, lowest=-0.6, seed=8)
    expected, _ = naive("generalized_delta_rule.dplr.naive", "dplr_recurrence")(
        query * math.sqrt(D_KEY), key, value, -removal, rate * removal, decay
    )
    assert_equal(rwkv7_recurrence(query, key, value, decay, removal, rate), expected)
