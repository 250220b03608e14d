"""Model organisms: small transformers trained on sequences of a known law, as sources of activations with a known answer."""
