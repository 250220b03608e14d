"""overtone: train, prove and explain sparse dictionaries of neural networks' activations."""

from overtone.checkpoint import CheckpointError, load, save
from overtone.data.activations import Activations
from overtone.data.exchange import export_rows, import_rows, merge_stores
from overtone.data.filling import HarvestPlan, harvest_store
from overtone.data.harvest import harvest
from overtone.data.live import HarvestStream
from overtone.data.models import LanguageModel, load_model
from overtone.data.shards import StoreError
from overtone.data.shuffle import StoreStream
from overtone.data.store import Store
from overtone.data.stream import ArrayStream, Batch, SharedRows, Stream
from overtone.data.synthetic import FreshStream, SparseMixture, imbalanced
from overtone.data.synthetic_sites import ReLUMap, SiteMixture, site_mixture
from overtone.data.text import Document, iter_documents, load_documents, split_documents
from overtone.dictionary import Codes, Dictionary, Parametrisation
from overtone.firing import FiringStats
from overtone.layout import Block, Layout
from overtone.losses import L1, Alignment, LossTerm, Matryoshka, RarestFirst, Reconstruction
from overtone.method import Method, ba, batch_topk, gba, gba_paper, l1, matryoshka, modified_ba, topk
from overtone.metrics.latents import latent_stats
from overtone.metrics.reconstruction import evaluate
from overtone.metrics.recovery import recovery
from overtone.metrics.sites import site_norms
from overtone.rules import (
    BiasAdaptation,
    CentreAtMean,
    FixedBias,
    Rule,
    ThresholdEMA,
    UnitEncoder,
    UnitNorm,
    adapt_bias,
)
from overtone.runs import RunFolder, execute, execute_together, fit
from overtone.selection import BatchSelection, BatchTopK, JumpReLU, ReLU, Selection, SmoothReLU, TopK
from overtone.sites import transcoder
from overtone.spectrum import Spectrum
from overtone.training import Record, Run, TrainState, start, train
from overtone.version import __version__

__all__ = [
    "L1",
    "Activations",
    "Alignment",
    "ArrayStream",
    "Batch",
    "BatchSelection",
    "BatchTopK",
    "BiasAdaptation",
    "Block",
    "CentreAtMean",
    "CheckpointError",
    "Codes",
    "Dictionary",
    "Document",
    "FiringStats",
    "FixedBias",
    "FreshStream",
    "HarvestPlan",
    "HarvestStream",
    "JumpReLU",
    "LanguageModel",
    "Layout",
    "LossTerm",
    "Matryoshka",
    "Method",
    "Parametrisation",
    "RarestFirst",
    "ReLU",
    "ReLUMap",
    "Reconstruction",
    "Record",
    "Rule",
    "Run",
    "RunFolder",
    "Selection",
    "SharedRows",
    "SiteMixture",
    "SmoothReLU",
    "SparseMixture",
    "Spectrum",
    "Store",
    "StoreError",
    "StoreStream",
    "Stream",
    "ThresholdEMA",
    "TopK",
    "TrainState",
    "UnitEncoder",
    "UnitNorm",
    "__version__",
    "adapt_bias",
    "ba",
    "batch_topk",
    "evaluate",
    "execute",
    "execute_together",
    "export_rows",
    "fit",
    "gba",
    "gba_paper",
    "harvest",
    "harvest_store",
    "imbalanced",
    "import_rows",
    "iter_documents",
    "l1",
    "latent_stats",
    "load",
    "load_documents",
    "load_model",
    "matryoshka",
    "merge_stores",
    "modified_ba",
    "recovery",
    "save",
    "site_mixture",
    "site_norms",
    "split_documents",
    "start",
    "topk",
    "train",
    "transcoder",
]
