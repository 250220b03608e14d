"""Who is measured: the libraries by their names on PyPI, and what stands for each."""

from types import ModuleType

from peers import (
    dictionary_learning_step,
    limit_step,
    overcomplete_step,
    overtone_step,
    saelens_step,
    sparsify_step,
)

OURS, LIMIT = "overtone", "limit"
PEERS: dict[str, ModuleType] = {
    "sae-lens": saelens_step,
    "dictionary-learning": dictionary_learning_step,
    "eai-sparsify": sparsify_step,
    "overcomplete": overcomplete_step,
}
LIBRARIES: dict[str, ModuleType] = {OURS: overtone_step, LIMIT: limit_step, **PEERS}
