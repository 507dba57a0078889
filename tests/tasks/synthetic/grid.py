"""The 66 difficulty settings of MAD: one change at a time around each baseline, with the number of training instances."""

N_TRAIN = [{"n_train": n} for n in (6400, 3200, 1600, 800)]


def _each(option, *values):
    return [{option: value} for value in values]


CHANGES = {
    "in_context_recall": [{}, *_each("vocab_size", 32, 64, 128), *_each("seq_len", 256, 512, 1024), *N_TRAIN],
    "noisy_in_context_recall": [
        {},
        *_each("vocab_size", 48, 80, 144),
        *_each("seq_len", 256, 512, 1024),
        *_each("frac_noise", 0.4, 0.6, 0.8),
        *N_TRAIN,
    ],
    "fuzzy_in_context_recall": [{}, *_each("vocab_size", 32, 64, 128), *_each("seq_len", 256, 512, 1024), *N_TRAIN],
    "memorization": [{}, *_each("vocab_size", 512, 1024, 2048, 4096, 8192)],
    "compression": [{}, *_each("vocab_size", 32, 64, 128), *_each("seq_len", 64, 128, 256), *N_TRAIN],
    "selective_copying": [
        {},
        *_each("vocab_size", 32, 64, 128),
        *_each("seq_len", 512, 1024),
        *_each("n_tokens_to_copy", 32, 64, 96),
        *N_TRAIN,
    ],
}
