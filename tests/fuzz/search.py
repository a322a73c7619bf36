"""One target under atheris: ``python -m tests.fuzz.search TARGET [OPTION OF LIBFUZZER…]``."""

import logging
import sys

import atheris
import structlog

with atheris.instrument_imports(include=["fs"]):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[sys.argv[1]].run)
    atheris.Fuzz()
