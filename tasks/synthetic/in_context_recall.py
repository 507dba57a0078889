"""In-context recall: which value went with this key, earlier in the sequence?"""

from dataclasses import dataclass

from tasks.synthetic.shared.recall import Recall


@dataclass(frozen=True, kw_only=True)
class InContextRecall(Recall):
    """Recall without noise. Poli et al. 2024, arXiv 2403.17844."""
