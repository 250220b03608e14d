"""Any method for other sites than one onto itself. A crosscoder needs none of this: every method works on sites side by side."""

from dataclasses import replace

from overtone.method import Method
from overtone.revival import SurplusResampling


def transcoder(method: Method, *, skip: bool = False) -> Method:
    """The form of a method that reads one site and reconstructs another (Dunefsky et al., arXiv 2406.11944).

    Encoder and decoder have weights of their own (`Method.untied`); atoms are as the method has them. Inputs are divided by one
    number for all rows and not by each row's norm, which the target does not share (maths.md eq. S2). b_dec, which shifts
    nothing on its way in, is trained. `SurplusResampling` is left out: what is left of the target is not in the space of encoder
    rows.

    Args:
        method: any method; one that is in this form already changes in `skip` alone.
        skip: a linear path W_skip x beside the latents, from 0 and without a penalty (Paulo et al., arXiv 2501.18823).
    """
    untied = method.untied()
    p = untied.parametrisation
    norm = "site" if p.input_norm in ("row", "root") else p.input_norm
    rules = tuple(rule for rule in untied.rules if not isinstance(rule, SurplusResampling))
    return replace(untied, rules=rules, parametrisation=replace(p, centre="trained", input_norm=norm, skip=skip))
