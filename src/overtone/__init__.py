"""overtone: train, prove and explain sparse dictionaries of neural networks' activations."""

from overtone.baselines import frozen_decoder, soft_frozen_decoder
from overtone.checkpoint import CheckpointError, save
from overtone.data.activations import Activations
from overtone.data.context_stream import ContextStream
from overtone.data.exchange import export_rows, import_rows, merge_stores
from overtone.data.filling import HarvestPlan, harvest_store
from overtone.data.forest import FeatureForest, synth_sae_bench
from overtone.data.fresh import FreshStream
from overtone.data.harvest import harvest
from overtone.data.labelled import Labelled, load_labelled
from overtone.data.live import HarvestStream
from overtone.data.markov import MarkovMixture
from overtone.data.models import LanguageModel, load_model
from overtone.data.regression import RegressionMixture
from overtone.data.shards import StoreError
from overtone.data.shuffle import StoreStream
from overtone.data.store import Store
from overtone.data.stream import ArrayStream, Batch, Dealt, SharedRows, Stream
from overtone.data.synthetic import SparseMixture, imbalanced
from overtone.data.synthetic_sites import ReLUMap, SiteMixture, site_mixture
from overtone.data.text import Document, iter_documents, load_documents, split_documents
from overtone.dictionary import Codes, Dictionary
from overtone.firing import FiringStats
from overtone.formats import FormatError, export, load, push
from overtone.gating import Gated, LatentThreshold, ThresholdJumpReLU
from overtone.guidance import Anchoring, AuxK, Orthogonality
from overtone.layout import Block, Layout
from overtone.losses import (
    Alignment,
    LossTerm,
    Matryoshka,
    NormalisedMSE,
    RarestFirst,
    Reconstruction,
    RelativeError,
    SampledMatryoshka,
)
from overtone.method import Method
from overtone.methods import (
    abs_topk,
    anchored,
    ba,
    batch_topk,
    end_to_end,
    gated,
    gba,
    gba_jumprelu,
    gba_matryoshka,
    gba_paper,
    gba_released,
    gba_universal,
    gba_untied,
    group_max,
    jumprelu,
    l1,
    matching_pursuit,
    matryoshka,
    modified_ba,
    ortsae,
    p_anneal,
    tanh_jumprelu,
    topk,
    with_aux_k,
    with_frequency_control,
)
from overtone.metrics.ablation import LatentEffects, latent_effects
from overtone.metrics.consistency import Consistency, consistency
from overtone.metrics.downstream import TokenLosses, token_losses
from overtone.metrics.known import score_known
from overtone.metrics.latents import latent_stats
from overtone.metrics.lens import LogitLens, logit_lens
from overtone.metrics.reconstruction import evaluate
from overtone.metrics.recovery import recovery
from overtone.metrics.sites import site_norms
from overtone.metrics.truth import TruthScores, score_against
from overtone.model_loss import EndToEnd
from overtone.organisms.named import markov_organism, regression_organism
from overtone.organisms.organism import Organism
from overtone.parallel import World, connected
from overtone.parametrisation import Parametrisation
from overtone.penalties import L0, L1, GateL1, GateReconstruction, Lp, PreActivation, Tanh
from overtone.revival import CountIdle, DeadResampling, SurplusResampling
from overtone.rules import (
    AtomsNearStart,
    CentreAtMean,
    Rule,
    TangentGradient,
    ThresholdEMA,
    UnitEncoder,
    UnitNorm,
    WhitenedEncoder,
)
from overtone.runs import RunFolder, execute, execute_together, fit
from overtone.schedules import Ramp, decayed, warmed
from overtone.selection import (
    AbsTopK,
    BatchSelection,
    BatchTopK,
    GroupMax,
    JumpReLU,
    MatchingPursuit,
    RankedSelection,
    ReLU,
    Selection,
    SharedSelection,
    SmoothReLU,
    Threshold,
    TopK,
    Weight,
    WeightedSelection,
)
from overtone.sites import transcoder
from overtone.spectrum import Spectrum
from overtone.steering import BiasAdaptation, FixedBias, Release, adapt_bias, universal_threshold
from overtone.training import Record, Run, TrainState, start, train
from overtone.version import __version__

