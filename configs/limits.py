"""What input may come to at most, so that whatever is given is taken or refused within seconds and some hundred megabytes.

Each limit is far above what anybody has written by hand, or published, and says in its comment above what.
"""

MOST_YAML_BYTES = 2**17
"""Of a YAML file, or of the value of one override: a second's work for the parser. The longest shipped file has 3 KB."""

MOST_JSON_BYTES = 2**24
"""Of a JSON file that a run has left: its specification, with every default filled in, of a thousand architectures."""

MOST_LEVELS = 64
"""Of mappings and lists, one in the other, and of the path of an override. The deepest shipped file has 9."""

MOST_VALUES = 20_000
"""Of a YAML text, keys included, after aliases have been expanded. The longest shipped file has some 200."""

LARGEST_INTEGER = 2**63 - 1
"""What 64 bits hold, and so what torch, numpy and Arrow take."""

MOST_PROBLEMS = 50
"""That are told of one file at once; that there are more is told too."""

LONGEST_ECHO = 200
"""Characters of a value that a message repeats."""

LONGEST_LINE = 2000
"""Characters of one problem as it is told, the names that are known included."""

MOST_BLOCKS = 1024
"""Of a rack, patterns laid out, and its stacks as it grows. The deepest published language models have some 130 layers."""

MOST_PARTS = 16_384
"""Mixers and channel mixers of a rack, every choice of every layer counted: building that many takes half a minute."""

MOST_PARAMETERS = 10**13
"""Of a rack: ten times the largest published ones. Counted before anything is allocated."""

WIDEST = 2**17
"""`d_model`, and channels of a time: five times the widest published models."""

LONGEST = 2**24
"""Positions of a sequence, tokens of a vocabulary, time steps: more than any published context (10 million) or vocabulary has."""


def shortened(text: str) -> str:
    """The text as a message repeats it: without its middle, if it is long."""
    if len(text) <= LONGEST_ECHO:
        return text
    half = LONGEST_ECHO // 2
    return f"{text[:half]}... ({len(text):,} characters) ...{text[-half // 2 :]}"
