"""What the theory of Group Bias Adaptation says, computable: conditions, identifiability, the recoverable band, the dynamics.

Everything here takes coefficients H and features V, or numbers; nothing knows how dictionaries are trained.
"""