__all__ = [
    "L0",
    "L1",
    "AbsTopK",
    "Activations",
    "Alignment",
    "Anchoring",
    "ArrayStream",
    "AtomsNearStart",
    "AuxK",
    "Batch",
    "BatchSelection",
    "BatchTopK",
    "BiasAdaptation",
    "Block",
    "CentreAtMean",
    "CheckpointError",
    "Codes",
    "Consistency",
    "ContextStream",
    "CountIdle",
    "DeadResampling",
    "Dealt",
    "Dictionary",
    "Document",
    "EndToEnd",
    "FeatureForest",
    "FiringStats",
    "FixedBias",
    "FormatError",
    "FreshStream",
    "GateL1",
    "GateReconstruction",
    "Gated",
    "GroupMax",
    "HarvestPlan",
    "HarvestStream",
    "JumpReLU",
    "Labelled",
    "LanguageModel",
    "LatentEffects",
    "LatentThreshold",
    "Layout",
    "LogitLens",
    "LossTerm",
    "Lp",
    "MarkovMixture",
    "MatchingPursuit",
    "Matryoshka",
    "Method",
    "NormalisedMSE",
    "Organism",
    "Orthogonality",
    "Parametrisation",
    "PreActivation",
    "Ramp",
    "RankedSelection",
    "RarestFirst",
    "ReLU",
    "ReLUMap",
    "Reconstruction",
    "Record",
    "RegressionMixture",
    "RelativeError",
    "Release",
    "Rule",
    "Run",
    "RunFolder",
    "SampledMatryoshka",
    "Selection",
    "SharedRows",
    "SharedSelection",
    "SiteMixture",
    "SmoothReLU",
    "SparseMixture",
    "Spectrum",
    "Store",
    "StoreError",
    "StoreStream",
    "Stream",
    "SurplusResampling",
    "TangentGradient",
    "Tanh",
    "Threshold",
    "ThresholdEMA",
    "ThresholdJumpReLU",
    "TokenLosses",
    "TopK",
    "TrainState",
    "TruthScores",
    "UnitEncoder",
    "UnitNorm",
    "Weight",
    "WeightedSelection",
    "WhitenedEncoder",
    "World",
    "__version__",
    "abs_topk",
    "adapt_bias",
    "anchored",
    "ba",
    "batch_topk",
    "connected",
    "consistency",
    "decayed",
    "end_to_end",
    "evaluate",
    "execute",
    "execute_together",
    "export",
    "export_rows",
    "fit",
    "frozen_decoder",
    "gated",
    "gba",
    "gba_jumprelu",
    "gba_matryoshka",
    "gba_paper",
    "gba_released",
    "gba_universal",
    "gba_untied",
    "group_max",
    "harvest",
    "harvest_store",
    "imbalanced",
    "import_rows",
    "iter_documents",
    "jumprelu",
    "l1",
    "latent_effects",
    "latent_stats",
    "load",
    "load_documents",
    "load_labelled",
    "load_model",
    "logit_lens",
    "markov_organism",
    "matching_pursuit",
    "matryoshka",
    "merge_stores",
    "modified_ba",
    "ortsae",
    "p_anneal",
    "push",
    "recovery",
    "regression_organism",
    "save",
    "score_against",
    "score_known",
    "site_mixture",
    "site_norms",
    "soft_frozen_decoder",
    "split_documents",
    "start",
    "synth_sae_bench",
    "tanh_jumprelu",
    "token_losses",
    "topk",
    "train",
    "transcoder",
    "universal_threshold",
    "warmed",
    "with_aux_k",
    "with_frequency_control",
]
