"""The type checker that tests run overtone under: beartype, with ints accepted where floats are asked for (PEP 484)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
