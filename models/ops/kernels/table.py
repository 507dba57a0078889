"""The dispatch table: every op that has kernels, by the name of its reference in `models/ops`."""

from models.ops.attention.attend import attend
from models.ops.convolutions.causal_convolution import causal_convolution
from models.ops.kernels.attention import FLASH_3_ATTEND, FLASH_4_ATTEND, FLASH_ATTEND, FLEX_ATTEND
from models.ops.kernels.convolution import CONVOLVE
from models.ops.kernels.kernel import HALVES, Op
from models.ops.kernels.recurrence import recurrence, removal_as_product
from models.ops.kernels.state_space import DUALITY, SCAN
from models.ops.recurrences.delta_rule import gated_delta_rule
from models.ops.recurrences.gated_linear_attention import gated_linear_attention
from models.ops.recurrences.kimi_delta_rule import kimi_delta_rule
from models.ops.recurrences.linear_attention import linear_attention
from models.ops.recurrences.retention import retention
from models.ops.recurrences.rwkv6_recurrence import rwkv6_recurrence
from models.ops.recurrences.rwkv7_recurrence import rwkv7_recurrence
from models.ops.recurrences.selective_scan import selective_scan
from models.ops.recurrences.state_space_duality import state_space_duality
from models.ops.recurrences.ungated_delta_rule import delta_rule

GATED_LINEAR_ATTENTION = recurrence("gla:chunk_gla", "Q", "K", "V", "g")
# Its own default divides by the sum of the keys.
LINEAR_ATTENTION = recurrence("linear_attn:chunk_linear_attn", "Q", "K", "V", normalize=False)
RETENTION = recurrence("simple_gla:chunk_simple_gla", "Q", "K", "V", "g_gamma")
DELTA_RULE = recurrence("delta_rule:chunk_delta_rule", "Q", "K", "V", "beta", dtypes=HALVES, largest=256)
KIMI_DELTA_RULE = recurrence("kda:chunk_kda", "Q", "K", "V", "beta", "g", largest=256)
# Its package refuses to go backward with these (its issue 640), or goes through tilelang where that is installed.
GATED_DELTA_RULE = recurrence(
    "gated_delta_rule:chunk_gated_delta_rule", "Q", "K", "V", "beta", "g", largest=256, wrong_triton=("3.4", "3.7.1")
)
RWKV6_RECURRENCE = recurrence("rwkv6:chunk_rwkv6", "R", "K", "V", "w", "u")
RWKV7_RECURRENCE = recurrence(
    "rwkv7:chunk_rwkv7", "R", "K", "V", "w", "A", "B", prepare=removal_as_product, dtypes=HALVES, largest=256
)

OPS = {
    "attend": Op(attend, (FLASH_4_ATTEND, FLASH_3_ATTEND, FLASH_ATTEND, FLEX_ATTEND)),
    "causal_convolution": Op(causal_convolution, (CONVOLVE,)),
    "selective_scan": Op(selective_scan, (SCAN,)),
    "state_space_duality": Op(state_space_duality, (DUALITY,)),
    "linear_attention": Op(linear_attention, (LINEAR_ATTENTION,)),
    "gated_linear_attention": Op(gated_linear_attention, (GATED_LINEAR_ATTENTION,)),
    "retention": Op(retention, (RETENTION,)),
    "delta_rule": Op(delta_rule, (DELTA_RULE,)),
    "kimi_delta_rule": Op(kimi_delta_rule, (KIMI_DELTA_RULE,)),
    "gated_delta_rule": Op(gated_delta_rule, (GATED_DELTA_RULE,)),
    "rwkv6_recurrence": Op(rwkv6_recurrence, (RWKV6_RECURRENCE,)),
    "rwkv7_recurrence": Op(rwkv7_recurrence, (RWKV7_RECURRENCE,)),
}
